"""DALI's decoder: the images of Pillow, and the same bad images."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastinfogan.data.decoders.base import choose_decoder
from fastinfogan.data.decoders.pillow import PillowDecoder
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageFile, ImageShape
from fastinfogan.errors import InputError
from fastinfogan_kernels import philox
from tests.helpers.image_files import (
    bytes_of,
    check_bounded_prefetch,
    decode,
    exif_orientation,
    scene,
)

pytest.importorskip("nvidia.dali", reason="DALI is not installed (the extras dali12 and dali13)")

from fastinfogan.data.decoders import dali as module
from fastinfogan.data.decoders.dali import DaliDecoder

RECIPES = [
    CropResize(ImageShape(32, 32, 3)),
    CropResize(ImageShape(32, 32, 1)),
    CropResize(ImageShape(48, 24, 3)),
    CropResize(ImageShape(32, 32, 3), crop=(40, 40)),
    CropResize(ImageShape(64, 64, 1), crop=(41, 37)),
]


def stored(files: dict[str, bytes], recipe: CropResize) -> EncodedImageSet:
    """Store all images in one file with gaps, as in a tar."""
    place, pictures = Path("pictures.bin").absolute(), []
    with place.open("wb") as file:
        for name, data in files.items():
            file.write(b"between")
            pictures.append(ImageFile(name, place, file.tell(), len(data)))
            file.write(data)
    return EncodedImageSet("pictures", pictures, recipe)


def kinds() -> dict[str, bytes]:
    """Images of every kind that both decoders read."""
    colour = scene(1, 61, 83)
    grey = colour.convert("L")
    see_through = colour.copy()
    see_through.putalpha(grey)
    found = {
        "420.jpg": bytes_of(colour, "JPEG", quality=90, subsampling=2),
        "444.jpg": bytes_of(colour, "JPEG", quality=90, subsampling=0),
        "progressive.jpg": bytes_of(scene(2, 80, 50), "JPEG", progressive=True),
        "rgb.png": bytes_of(colour, "PNG"),
        "palette.png": bytes_of(colour.quantize(200), "PNG"),
        "alpha.png": bytes_of(see_through, "PNG"),
        "lossy.webp": bytes_of(colour, "WEBP", quality=90),
        "lossless.webp": bytes_of(colour, "WEBP", lossless=True),
        "picture.bmp": bytes_of(colour, "BMP"),
        "picture.gif": bytes_of(colour.quantize(64), "GIF"),
        "cmyk.jpg": bytes_of(colour.convert("CMYK"), "JPEG"),
        "grey.jpg": bytes_of(grey, "JPEG", quality=90),
        "grey.png": bytes_of(grey, "PNG"),
        "16bit.png": bytes_of(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"),
    }
    for tag in range(1, 9):
        found[f"turned {tag}.jpg"] = bytes_of(
            colour, "JPEG", quality=90, exif=exif_orientation(tag)
        )
    for height, width in ((41, 47), (131, 43), (43, 131), (200, 201)):
        found[f"{height}x{width}.jpg"] = bytes_of(scene(height, height, width), "JPEG", quality=90)
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_matches_pillow(recipe: CropResize) -> None:
    source = stored(kinds(), recipe)
    actual, expected = decode(DaliDecoder(source, batch=7)), decode(PillowDecoder(source))
    assert {b.index for b in actual.bad} == {b.index for b in expected.bad}
    difference = np.abs(actual.images.astype(int) - expected.images)
    bad = {b.index for b in actual.bad}
    assert len(bad) <= 4
    for place, picture in enumerate(source.files):
        if place not in bad:
            assert difference[place].mean() < 2, picture.name


def test_most_kinds_are_decoded_by_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the comparison above would be Pillow's with itself."""
    source = stored(kinds(), RECIPES[1])
    decoder = DaliDecoder(source)
    left: list[int] = []
    monkeypatch.setattr(
        decoder, "_decode_with_pillow", lambda part, rows: left.extend(part.index[rows].tolist())
    )
    decode(decoder)
    names = {source.files[i].name for i in left}
    others = {
        *("progressive.jpg", "cmyk.jpg", "alpha.png", "16bit.png"),
        *("lossy.webp", "lossless.webp", "picture.bmp", "picture.gif"),
    }
    assert names == others


