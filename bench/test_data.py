"""Decoding, and what images cost once they are decoded.

Decoding is set against a bare DALI pipeline and against Pillow on the same JPEGs; the iteration on
a kept set against one in memory; gathering from the kept file against plain reading of it.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.accuracy import MismatchError
from bench.baselines.decoding import BarePipeline
from bench.cases import Case, Planned
from bench.conftest import Measured
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
from fastinfogan_kernels import shuffle

PHOTOGRAPHS, HEIGHT, WIDTH, SIDE = 1024, 218, 178, 32  # of CelebA's size
KEPT, BATCH = 100_000, 128
THREADS = 2
DECODERS_DIFFER = 2.0
"""Of 255, the mean difference of two decoders that agree: each rounds in its own places."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> EncodedImageSet:
    """JPEGs of smooth random colours with texture."""
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
    """All pictures once, in the order of a run; whole batches."""
    for first in range(0, count - BATCH + 1, BATCH):
        yield shuffle.indices(1, first, BATCH, count)


def decoding(decoder: Decoder) -> Callable[[], NDArray[np.uint8]]:
    """One epoch; its last batch."""

    def run() -> NDArray[np.uint8]:
        for decoded in decoder.batches(epoch(PHOTOGRAPHS)):
            if decoded.bad:
                raise MismatchError(f"pictures that cannot be decoded: {decoded.bad}")
        return decoded.images

    return run


def test_decoding(photographs: EncodedImageSet, measured: Measured) -> None:
    """An epoch of CelebA's pictures, cropped and resized to 32x32."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    ours = decoding(DaliDecoder(photographs, batch=BATCH, threads=THREADS))
    pillow = decoding(PillowDecoder(photographs))
    bare = BarePipeline(
        [picture.path for picture in photographs.pictures], (HEIGHT, WIDTH), SIDE, BATCH, THREADS
    )

    def check() -> None:
        bare.epoch()  # in its own order: its images are not compared
        found, expected = (run().astype(np.float64) for run in (ours, pillow))
        off = np.abs(found - expected).mean()
        if not off <= DECODERS_DIFFER:
            raise MismatchError(f"DALI's images differ from Pillow's by {off:.2f} of 255")

    name = f"decoding {PHOTOGRAPHS} JPEGs {WIDTH}x{HEIGHT} by DALI, {THREADS} threads"
    case = Case(
        "data", name, ours, {"DALI alone": bare.epoch, "our Pillow decoder": pillow}, check,
        timed="host", more={"images": PHOTOGRAPHS, "aims": {"DALI alone": 1.10}},
    )  # fmt: skip
    measured(Planned("data", name, lambda _: case, budget=9.0))


class MadeUp(Decoder):
    """Gives images of a seed, as fast as they can be copied."""

    name = "made up"

    def __init__(self, source: EncodedImageSet, images: NDArray[np.uint8]) -> None:
        super().__init__(source)
        self.images = images

    def batches(self, wanted: Iterable[NDArray[np.int64]]) -> Generator[DecodedBatch]:
        for index in wanted:
            yield DecodedBatch(index, self.images[index])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Generator[MadeUp]:
    """A set whose file is whole."""
    folder = tmp_path_factory.mktemp("kept")
    shape = ImageShape(SIDE, SIDE, 3)
    images = np.random.default_rng(0).integers(0, 256, (KEPT, *shape), dtype=np.uint8)
    file = folder / "all"
    file.touch()
    pictures = [ImageFile(str(i), file, 0, 0) for i in range(KEPT)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        decoder = MadeUp(EncodedImageSet("made up", pictures, CropResize(shape)), images)
        fill_cache_file(decoder, BadImages("made up", KEPT, "fail"), print)
        yield decoder


def trainer(path: Path, source: ImageSet | Decoder, cache: Any = "auto") -> Trainer:  # noqa: ANN401
    """A run of celeba on the CPU."""
    e = replace(experiments.get("celeba"), batch_size=BATCH)
    precision = choose_precision("auto", torch.device("cpu"))[0].name
    config = train_config(e, precision, data_fingerprint=source.fingerprint)
    run = RunDirectory.create(path, e, config)
    return Trainer(run, source, torch.device("cpu"), cache=cache)


@pytest.mark.parametrize("cache", ["host", "file"])
def test_an_iteration_on_a_kept_set(
    tmp_path: Path, kept: MadeUp, cache: str, measured: Measured
) -> None:
    """Both sides draw the same real images; whole iterations."""
    sides = {
        "ours": trainer(tmp_path / "ours", kept, cache),
        "in memory": trainer(tmp_path / "peer", ImageSet("memory", kept.images)),
    }
    step = dict.fromkeys(sides, 0)

    def run(who: str) -> None:
        if not sides[who].loader.prepare(step[who], 1):
            raise MismatchError(f"{who} has no more images")
        sides[who].execution.run(step[who], 1)
        step[who] += 1

    def check() -> None:
        for who in sides:
            run(who)
        drawn = [each.iteration.real for each in sides.values()]
        if not torch.equal(drawn[0], drawn[1]):
            raise MismatchError("the kept set gives other images than the one in memory")

    name = f"an iteration of celeba on a set kept in {cache}"
    case = Case(
        "data", name, lambda: run("ours"), {"in memory": lambda: run("in memory")}, check,
        "celeba", batch=BATCH, timed="host",  more={"aims": {"in memory": 1.02}},
    )  # fmt: skip
    measured(Planned("data", name, lambda _: case, budget=7.0))


@pytest.mark.short
def test_gathering_from_the_file(kept: MadeUp, measured: Measured) -> None:
    """An epoch's batches from the mapping; a plain read of as much of the same file."""
    key = CacheKey.of(kept)
    whole = open_complete(key, print)
    assert whole is not None
    images = torch.from_numpy(whole.images)
    batches = KEPT // BATCH
    orders = [torch.from_numpy(shuffle.indices(1, s * BATCH, BATCH, KEPT)) for s in range(batches)]
    size = BATCH * images[0].numel()
    out = torch.empty((BATCH, *images.shape[1:]), dtype=torch.uint8)
    block = bytearray(size)
    path = cache_folder() / f"{key.hash}.u8"

    def gather() -> None:
        for order in orders:
            torch.index_select(images, 0, order, out=out)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            for _ in orders:
                file.readinto(block)

    def check() -> None:
        gather()
        read()
        if not np.array_equal(out.numpy(), kept.images[orders[-1].numpy()]):
            raise MismatchError("the file holds other images")

    name = f"gathering {batches * size >> 20} MiB from the kept file"
    case = Case(
        "data", name, gather, {"plain reading": read}, check,
        timed="host", bytes=batches * size, more={"aims": {"plain reading": 1.25}},
    )  # fmt: skip
    measured(Planned("data", name, lambda _: case, budget=3.0))


def test_opening_a_whole_file(kept: MadeUp, measured: Measured) -> None:
    """All checksums; against reading the file once."""
    key = CacheKey.of(kept)
    path = cache_folder() / f"{key.hash}.u8"
    block = bytearray(1 << 20)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    def check() -> None:
        read()
        whole = open_complete(key, print)
        if whole is None or len(whole.images) != KEPT:
            raise MismatchError("the kept file is not whole")

    size = path.stat().st_size
    name = f"opening a kept file of {size >> 20} MiB, all checksums"
    case = Case(
        "data", name, lambda: open_complete(key, print), {"plain reading": read}, check,
        timed="host", bytes=size,
    )  # fmt: skip
    measured(Planned("data", name, lambda _: case, budget=3.0))
