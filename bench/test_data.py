"""Decoding, and the cost of images once they are decoded.

Decoding is compared with a bare DALI pipeline and with Pillow on the same JPEGs; the iteration on a
cached set with one in memory; gathering from the cache file with plain reading of it.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.accuracy import MismatchError
from bench.baselines.decoding import bare_pipeline
from bench.cases import Case
from bench.conftest import Measured
from bench.timing.clock import Run
from bench.training import train_config
from fastinfogan import experiments
from fastinfogan.data import ImageSet
from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.fill import fill_cache_file
from fastinfogan.data.cache.storage import CacheKey, cache_folder, open_complete
from fastinfogan.data.decoders.base import DecodedBatch, Decoder
from fastinfogan.data.decoders.dali import DaliDecoder
from fastinfogan.data.decoders.pillow import PillowDecoder
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageFile, ImageShape
from fastinfogan.engine import RunDirectory, Trainer, choose_precision
from fastinfogan_kernels import philox

PHOTOGRAPHS, HEIGHT, WIDTH, SIDE = 1024, 218, 178, 32  # of CelebA's size
CACHED, BATCH = 100_000, 128
THREADS = 2
DECODERS_DIFFER = 2.0
"""Of 255, the mean difference of two correct decoders, which round in different places."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> EncodedImageSet:
    """Write JPEGs of smooth random colours with texture."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(1)
    pictures = []
    for number in range(PHOTOGRAPHS):
        coarse = Image.fromarray(random.integers(0, 256, (7, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        texture = random.integers(-12, 13, (HEIGHT, WIDTH, 1), dtype=np.int16)
        file = folder / f"{number:05}.jpg"
        Image.fromarray((smooth + texture).clip(0, 255).astype(np.uint8)).save(file, quality=85)
        pictures.append(ImageFile(file.name, file, 0, file.stat().st_size))
    return EncodedImageSet("photographs", pictures, CropResize(ImageShape(SIDE, SIDE, 3)))


def epoch(count: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of all images once, in the order of a run; whole batches."""
    for first in range(0, count - BATCH + 1, BATCH):
        yield philox.shuffled_indices(1, first, BATCH, count)


def host_case(
    name: str,
    run: Run,
    baselines: Mapping[str, Run],
    check: Callable[[], None],
    **more: Any,  # noqa: ANN401 - attributes of Case
) -> Case:
    """Make a case that is timed by the host's clock."""
    return Case("data", name, run, baselines, check, timed="host", **more)


def decoding(decoder: Decoder) -> Callable[[], NDArray[np.uint8]]:
    """Make a run that decodes one epoch; it returns the last batch."""

    def run() -> NDArray[np.uint8]:
        for decoded in decoder.batches(epoch(PHOTOGRAPHS)):
            if decoded.bad:
                raise MismatchError(f"pictures that cannot be decoded: {decoded.bad}")
        return decoded.images

    return run


