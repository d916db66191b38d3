"""IDX, SVHN, .npz and folders, from small files in exactly their layout, and damaged ones."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fastinfogan import experiments
from fastinfogan.data import open_image_set
from fastinfogan.errors import InputError
from tests.helpers.open_set import decoded, encoded, in_memory, message

MNIST, SVHN = experiments.get("mnist"), experiments.get("svhn")
RANDOM = np.random.default_rng(0)
DIGITS = RANDOM.integers(0, 256, (12, 28, 28), np.uint8)
LABELS = RANDOM.integers(0, 10, 12, np.uint8)
COLOURS = RANDOM.integers(0, 256, (12, 32, 32, 3), np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def usual_four(folder: Path, suffix: str = "") -> None:
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if suffix else bytes
    for part, count in (("train", 12), ("t10k", 5)):
        images = idx_bytes(DIGITS[:count])
        labels = idx_bytes(LABELS[:count])
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(images))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(labels))


def one_line_or_none(path: Path, experiment: experiments.Experiment) -> None:
    """A flipped bit may have no effect, or be an error of one line."""
    reported = ""
    try:
        open_image_set(path, experiment)
    except InputError as error:
        reported = str(error)
    assert "\n" not in reported


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path: Path, suffix: str) -> None:
    usual_four(tmp_path / "mnist", suffix)
    source = open_image_set(tmp_path / "mnist", MNIST)
    assert np.array_equal(source.images[..., 0], DIGITS)
    assert np.array_equal(source.labels, LABELS)
    assert np.array_equal(source.test.images[..., 0], DIGITS[:5])
    assert np.array_equal(source.test.labels, LABELS[:5])


def test_idx_one_file_and_its_labels(tmp_path: Path) -> None:
    usual_four(tmp_path)
    source = open_image_set(tmp_path / "train-images-idx3-ubyte", MNIST)
    assert np.array_equal(source.labels, LABELS)
    assert source.test is None


def test_idx_of_any_name_without_labels(tmp_path: Path) -> None:
    """A gzipped copy beside the images is not a file of labels."""
    whole = gzip.compress(idx_bytes(DIGITS))
    for name, content in (("digits", whole), ("a.bin", idx_bytes(DIGITS)), ("a.bin.gz", whole)):
        (tmp_path / name).write_bytes(content)
    for name in ("digits", "a.bin", "a.bin.gz"):
        source = open_image_set(tmp_path / name, MNIST)
        assert np.array_equal(source.images[..., 0], DIGITS)
        assert source.labels is None
    for content in (gzip.compress(b"words"), whole[:12]):
        (tmp_path / "digits").write_bytes(content)
        assert "of no known format" in message(tmp_path / "digits")


@pytest.mark.parametrize("part", ["train", "extra"])
def test_svhn(part: str, tmp_path: Path) -> None:
    labels = np.array([10, 1, 2, 3, 10, 5, 6, 7, 8, 9, 1, 2], np.uint8)[:, None]
    for each, count in ((part, 12), ("test", 4)):
        arrays = {"X": COLOURS[:count].transpose(1, 2, 3, 0), "y": labels[:count]}
        savemat(tmp_path / f"{each}_32x32.mat", arrays)
    for path in (tmp_path, tmp_path / f"{part}_32x32.mat"):
        source = open_image_set(path, SVHN)
        assert np.array_equal(source.images, COLOURS)
        assert np.array_equal(source.labels, labels[:, 0] % 10)
        assert len(source.test) == 4
    assert in_memory(tmp_path, MNIST).shape == (28, 28, 1)


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
def test_npz(tmp_path: Path, names: tuple[str, ...]) -> None:
    file = tmp_path / "set.npz"
    np.savez(file, **dict(zip(names, (DIGITS, LABELS, DIGITS[:3], LABELS[:3]), strict=True)))
    source = open_image_set(file, MNIST)
    assert np.array_equal(source.images[..., 0], DIGITS)
    assert np.array_equal(source.labels, LABELS)
    assert np.array_equal(source.test.labels, LABELS[:3])


def test_npz_with_one_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", COLOURS)
    assert np.array_equal(open_image_set(tmp_path / "set.npz", SVHN).images, COLOURS)


def test_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(COLOURS[i]).save(tmp_path / f"{i % 2}" / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert np.array_equal(decoded(encoded(tmp_path, SVHN)), COLOURS[[0, 2, 1]])


def test_folder_crops_resizes_and_greys(tmp_path: Path) -> None:
    wide = np.zeros((56, 112, 3), np.uint8)
    wide[:, 28:84] = (255, 0, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = decoded(encoded(tmp_path, MNIST))[0]
    assert image.shape == (28, 28, 1)
    assert (image == 76).all()  # the luminance of red; the black sides are cropped away


def test_the_embedded_digits_are_5000_images_of_mnist_sorted_by_class() -> None:
    source = open_image_set(None, MNIST)
    assert source.fingerprint == {
        "images": "5000",
        "shape": "28x28 grey",
        "sha256 of pixels": "191567b2d37ba2b6d042fd0ee8525838d3077a7f9266f37ead5db6bf8d237ebb",
    }
    assert np.array_equal(source.labels, np.repeat(np.arange(10), 500))


IDX = idx_bytes(DIGITS)
BROKEN = bytearray(gzip.compress(IDX))
BROKEN[len(BROKEN) // 2] ^= 0xFF


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0\0\x0d\x03" + IDX[4:], "00 00 08 03, this one with 00 00 0d 03"),
        (b"", "this one with nothing"),
        (IDX[:9], "truncated in its header, 9 bytes of 16"),
        (IDX[:-7], f"truncated, {len(IDX) - 7} bytes where its header"),
        (IDX + b"x", f"too long, {len(IDX) + 1} bytes"),
        (gzip.compress(IDX)[:-20], "cannot be read"),
        (bytes(BROKEN), "train-images-idx3-ubyte: cannot be read"),
        (idx_bytes(DIGITS[:0]), "holds no images"),
        (idx_bytes(DIGITS[:, 1:]), "28x28 grey images are needed, these are 27x28 grey"),
        (idx_bytes(DIGITS[:3]), "holds 3 images and 12 labels"),
    ],
)
def test_damaged_idx(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS))
    assert says in message(tmp_path / "train-images-idx3-ubyte")


def test_damaged_svhn(tmp_path: Path) -> None:
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": COLOURS.transpose(1, 2, 3, 0), "y": np.ones((12, 1))})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "train_32x32.mat: not a complete MATLAB 5 file" in message(path, SVHN)
    path.write_bytes(b"not MATLAB")
    assert "not a complete MATLAB 5 file" in message(path, SVHN)
    savemat(path, {"Y": np.ones(3)})
    assert "holds no array X" in message(path, SVHN)
    savemat(path, {"X": np.ones((3, 3), np.uint8)})
    assert "X must be (height, width, channels, N), it is (3, 3)" in message(path, SVHN)
    savemat(path, {"X": COLOURS.transpose(1, 2, 3, 0).astype(np.float64)})
    assert "must be uint8 in 0..255, these are float64" in message(path, SVHN)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": DIGITS / np.float32(255)}, "must be uint8 in 0..255, these are float32"),
        ({"images": np.array([{}], dtype=object)}, "not a complete .npz of plain arrays"),
        ({"a": DIGITS, "b": DIGITS}, "holds a, b; images must be named 'images'"),
        ({"images": DIGITS[0]}, "these are (28, 28)"),
        ({"images": COLOURS}, "28x28 grey images are needed, these are 32x32 colour"),
        ({"images": np.zeros((3, 28, 28, 4), np.uint8)}, "these are 28x28 4-channel"),
    ],
)
def test_wrong_npz(arrays: dict[str, np.ndarray], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    assert says in message(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.arange(12) - 1, "integers in [0, 2^63)"),
        (np.full(12, np.nan), "integers in [0, 2^63)"),
        (np.full(12, np.inf), "integers in [0, 2^63)"),
        (np.full(12, 0.5), "integers in [0, 2^63)"),
        (np.full(12, 2**64 - 1, np.uint64), "integers in [0, 2^63)"),
        (np.array(["four"] * 12), "these are <U4"),
        (np.eye(12), "one number per image, these are (12, 12)"),
        (np.arange(11), "holds 12 images and 11 labels"),
        (np.int64(3), "one number per image, these are ()"),
    ],
)
def test_labels_are_checked_when_they_are_read(
    labels: np.ndarray, says: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "set.npz", images=DIGITS, labels=labels)
    assert says in message(tmp_path / "set.npz")
    train = {"images": DIGITS, "labels": LABELS}
    np.savez(tmp_path / "set.npz", **train, test_images=DIGITS, test_labels=labels)
    assert says in message(tmp_path / "set.npz")


def test_labels_may_be_large_integers_of_any_dtype(tmp_path: Path) -> None:
    for labels in (LABELS.astype(np.float64), LABELS[:, None], LABELS * np.int64(10**15)):
        np.savez(tmp_path / "set.npz", images=DIGITS, labels=labels)
        found = open_image_set(tmp_path / "set.npz", MNIST).labels
        assert found.dtype == np.int64
        assert np.array_equal(found, labels.reshape(-1))


def test_damaged_npz_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.save(tmp_path / "set.npy", DIGITS)
    (tmp_path / "set.npy").rename(path)
    assert "not a complete .npz" in message(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", "words")
    assert "holds nothing" in message(path)
    np.savez_compressed(path, images=DIGITS[:2], labels=LABELS[:2])
    whole = path.read_bytes()
    places = [*range(0, 200, 3), *range(len(whole) - 330, len(whole), 3)]
    for place in places:
        for bit in (0x01, 0x08, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            one_line_or_none(path, MNIST)


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_mat_is_an_error_of_one_line(compressed: bool, tmp_path: Path) -> None:
    """Whatever scipy raises becomes one line; some damage would crash it."""
    path = tmp_path / "train_32x32.mat"
    arrays = {"X": COLOURS[:2].transpose(1, 2, 3, 0), "y": np.ones((2, 1), np.uint8)}
    savemat(path, arrays, do_compression=compressed)
    whole = path.read_bytes()
    for end in [*range(0, 200, 5), *range(200, len(whole), len(whole) // 30)]:
        path.write_bytes(whole[:end])
        assert "train_32x32.mat: " in message(path, SVHN)
    for place in [*range(116, 200), *range(len(whole) - 80, len(whole))]:
        for bit in (0x04, 0x08, 0x10, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            one_line_or_none(path, SVHN)


def test_unknown_paths(tmp_path: Path) -> None:
    assert "no such file or folder" in message(tmp_path / "absent")
    (tmp_path / "words.txt").write_text("words")
    assert "of no known format" in message(tmp_path / "words.txt")
    (tmp_path / "words.txt").unlink()
    assert "of no known format, without images" in message(tmp_path, SVHN)
    assert "svhn has no embedded images; give the path of" in message(None, SVHN)
