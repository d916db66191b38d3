"""Arrays with known factors: dSprites, 3D Shapes and MPI3D, from small files in their layouts."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from fastinfogan import experiments
from fastinfogan.data.formats import factor_arrays
from fastinfogan.data.image_set import CropResize, ImageShape
from fastinfogan.data.transforms import transform_array
from tests.helpers.open_set import encoded, in_memory, message, names

SVHN, CHAIRS, SPRITES, FACES = (
    experiments.get(name) for name in ("svhn", "chairs", "sprites", "faces")
)
RANDOM = np.random.default_rng(0)

SHAPES = RANDOM.integers(0, 2, (6, 64, 64), np.uint8)
CLASSES = np.array([[0, i % 3, i, i, i, i] for i in range(6)])


def dsprites(path: Path) -> None:
    values = np.column_stack([np.ones(6), CLASSES[:, 1] + 1, CLASSES[:, 2:] / 8])
    metadata = np.array({"title": "pickled"}, dtype=object)
    np.savez_compressed(
        path, metadata=metadata, imgs=SHAPES, latents_classes=CLASSES, latents_values=values
    )


def test_dsprites(tmp_path: Path) -> None:
    path = tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    dsprites(path)
    for place in (path, tmp_path):
        source = in_memory(place, SPRITES)
        assert np.array_equal(source.images[..., 0], SHAPES * 255)
        factors = source.factors
        assert factors.names == ("shape", "scale", "rotation", "x", "y")
        assert factors.classes == (3, None, None, None, None)
        assert factors.periods == (None, None, 360, None, None)
        assert np.array_equal(factors.values[:, 0], [0, 1, 2, 0, 1, 2])
        assert np.allclose(factors.values[:, 2], np.rad2deg(np.arange(6) / 8))
    # 64x64 to 32x32 grey, each pixel the mean of four.
    small = in_memory(path, FACES).images
    means = (SHAPES * 255.0).reshape(6, 32, 2, 32, 2).mean((2, 4))
    assert np.array_equal(small[..., 0], np.floor(means + 0.5))
    assert in_memory(path, SVHN).shape == (32, 32, 3)


def test_resizing_preserves_means() -> None:
    images = RANDOM.integers(0, 256, (3, 64, 64, 1), np.uint8)
    for side in (28, 32, 48, 96):
        made = transform_array(images, CropResize(ImageShape(side, side, 1)), Path("a"))
        assert abs(made.mean() - images.mean()) < 0.5
        one = np.full((1, 64, 64, 3), (10, 200, 30), np.uint8)
        same = transform_array(one, CropResize(ImageShape(side, side, 3)), Path("a"))
        assert (same == (10, 200, 30)).all()
        box = Image.fromarray(images[0, ..., 0]).resize((side, side), Image.Resampling.BOX)
        if side == 32:  # Pillow rounds twice
            assert np.abs(made[0, ..., 0].astype(int) - np.asarray(box)).max() <= 1


def test_damaged_dsprites(tmp_path: Path) -> None:
    path = tmp_path / "dsprites.npz"
    dsprites(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "dsprites.npz: not a complete .npz" in message(path, SPRITES)
    damaged = bytearray(whole)
    damaged[whole.index(b"imgs.npy") + 200] ^= 0x10
    path.write_bytes(damaged)
    assert "dsprites.npz: not a complete .npz" in message(path, SPRITES)
    known = {"latents_values": np.ones((6, 6)), "latents_classes": CLASSES}
    np.savez(path, imgs=SHAPES * 2, **known)
    assert "imgs must be 0 or 1, there is 2" in message(path, SPRITES)
    np.savez(path, imgs=SHAPES[:5], **known)
    assert "holds 5 images and factors of 6" in message(path, SPRITES)
    np.savez(path, imgs=np.array([{}] * 6, dtype=object), **known)
    assert "pickled objects, which are refused" in message(path, SPRITES)


COLOURED = RANDOM.integers(0, 256, (8, 64, 64, 3), np.uint8)


def test_shapes3d(tmp_path: Path) -> None:
    labels = RANDOM.random((8, 6))
    labels[:, 4] = np.arange(8) % 4
    path = tmp_path / "3dshapes.h5"
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = COLOURED, labels
    for place in (path, tmp_path):
        source = in_memory(place, SVHN)
        assert source.shape == (32, 32, 3)
        means = COLOURED.astype(float).reshape(8, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.array_equal(source.images, np.floor(means + 0.5))
        assert source.factors.names[4] == "shape"
        assert source.factors.classes[4] == 4
        assert source.factors.periods == (1, 1, 1, None, None, None)
        assert np.array_equal(source.factors.values, labels.astype(np.float32))
    grey = in_memory(path, CHAIRS).images
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in COLOURED]
    assert np.array_equal(grey[..., 0], expected)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_mpi3d(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a grid of eight images; a complete one has a million."""
    monkeypatch.setattr(factor_arrays, "GRIDS", [(2, 1, 2, 1, 1, 1, 2)])
    path = tmp_path / f"mpi3d_toy{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, images=COLOURED)
    else:
        with h5py.File(path, "w") as file:
            file["images"] = COLOURED
    source = in_memory(path, CHAIRS)
    assert source.shape == (64, 64, 1)
    factors = source.factors
    assert factors.names[0] == "object colour"
    assert factors.classes == (2, 1, 2, 1, 1, None, None)
    assert np.array_equal(factors.values[:, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    assert np.array_equal(factors.values[:, 6], [0, 1] * 4)


def test_damaged_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "3dshapes.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=COLOURED, compression="gzip", chunks=(1, 64, 64, 3))
        file["labels"] = np.zeros((7, 6))
    assert "holds 8 images and factors of 7" in message(path, SVHN)
    whole = path.read_bytes()
    for end in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert "3dshapes.h5: not a complete HDF5 file" in message(path, SVHN)
    for place in range(0, len(whole), len(whole) // 60):
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        assert "3dshapes.h5" in message(path, SVHN)
    with h5py.File(path, "w") as file:
        file["pictures"] = COLOURED
    assert "holds pictures; it must hold an array 'images'" in message(path, SVHN)
    monkeypatch.setitem(sys.modules, "h5py", None)
    why = message(path, SVHN)
    assert "needs h5py, which is not installed; pip install 'fastinfogan[hdf5]'" in why


def test_folders_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=COLOURED[:, ::2, ::2].copy())
    assert len(in_memory(tmp_path, SVHN)) == 8
    dsprites(tmp_path / "dsprites.npz")
    assert "holds several image sets, dsprites.npz, mine.npz" in message(tmp_path, SVHN)
    Image.fromarray(COLOURED[0]).save(tmp_path / "one.png")
    assert names(encoded(tmp_path, SVHN)) == ["one.png"]
    reported = message(tmp_path / "nothing", SVHN)
    for each in ("IDX", "train_32x32.mat", "img_align_celeba", "rendered_chairs", ".tar", ".h5"):
        assert each in reported