def test_decoding(photographs: EncodedImageSet, measured: Measured) -> None:
    """An epoch of CelebA's pictures, cropped and resized to 32x32."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    dali = decoding(DaliDecoder(photographs, batch=BATCH, threads=THREADS))
    pillow = decoding(PillowDecoder(photographs))
    bare = bare_pipeline(
        [picture.path for picture in photographs.files], (HEIGHT, WIDTH), SIDE, BATCH, THREADS
    )

    def check() -> None:
        bare()  # in its own order: its images are not compared
        found, expected = (run().astype(np.float64) for run in (dali, pillow))
        off = np.abs(found - expected).mean()
        if not off <= DECODERS_DIFFER:
            raise MismatchError(f"DALI's images differ from Pillow's by {off:.2f} of 255")

    name = f"decoding {PHOTOGRAPHS} JPEGs {WIDTH}x{HEIGHT} by DALI, {THREADS} threads"
    baselines: dict[str, Run] = {"DALI alone": bare, "our Pillow decoder": pillow}
    more = {"images": PHOTOGRAPHS, "aims": {"DALI alone": 1.10}}
    measured(host_case(name, dali, baselines, check, more=more), 9.0)


class MadeUp(Decoder):
    """A decoder of random images, as fast as they can be copied."""

    name = "made up"

    def __init__(self, source: EncodedImageSet, images: NDArray[np.uint8]) -> None:
        super().__init__(source)
        self.images = images

    def batches(self, indices: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        for index in indices:
            yield DecodedBatch(index, self.images[index])


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Generator[MadeUp]:
    """Make a set whose cache file is complete."""
    folder = tmp_path_factory.mktemp("cached")
    shape = ImageShape(SIDE, SIDE, 3)
    images = np.random.default_rng(0).integers(0, 256, (CACHED, *shape), dtype=np.uint8)
    file = folder / "all"
    file.touch()
    pictures = [ImageFile(str(i), file, 0, 0) for i in range(CACHED)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        decoder = MadeUp(EncodedImageSet("made up", pictures, CropResize(shape)), images)
        fill_cache_file(decoder, BadImages("made up", CACHED, "fail"), print)
        yield decoder


def trainer(path: Path, source: ImageSet | Decoder, cache: Any = "auto") -> Trainer:  # noqa: ANN401
    """Make a run of celeba on the CPU."""
    e = replace(experiments.get("celeba"), batch_size=BATCH)
    precision = choose_precision("auto", torch.device("cpu"))[0].name
    config = train_config(e, precision, data_fingerprint=source.fingerprint)
    run = RunDirectory.create(path, e, config)
    return Trainer(run, source, torch.device("cpu"), cache=cache)


@pytest.mark.parametrize("cache", ["host", "file"])
def test_an_iteration_on_a_cached_set(
    tmp_path: Path, cached: MadeUp, cache: str, measured: Measured
) -> None:
    """Both trainers draw the same real images; whole iterations."""
    trainers = {
        "cached": trainer(tmp_path / "cached", cached, cache),
        "in memory": trainer(tmp_path / "memory", ImageSet("memory", cached.images)),
    }
    step = dict.fromkeys(trainers, 0)

    def run(which: str) -> None:
        if not trainers[which].loader.prepare(step[which], 1):
            raise MismatchError(f"{which} has no more images")
        trainers[which].execution.run(step[which], 1)
        step[which] += 1

    def check() -> None:
        for which in trainers:
            run(which)
        drawn = [each.iteration.real for each in trainers.values()]
        if not torch.equal(drawn[0], drawn[1]):
            raise MismatchError("the cached set yields other images than the one in memory")

    name = f"an iteration of celeba on a set cached in {cache}"
    baselines = {"in memory": partial(run, "in memory")}
    more = {"experiment": "celeba", "batch": BATCH, "more": {"aims": {"in memory": 1.02}}}
    measured(host_case(name, partial(run, "cached"), baselines, check, **more), 7.0)


def cache_file(cached: MadeUp) -> Path:
    return cache_folder() / f"{CacheKey.of(cached).hash}.u8"


def reading(path: Path, size: int) -> Run:
    """Read a file plainly, so many bytes at once."""
    block = bytearray(size)

    def run() -> None:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    return run


@pytest.mark.short
def test_gathering_from_the_file(cached: MadeUp, measured: Measured) -> None:
    """Gather an epoch's batches from the mapped file; read the file plainly."""
    whole = open_complete(CacheKey.of(cached), print)
    assert whole is not None
    images = torch.from_numpy(whole.images)
    orders = [torch.from_numpy(index) for index in epoch(CACHED)]
    size = BATCH * images[0].numel()
    out = torch.empty((BATCH, *images.shape[1:]), dtype=torch.uint8)

    def gather() -> None:
        for order in orders:
            torch.index_select(images, 0, order, out=out)

    def check() -> None:
        gather()
        if not np.array_equal(out.numpy(), cached.images[orders[-1].numpy()]):
            raise MismatchError("the file holds other images")

    name = f"gathering {len(orders) * size >> 20} MiB from the cache file"
    baselines = {"plain reading": reading(cache_file(cached), size)}
    more = {"bytes": len(orders) * size, "more": {"aims": {"plain reading": 1.25}}}
    measured(host_case(name, gather, baselines, check, **more), 3.0)


def test_opening_a_complete_file(cached: MadeUp, measured: Measured) -> None:
    """Check all checksums; against reading the file once."""
    key, path = CacheKey.of(cached), cache_file(cached)
    size = path.stat().st_size

    def check() -> None:
        whole = open_complete(key, print)
        if whole is None or len(whole.images) != CACHED:
            raise MismatchError("the cache file is not complete")

    name = f"opening a cache file of {size >> 20} MiB, all checksums"
    baselines = {"plain reading": reading(path, 1 << 20)}
    run = partial(open_complete, key, print)
    measured(host_case(name, run, baselines, check, bytes=size), 3.0)
