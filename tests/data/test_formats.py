"""CelebA, rendered chairs, WebDataset and folders, from small files in exactly their layout."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastinfogan import experiments
from fastinfogan.data.formats.folder import read as read_folder
from fastinfogan.data.image_set import ImageShape
from fastinfogan.data.listing import FileListing
from tests.helpers.image_files import bytes_of
from tests.helpers.open_set import decoded, encoded, message, names

SVHN, CELEBA, CHAIRS = (experiments.get(name) for name in ("svhn", "celeba", "chairs"))
RANDOM = np.random.default_rng(0)


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
    """178x218, with one colour in the central 128x128 and black around it."""
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
        assert source.factors.names == tuple(ATTRIBUTES)
        assert source.factors.classes == (2, 2, 2)
        assert np.array_equal(source.factors.values, (SIGNS[[0, 1, 4]] + 1) / 2)
        assert np.array_equal(source.test.factors.values, (SIGNS[[3, 5]] + 1) / 2)
        images = decoded(source)
        assert images.shape == (3, 32, 32, 3)
        for image, i in zip(images, (0, 1, 4), strict=True):
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
    assert "must be an image and 0, 1 or 2, not '000003.jp'" in message(tmp_path, CELEBA)
    partition.write_text(whole[0][:26])
    assert "list_eval_partition.txt: no line for the image 000003" in message(tmp_path, CELEBA)
    partition.write_text(whole[0].replace(" 0", " 1"))
    assert "none of 6 images is in partition 0" in message(tmp_path, CELEBA)
    partition.write_text(whole[0])
    attributes.write_text(whole[1][: len(whole[1]) // 2])
    assert "images, where 6 are announced" in message(tmp_path, CELEBA)
    attributes.write_text(whole[1].replace("  1", "  7"))
    assert "must be an image and 3 times 1 or -1" in message(tmp_path, CELEBA)
    attributes.write_bytes(b"")
    assert "not a complete list of attributes" in message(tmp_path, CELEBA)


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
        assert factors.names == ("model", "elevation", "azimuth")
        assert factors.classes == (3, None, None)
        assert factors.periods == (None, None, 360)
        expected = [[m, *view] for m in range(3) for view in ((20, 11), (30, 348))]
        assert np.array_equal(factors.values, np.array(expected, np.float32))
        assert str(source.transform) == "the centre's 400x400 to 64x64 grey"
    images = decoded(encoded(folder, CHAIRS))
    assert np.array_equal(images[:, 0, 0, 0], [0, 0, 50, 50, 100, 100])
    assert (images == images[:, :1, :1]).all()


def test_an_image_of_another_name_is_an_error_or_left_out(tmp_path: Path) -> None:
    renders(tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / MODELS[0] / "view.png")
    assert f"{MODELS[0]}/view.png is not named as rendered chairs are" in message(tmp_path, CHAIRS)
    assert len(encoded(tmp_path, CHAIRS, on_bad_image="skip")) == 6


# Folders


def test_a_large_folder_is_listed_compactly(tmp_path: Path) -> None:
    for part in range(20):
        (tmp_path / f"{part:02d}").mkdir()
        for i in range(100):
            (tmp_path / f"{part:02d}" / f"{i:06d}.jpg").touch()
    source = read_folder(tmp_path, ImageShape(32, 32, 3))
    listing = source.files
    assert isinstance(listing, FileListing)
    assert len(listing) == 2_000
    kept = sum(
        v.nbytes if hasattr(v, "nbytes") else len(v)
        for v in vars(listing).values()
        if not isinstance(v, Path)
    )
    assert kept < 40 * 2_000
    assert listing[-1].name == "19/000099.jpg"
    assert listing[100:102][1] == listing[101]
    assert [p.name for p in listing.take([5, 3])] == ["00/000005.jpg", "00/000003.jpg"]
    with pytest.raises(IndexError):
        listing[2_000]


# WebDataset


def png(shade: int) -> bytes:
    return bytes_of(Image.new("RGB", (32, 32), (shade, 2 * shade, 7)), "PNG")


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))


def shard(first: int, kind: str) -> dict[str, bytes]:
    files = {}
    for i in range(first, first + 3):
        label = str(i % 2) if kind == "cls" else json.dumps({"label": i % 2, "url": "x.y"})
        # A long name has a header of its own.
        files[f"train/{i:06d}{'x' * 120}.png"] = png(i)
        files[f"train/{i:06d}{'x' * 120}.{kind}"] = label.encode()
    return files


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_webdataset(kind: str, tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"shard-{number:03d}.tar", shard(10 * number, kind))
    every = [0, 1, 2, 10, 11, 12, 20, 21, 22]
    for path, expected in (
        (tmp_path, every),
        (tmp_path / "shard-{000..002}.tar", every),
        (tmp_path / "{shard-001,shard-000}.tar", [10, 11, 12, 0, 1, 2]),
        (tmp_path / "shard-001.tar", [10, 11, 12]),
    ):
        source = encoded(path, SVHN)
        images = decoded(source)
        assert images[:, 0, 0].tolist() == [[i, 2 * i, 7] for i in expected]
        assert source.labels.tolist() == [i % 2 for i in expected]
    assert names(encoded(tmp_path, SVHN))[3] == f"shard-001.tar/train/000010{'x' * 120}.png"
    assert "shard-003.tar: cannot be read: No such file" in message(
        tmp_path / "shard-{000..003}.tar", SVHN
    )


def test_a_partly_labelled_set_has_no_labels(tmp_path: Path) -> None:
    files = shard(0, "cls")
    tar(tmp_path / "a.tar", {"extra.png": png(9), **files})
    assert encoded(tmp_path / "a.tar", SVHN).labels is None
    tar(tmp_path / "a.tar", {**files, "extra.png": png(9), "extra.cls": b"cat"})
    assert "a.tar: extra.cls is not an integer" in message(tmp_path / "a.tar", SVHN)


def test_truncated_and_damaged_tars(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    tar(path, {f"{i}.png": png(i) for i in range(8)})
    whole = path.read_bytes()
    step = 1024  # a header, and a picture that fits into a block
    for end, kept in ((4 * step, 4), (4 * step + 100, 4), (4 * step + 520, 4), (8 * step, 8)):
        path.write_bytes(whole[:end])
        reported = message(path, SVHN)
        assert f"a.tar: truncated; it holds {kept} complete images. Download" in reported
        source = encoded(path, SVHN, on_bad_image="skip")
        assert len(decoded(source)) == kept
    damaged = bytearray(whole)
    damaged[5 * step + 20] ^= 0xFF
    path.write_bytes(damaged)
    assert "a.tar: damaged at byte 5,120; it holds 5 complete images" in message(path, SVHN)
    for content in (b"", b"words" * 500, gzip.compress(whole)):
        path.write_bytes(content)
        assert "not a plain tar" in message(path, SVHN)
    tar(path, {"a.txt": b"words"})
    assert "no images in a.tar" in message(path, SVHN)
