"""Pillow's decoder: damaged, unusual and missing images."""

import os
import resource
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastinfogan import experiments
from fastinfogan.data import open_image_set
from fastinfogan.data.decoders.pillow import MAX_PIXELS, PillowDecoder
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageShape
from fastinfogan.data.listing import list_images
from fastinfogan.errors import InputError
from tests.helpers.image_files import (
    bytes_of,
    check_bounded_prefetch,
    decode,
    exif_orientation,
    scene,
)
from tests.helpers.open_set import encoded, names

SVHN = experiments.get("svhn")
COLOUR, GREY = CropResize(ImageShape(32, 32, 3)), CropResize(ImageShape(32, 32, 1))
RANDOM = np.random.default_rng(0)


def stored(files: dict[str, bytes], recipe: CropResize = COLOUR) -> EncodedImageSet:
    folder = Path("pictures")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return EncodedImageSet("pictures", list_images(folder), recipe)


def image_of(data: bytes, recipe: CropResize = COLOUR) -> NDArray[np.uint8]:
    found = decode(PillowDecoder(stored({"one.png": data}, recipe), 2))
    assert not found.bad
    return found.images[0]


def test_damaged_images_have_a_reason_and_others_are_decoded() -> None:
    jpeg, png = bytes_of(scene(), "JPEG"), bytes_of(scene(), "PNG")
    bomb = bytearray(png)
    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    source = stored(
        {
            "bomb.png": bytes(bomb),
            "empty.jpg": b"",
            "good.jpg": jpeg,
            "half.jpg": jpeg[: len(jpeg) // 2],
            "half.png": png[: len(png) // 2],
            "words.jpg": b"these are words",
        }
    )
    found = decode(PillowDecoder(source, 2))
    reasons = {bad.name: bad.reason for bad in found.bad}
    assert sorted(reasons) == ["bomb.png", "empty.jpg", "half.jpg", "half.png", "words.jpg"]
    assert reasons["bomb.png"] == f"more pixels than the {MAX_PIXELS:,} allowed"
    assert reasons["empty.jpg"] == "an empty file"
    assert "truncated" in reasons["half.jpg"].lower()
    assert reasons["words.jpg"] == "not an image of a known format"
    assert np.array_equal(found.images[2], image_of(jpeg))
    assert [bad.index for bad in found.bad] == [0, 1, 3, 4, 5]


def test_any_damage_is_a_bad_image_and_no_other_error() -> None:
    exif = exif_orientation(6)
    kinds = {
        "jpg": bytes_of(scene(), "JPEG", exif=exif),
        "progressive.jpg": bytes_of(scene(), "JPEG", progressive=True),
        "png": bytes_of(scene(), "PNG", exif=exif),
        "palette.png": bytes_of(scene().quantize(20), "PNG", transparency=3),
        "gif": bytes_of(scene().quantize(20), "GIF"),
        "bmp": bytes_of(scene(), "BMP"),
        "tif": bytes_of(scene(), "TIFF"),
        "webp": bytes_of(scene(), "WEBP"),
        "ppm": bytes_of(scene(), "PPM"),
    }
    files = {}
    for kind, data in kinds.items():
        for n in range(60):
            damaged = bytearray(data)
            start = 0 if n % 2 else min(len(data), 120)
            for place in RANDOM.integers(0, start or len(data), 1 + n % 3):
                damaged[place] ^= 1 << RANDOM.integers(8)
            files[f"{n:02d}.{kind}"] = bytes(damaged[: len(data) - n * (n % 5 == 0)])
    found = decode(PillowDecoder(stored(files), 2))
    assert 50 < len(found.bad) < len(files)
    for bad in found.bad:
        assert bad.reason
        assert "\n" not in bad.reason


def test_cmyk_palette_transparency_and_16_bits() -> None:
    flat = Image.new("RGB", (40, 40), (200, 40, 90))
    expected = np.array([200, 40, 90])
    for data in (
        bytes_of(flat.convert("CMYK"), "JPEG", quality=100),
        bytes_of(flat.quantize(4), "PNG"),
        bytes_of(flat.quantize(4), "PNG", transparency=0),
        bytes_of(flat.convert("RGBA"), "PNG"),
        bytes_of(Image.merge("RGBA", (*flat.split(), Image.new("L", (40, 40), 9))), "PNG"),
    ):
        assert np.abs(image_of(data).astype(int) - expected).max() <= 3
    for value, eight in ((0, 0), (65535, 255), (257 * 100, 100), (257 * 100 + 128, 100), (257, 1)):
        data = bytes_of(Image.fromarray(np.full((32, 32), value, np.uint16)), "PNG")
        for recipe in (COLOUR, GREY):
            assert (image_of(data, recipe) == eight).all()


def test_the_first_frame_is_decoded() -> None:
    frames = [Image.new("RGB", (32, 32), colour).quantize(4) for colour in ("red", "blue")]
    data = bytes_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (image_of(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("tag", range(1, 9))
def test_images_are_upright(tag: int) -> None:
    """The stored pixels of the same view for each EXIF orientation."""
    view = RANDOM.integers(0, 256, (32, 32, 3), np.uint8)
    sideways = view.transpose(1, 0, 2)
    held = {
        1: view,
        2: view[:, ::-1],
        3: view[::-1, ::-1],
        4: view[::-1],
        5: sideways,
        6: sideways[::-1],
        7: sideways[::-1, ::-1],
        8: sideways[:, ::-1],
    }[tag]
    picture = Image.fromarray(np.ascontiguousarray(held))
    assert np.array_equal(image_of(bytes_of(picture, "PNG", exif=exif_orientation(tag))), view)


def test_one_pixel_and_one_row() -> None:
    assert (image_of(bytes_of(Image.new("RGB", (1, 1), (7, 8, 9)), "PNG")) == (7, 8, 9)).all()
    assert image_of(bytes_of(Image.new("RGB", (300, 1), "white"), "PNG")).min() == 255
    cut = stored(
        {"small.png": bytes_of(scene(height=20, width=20), "PNG")},
        CropResize(COLOUR.shape, (128, 128)),
    )
    assert decode(PillowDecoder(cut, 2)).bad[0].reason == "20x20, smaller than the 128x128 crop"


def test_a_very_large_jpeg_takes_little_memory() -> None:
    """20,000x5,000 as a JPEG: 300 MB as they are, an eighth of the sides by draft."""
    wide = bytes_of(Image.new("RGB", (20_000, 5_000), (10, 200, 30)), "JPEG")
    source = stored({"narrow.png": bytes_of(Image.new("L", (20_000, 3), 9), "PNG"), "w.jpg": wide})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = decode(PillowDecoder(source, 2))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert not found.bad
    assert np.abs(found.images[1].astype(int) - (10, 200, 30)).max() <= 2


def test_files_that_vanish_shrink_or_cannot_be_read() -> None:
    data = bytes_of(scene(), "JPEG")
    source = stored({f"{i}.jpg": data for i in range(5)})
    Path("pictures/1.jpg").unlink()
    Path("pictures/2.jpg").write_bytes(data[:200])
    Path("pictures/3.jpg").unlink()
    Path("pictures/3.jpg").mkdir()
    found = decode(PillowDecoder(source, 2))
    assert {bad.index: bad.reason for bad in found.bad} == {
        1: "no such file or directory",
        2: f"200 bytes are left of {len(data)}",
        3: "is a directory",
    }
    assert np.array_equal(found.images[0], found.images[4])


def test_an_unreadable_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scene().save(tmp_path / name / "one.png")
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).rstrip("/").endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="b/: cannot be listed: Permission denied"):
        open_image_set(tmp_path, SVHN)
    assert names(encoded(tmp_path, SVHN, on_bad_image="skip")) == ["a/one.png"]


def test_links_and_names_of_any_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scene().save(tmp_path / name / f"{name}.png")
        for other in ("a", "b", ".."):
            (tmp_path / name / f"to {other.strip('.')}").symlink_to(Path("..", other))
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    elsewhere.mkdir()
    scene().save(elsewhere / "linked.png")
    (tmp_path / "z").symlink_to(elsewhere)
    (tmp_path / "y").symlink_to(elsewhere)
    (tmp_path / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "pipe.png")
    Path(os.fsdecode(bytes(tmp_path / "\udcff\n.png"))).write_bytes(b"")
    (tmp_path / "._a.png").write_bytes(b"left by macOS")
    source = encoded(tmp_path, SVHN)
    bad = {"self.png": "too many levels of symbolic links", "\\udcff\\n.png": "an empty file"}
    assert names(source) == ["a/a.png", "b/b.png", "self.png", "y/linked.png", "\\udcff\\n.png"]
    assert source.fingerprint["images"] == "5"
    assert {each.name: each.reason for each in decode(PillowDecoder(source, 2)).bad} == bad


def test_bounded_prefetch_and_closing() -> None:
    source = stored({f"{i}.png": bytes_of(scene(i), "PNG") for i in range(8)})
    check_bounded_prefetch(PillowDecoder(source, 3), at_most=10)
    with pytest.raises(InputError, match="threads must be 1 or more"):
        PillowDecoder(source, 0)
