"""Sets with a layout of their own, read from small files in exactly that layout."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastinfogan import experiments
from fastinfogan.data import Source, open_source
from fastinfogan.data.decoder import decode_all
from fastinfogan.data.folder import read as read_folder
from fastinfogan.data.listing import Listing
from fastinfogan.data.pillow import PillowDecoder
from fastinfogan.data.source import Encoded, ImageShape
from fastinfogan.errors import InputError

MNIST, SVHN, CELEBA, CHAIRS, SPRITES, FACES = (
    experiments.get(name) for name in ("mnist", "svhn", "celeba", "chairs", "sprites", "faces")
)
RANDOM = np.random.default_rng(0)


def encoded(path: Path, experiment: experiments.Experiment, **options: str) -> Encoded:
    source = open_source(path, experiment, **options)
    assert isinstance(source, Encoded)
    return source


def in_memory(path: Path, experiment: experiments.Experiment) -> Source:
    source = open_source(path, experiment)
    assert isinstance(source, Source)
    return source


def message(path: Path, experiment: experiments.Experiment) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path, experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(source: Encoded | None) -> list[str]:
    assert source is not None
    return [picture.name for picture in source.pictures]


# CelebA

ATTRIBUTES = ["5_o_Clock_Shadow", "Eyeglasses", "Male"]
PARTITION = [0, 0, 1, 2, 0, 2]
SIGNS = np.where(RANDOM.integers(0, 2, (6, 3)) == 1, 1, -1)
FACES_NAMED = [f"{i:06d}.jpg" for i in range(1, 7)]


def lists(partition: Path, attributes: Path, kind: str) -> None:
    parts = [f"{name},{part}" for name, part in zip(FACES_NAMED, PARTITION, strict=True)]
    rows = [",".join([name, *map(str, row)]) for name, row in zip(FACES_NAMED, SIGNS, strict=True)]
    if kind == "csv":
        parts.insert(0, "image_id,partition")
        rows.insert(0, ",".join(["image_id", *ATTRIBUTES]))
        partition.with_suffix(".csv").write_text("\n".join(parts) + "\n")
        attributes.with_suffix(".csv").write_text("\n".join(rows) + "\n")
        return
    partition.with_suffix(".txt").write_text("".join(p.replace(",", " ") + "\n" for p in parts))
    table = "".join(row.replace(",1", "  1").replace(",", " ") + "\n" for row in rows)
    attributes.with_suffix(".txt").write_text(f"6\n{' '.join(ATTRIBUTES)} \n{table}")


def faces(folder: Path) -> list[np.ndarray]:
    """178x218, whose middle 128x128 is of one colour each; what is around it would show."""
    folder.mkdir(parents=True)
    colours = [np.array([40 * i, 200 - 30 * i, 20 * i + 5]) for i in range(6)]
    for name, colour in zip(FACES_NAMED, colours, strict=True):
        picture = np.zeros((218, 178, 3), np.uint8)
        picture[45:173, 25:153] = colour
        Image.fromarray(picture).save(folder / name, quality=100, subsampling=0)
    return colours


@pytest.mark.parametrize("packed", ["together", "kaggle", "handed out"])
def test_celeba(tmp_path: Path, packed: str) -> None:
    top = tmp_path / "celeba"
    folder = {
        "together": top / "img_align_celeba",
        "kaggle": top / "img_align_celeba" / "img_align_celeba",
        "handed out": top / "Img" / "img_align_celeba",
    }[packed]
    colours = faces(folder)
    for place in ("Anno", "Eval") if packed == "handed out" else ():
        (top / place).mkdir()
    eval_, anno = (top / "Eval", top / "Anno") if packed == "handed out" else (top, top)
    lists(
        eval_ / "list_eval_partition",
        anno / "list_attr_celeba",
        "csv" if packed == "kaggle" else "txt",
    )
    for path in (top, folder):
        source = encoded(path, CELEBA)
        assert names(source) == [FACES_NAMED[i] for i in (0, 1, 4)]
        assert names(source.test) == [FACES_NAMED[i] for i in (3, 5)]
        assert source.factors is not None
        assert source.factors.names == tuple(ATTRIBUTES)
        assert source.factors.classes == (2, 2, 2)
        assert np.array_equal(source.factors.values, (SIGNS[[0, 1, 4]] + 1) / 2)
        assert source.test is not None
        assert source.test.factors is not None
        assert np.array_equal(source.test.factors.values, (SIGNS[[3, 5]] + 1) / 2)
        images = decode_all(source, PillowDecoder)
        assert images.images.shape == (3, 32, 32, 3)
        for image, i in zip(images.images, (0, 1, 4), strict=True):
            assert np.abs(image.astype(int) - colours[i]).max() <= 6
    assert encoded(top, CELEBA).fingerprint == encoded(folder, CELEBA).fingerprint


def test_celeba_without_its_lists_and_with_damaged_ones(tmp_path: Path) -> None:
    faces(tmp_path / "img_align_celeba")
    source = encoded(tmp_path, CELEBA)
    assert len(source) == 6
    assert source.factors is source.test is None
    lists(tmp_path / "list_eval_partition", tmp_path / "list_attr_celeba", "txt")
    partition, attributes = tmp_path / "list_eval_partition.txt", tmp_path / "list_attr_celeba.txt"
    whole = partition.read_text(), attributes.read_text()
    partition.write_text(whole[0][:35])
    assert "0, 1 or 2 are on every line, not '000003.jp'" in message(tmp_path, CELEBA)
    partition.write_text(whole[0][:26])
    assert "list_eval_partition.txt: no line for the picture 000003" in message(tmp_path, CELEBA)
    partition.write_text(whole[0].replace(" 0", " 1"))
    assert "none of 6 pictures is of partition 0" in message(tmp_path, CELEBA)
    partition.write_text(whole[0])
    attributes.write_text(whole[1][: len(whole[1]) // 2])
    assert "pictures, where 6 are announced" in message(tmp_path, CELEBA)
    attributes.write_text(whole[1].replace("  1", "  7"))
    assert "3 times 1 or -1 are on every line" in message(tmp_path, CELEBA)
    attributes.write_bytes(b"")
    assert "not a whole list of attributes" in message(tmp_path, CELEBA)


# Rendered chairs

MODELS = ["1028b32dc1873c2afe26a3ac360dbd4", "10d0fc9d3f5b4d1", "a1"]


def renders(folder: Path) -> None:
    for shade, model in enumerate(MODELS):
        (folder / model / "renders").mkdir(parents=True)
        for i, (high, far) in enumerate([(20, 11), (30, 348)]):
            picture = np.full((600, 600), 255, np.uint8)
            picture[100:500, 100:500] = 50 * shade
            name = f"image_{i:03d}_p{high:03d}_t{far:03d}_r096.png"
            colour = Image.fromarray(picture).convert("RGB")
            colour.save(folder / model / "renders" / name, compress_level=1)


def test_rendered_chairs(tmp_path: Path) -> None:
    folder = tmp_path / "rendered_chairs"
    renders(folder)
    for path in (tmp_path, folder):
        source = encoded(path, CHAIRS)
        assert names(source)[0] == f"{MODELS[0]}/renders/image_000_p020_t011_r096.png"
        factors = source.factors
        assert factors is not None
        assert factors.names == ("model", "elevation", "azimuth")
        assert factors.classes == (3, None, None)
        assert factors.periods == (None, None, 360)
        expected = [[m, *view] for m in range(3) for view in ((20, 11), (30, 348))]
        assert np.array_equal(factors.values, np.array(expected, np.float32))
        assert str(source.recipe) == "the centre's 400x400 to 64x64 grey"
    images = decode_all(encoded(folder, CHAIRS), PillowDecoder).images
    assert np.array_equal(images[:, 0, 0, 0], [0, 0, 50, 50, 100, 100])
    assert (images == images[:, :1, :1]).all()


def test_a_picture_that_is_no_render_is_named_or_left_out(tmp_path: Path) -> None:
    renders(tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / MODELS[0] / "view.png")
    assert f"{MODELS[0]}/view.png is not named as rendered chairs are" in message(tmp_path, CHAIRS)
    assert len(encoded(tmp_path, CHAIRS, damaged="skip")) == 6


# Folders


def test_a_large_folder_is_listed_in_seconds_and_kept_compactly(tmp_path: Path) -> None:
    """20,000 of its 200,000: names of CelebA's kind."""
    for part in range(20):
        (tmp_path / f"{part:02d}").mkdir()
        for i in range(1000):
            (tmp_path / f"{part:02d}" / f"{i:06d}.jpg").touch()
    start = time.perf_counter()
    source = read_folder(tmp_path, ImageShape(32, 32, 3))
    assert time.perf_counter() - start < 2
    listing = source.pictures
    assert isinstance(listing, Listing)
    assert len(listing) == 20_000
    kept = sum(
        v.nbytes if hasattr(v, "nbytes") else len(v)
        for v in vars(listing).values()
        if not isinstance(v, Path)
    )
    assert kept < 40 * 20_000
    assert listing[-1].name == "19/000999.jpg"
    assert listing[1000:1002][1] == listing[1001]
    assert [p.name for p in listing.take([5, 3])] == ["00/000005.jpg", "00/000003.jpg"]
    with pytest.raises(IndexError):
        listing[20_000]