def damaged() -> dict[str, bytes]:
    whole = {name: kinds()[name] for name in ("420.jpg", "rgb.png", "lossy.webp")}
    found = {
        "empty.jpg": b"",
        "words.png": b"these are words",
        "signature.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, data in whole.items():
        found[f"half {name}"] = data[: len(data) // 2]
        found[f"header {name}"] = data[:30]
    flipped = bytearray(whole["rgb.png"])
    flipped[len(flipped) // 2] ^= 0xFF
    found["flipped.png"] = bytes(flipped)
    # A frame header alone: whole by its first and last bytes.
    jpeg = whole["420.jpg"]
    found["hollow.jpg"] = jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9"
    return found


def test_damaged_images_are_named_and_others_decoded() -> None:
    good = {f"{i}.jpg": bytes_of(scene(i, 50, 50), "JPEG") for i in range(30)}
    files = [*good.items()]
    for place, item in enumerate(damaged().items()):
        files.insert(3 * place + 1, item)
    source = stored(dict(files), RECIPES[0])
    wanted = [np.arange(first, min(first + 8, len(files))) for first in range(0, len(files), 8)]
    actual, expected = decode(DaliDecoder(source, batch=8), wanted), decode(PillowDecoder(source))
    assert [(b.index, b.name) for b in actual.bad] == [(b.index, b.name) for b in expected.bad]
    assert all(b.reason for b in actual.bad)
    assert len(actual.bad) >= len(damaged()) - 1
    bad = {b.index for b in actual.bad}
    whole = [i for i in range(len(files)) if i not in bad]
    difference = np.abs(actual.images[whole].astype(int) - expected.images[whole])
    assert difference.mean(axis=(1, 2, 3)).max() < 2


def test_a_pipeline_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of headers DALI sees the damage, in two batches in a row."""
    files = {f"{i}.jpg": bytes_of(scene(i, 50, 50), "JPEG") for i in range(24)}
    source = stored(files, RECIPES[0])
    expected = decode(DaliDecoder(source, batch=4))
    bad = (0, 5, 6, 23)
    for place in bad:
        files[f"{place}.jpg"] = b"\xff\xd8\xff" + bytes(40)
    source = stored(files, RECIPES[0])
    monkeypatch.setattr(module, "upright_size", lambda data, channels: (50, 50))
    wanted = [np.arange(first, first + 4) for first in range(0, 24, 4)]
    found = decode(DaliDecoder(source, batch=4), wanted)
    assert tuple(b.index for b in found.bad) == bad
    assert all(b.name == f"{b.index}.jpg" and b.reason for b in found.bad)
    good = [i for i in range(24) if i not in bad]
    np.testing.assert_array_equal(found.images[good], expected.images[good])


def test_a_missing_file_is_a_bad_image() -> None:
    source = stored({"0.jpg": kinds()["444.jpg"]}, RECIPES[0])
    missing = ImageFile("gone.jpg", Path("gone.jpg"), 0, 100)
    source = replace(source, files=[missing, *source.files])
    assert [b.name for b in decode(DaliDecoder(source)).bad] == ["gone.jpg"]


@pytest.fixture
def faces() -> EncodedImageSet:
    files = {f"{i}.jpg": bytes_of(scene(i, 60, 49 + i % 5), "JPEG") for i in range(40)}
    return stored(files, RECIPES[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_resuming_anywhere_gives_the_same_images(faces: EncodedImageSet, threads: int) -> None:
    """Bit for bit, whatever the batch, the cut and the threads."""

    def run(first: int, rows: int, count: int, **options: int) -> NDArray[np.uint8]:
        order = (philox.shuffled_indices(7, first + rows * i, rows, 40) for i in range(count))
        return decode(DaliDecoder(faces, **options), list(order)).images

    whole = run(0, 10, 10, threads=2)
    for cut in (1, 4, 7):
        again = run(cut * 10, 10, 10 - cut, threads=threads)
        np.testing.assert_array_equal(again, whole[cut * 10 :])
    for rows, batch in ((1, 8), (7, 3), (50, 16), (97, 97)):
        other = run(3, rows, -(-97 // rows), threads=threads, batch=batch)[:97]
        np.testing.assert_array_equal(other, whole[3:100])


def test_bounded_prefetch_and_closing(faces: EncodedImageSet) -> None:
    check_bounded_prefetch(DaliDecoder(faces, batch=5), at_most=22)


def test_errors_of_the_indices_are_not_bad_images(faces: EncodedImageSet) -> None:
    def broken() -> Iterator[NDArray[np.int64]]:
        yield np.arange(5)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        list(DaliDecoder(faces).batches(broken()))


def test_choose_decoder(faces: EncodedImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, why = choose_decoder("auto", faces, "cpu", 8)
    assert isinstance(decoder, DaliDecoder)
    assert decoder.name.startswith("DALI 2.")
    assert "CPU" in decoder.name
    assert why
    assert isinstance(choose_decoder("pillow", faces, "cpu", 8)[0], PillowDecoder)
    # As if it were not installed, and as the placeholder packages leave it.
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    decoder, why = choose_decoder("auto", faces, "cpu", 8)
    assert isinstance(decoder, PillowDecoder)
    assert "dali13" in why
    with pytest.raises(InputError, match="DALI is not installed; pip install 'fastinfogan"):
        choose_decoder("dali", faces, "cpu", 8)


def test_a_missing_device_is_an_error_of_one_line(faces: EncodedImageSet) -> None:
    with pytest.raises(InputError, match="DALI does not work on cuda:99"):
        DaliDecoder(faces, "cuda:99")


def test_importing_fastinfogan_does_not_import_dali() -> None:
    code = (
        "import sys, fastinfogan.data.decoders.base, fastinfogan.cli\n"
        "assert 'nvidia' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_broken_dali_is_not_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{i}.png": bytes_of(scene(i, 20, 20), "PNG") for i in range(9)}
    decoder = DaliDecoder(stored(files, RECIPES[0]))

    def broken(*_: object) -> None:
        raise RuntimeError("Critical error:\nout of memory")

    monkeypatch.setattr(module, "_as_array", broken)
    with pytest.raises(InputError, match=r"that Pillow decodes \(out of memory\); take `decoder="):
        decode(decoder)
