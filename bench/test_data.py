"""Decoding through our decoder against a bare DALI pipeline, and against Pillow, on the same JPEGs.

The bare pipeline reads the files itself, in their order, checks nothing and names nothing.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pairs import Interleaved
from PIL import Image

from fastinfogan import shuffle
from fastinfogan.data.dali import DaliDecoder
from fastinfogan.data.decoder import Decoder
from fastinfogan.data.pillow import PillowDecoder
from fastinfogan.data.source import Encoded, ImageShape, Picture, Recipe

dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
fn, types = pytest.importorskip("nvidia.dali.fn"), pytest.importorskip("nvidia.dali.types")

COUNT, BATCH, THREADS, DEPTH, ROUNDS = 1024, 128, 2, 2, 9
HEIGHT, WIDTH = 218, 178  # as CelebA's
AIM = 1.10  # of a bare pipeline's time


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """JPEGs of smooth random colours with texture."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(1)
    pictures = []
    for number in range(COUNT):
        coarse = Image.fromarray(random.integers(0, 256, (7, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        texture = random.integers(-12, 13, (HEIGHT, WIDTH, 1), dtype=np.int16)
        file = folder / f"{number:05}.jpg"
        Image.fromarray((smooth + texture).clip(0, 255).astype(np.uint8)).save(file, quality=85)
        pictures.append(Picture(file.name, file, 0, file.stat().st_size))
    return Encoded("photographs", pictures, Recipe(ImageShape(32, 32, 3)))


def epoch(count: int) -> Iterator[NDArray[np.int64]]:
    """All pictures once, in the order of a run; whole batches."""
    for first in range(0, count - BATCH + 1, BATCH):
        yield shuffle.indices(1, first, BATCH, count)


def decoding(decoder: Decoder) -> Callable[[], NDArray[np.uint8]]:
    """One epoch; its last batch."""

    def run() -> NDArray[np.uint8]:
        for decoded in decoder.batches(epoch(COUNT)):
            assert not decoded.bad
        return decoded.images

    return run


class Bare:
    """The same crop and resize, with DALI's own reader; built once and warm."""

    def __init__(self, files: list[Path]) -> None:
        self._pipeline = dali.Pipeline(BATCH, THREADS, None, prefetch_queue_depth=DEPTH)
        top = (HEIGHT - WIDTH) // 2
        with self._pipeline:
            encoded, _ = fn.readers.file(files=[str(file) for file in files])
            pictures = fn.decoders.image_slice(
                encoded, start=[top, 0], shape=[WIDTH, WIDTH], axis_names="HW", device="cpu"
            )
            images = fn.resize(
                pictures, size=(32, 32), interp_type=types.INTERP_LANCZOS3, antialias=True
            )
            self._pipeline.set_outputs(images)
        self._pipeline.build()
        self._fresh = True

    def __call__(self) -> NDArray[np.uint8]:
        """As many batches as an epoch has; the last one.

        By hand: `run` would leave batches behind that are decoded in the other side's time.
        """
        batches = COUNT // BATCH
        for _ in range(1 if self._fresh else DEPTH):  # the first one schedules DEPTH
            self._pipeline.schedule_run()
        self._fresh = False
        for number in range(batches):
            images = np.array(self._pipeline.share_outputs()[0].as_array())
            self._pipeline.release_outputs()
            if number < batches - DEPTH:
                self._pipeline.schedule_run()
        return images


@pytest.mark.parametrize("peer", ["a bare DALI pipeline", "our Pillow decoder"])
@pytest.mark.benchmark(group="decoding")
def test_decoding(benchmark: Any, report: list[str], photographs: Encoded, peer: str) -> None:  # noqa: ANN401
    ours = decoding(DaliDecoder(photographs, batch=BATCH, threads=THREADS))
    theirs: Callable[[], NDArray[np.uint8]] = decoding(PillowDecoder(photographs))
    if "bare" in peer:
        theirs = Bare([picture.file for picture in photographs.pictures])
    assert ours().shape == theirs().shape == (BATCH, 32, 32, 3)
    pair = Interleaved(ours, theirs)
    benchmark.pedantic(pair, rounds=ROUNDS)
    low, high = pair.times.quartiles
    each = COUNT // BATCH * BATCH / np.median(pair.times.ours)
    benchmark.extra_info |= {"ratio": pair.times.ratio, "quartiles": [low, high], "per s": each}
    missed = f"; the aim is {AIM}" if "bare" in peer and pair.times.ratio > AIM else ""
    report.append(
        f"decoding by DALI on the CPU, {THREADS} threads, {each:,.0f} images/s: "
        f"{pair.times.ratio:.3f} of the time of {peer}, "
        f"quartiles {low:.3f} to {high:.3f}{missed}"
    )
