"""What images cost once they are decoded: the iteration on a kept set against one in memory.

And the checksum of a whole file against decoding it, and gathering from it against plain reading.
"""

import os
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pairs import Interleaved

from fastinfogan import experiments, shuffle
from fastinfogan.data import Source
from fastinfogan.data import cache as files
from fastinfogan.data.decoder import Decoded, Decoder
from fastinfogan.data.filling import fill_file
from fastinfogan.data.quarantine import Quarantine
from fastinfogan.data.source import Encoded, ImageShape, Picture, Recipe
from fastinfogan.engine import RunDirectory, Trainer, TrainingSettings

COUNT, BATCH, ROUNDS = 200_000, 128, 15  # as CelebA's, at 32x32
DATA_AIM, RATE_AIM = 1.02, 0.80


class MadeUp(Decoder):
    """Gives images of a seed, as fast as they can be copied."""

    name = "made up"

    def __init__(self, source: Encoded, images: NDArray[np.uint8]) -> None:
        super().__init__(source)
        self.images = images

    def batches(self, wanted: Iterable[NDArray[np.int64]]) -> Generator[Decoded]:
        for index in wanted:
            yield Decoded(index, self.images[index])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Generator[MadeUp]:
    """A set whose file is whole."""
    folder = tmp_path_factory.mktemp("kept")
    shape = ImageShape(32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, (COUNT, *shape), dtype=np.uint8)
    file = folder / "all"
    file.touch()
    pictures = [Picture(str(i), file, 0, 0) for i in range(COUNT)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        decoder = MadeUp(Encoded("made up", pictures, Recipe(shape)), images)
        fill_file(decoder, Quarantine("made up", COUNT, "fail"), print)
        yield decoder


def trainer(path: Path, decoder: MadeUp, source: Source | Decoder, cache: Any = "auto") -> Trainer:  # noqa: ANN401
    settings = TrainingSettings(
        seed=1,
        batch_size=BATCH,
        precision="fp32",
        augmentation="none",
        information="maximise",
        data=None,
        data_fingerprint=source.fingerprint,
    )
    run = RunDirectory.create(path, experiments.get("celeba"), settings)
    return Trainer(run, source, torch.device("cpu"), cache=cache)


def told(report: list[str], name: str, ratios: list[float], aim: str) -> None:
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    report.append(f"{name}: {middle:.3f}, quartiles {low:.3f} to {high:.3f}; the aim is {aim}")


@pytest.mark.parametrize("cache", ["host", "file"])
@pytest.mark.benchmark(group="cache")
def test_an_iteration_on_a_kept_set(
    benchmark: Any,  # noqa: ANN401
    report: list[str],
    tmp_path: Path,
    kept: MadeUp,
    cache: str,
) -> None:
    """Both sides draw the same real images; the whole iteration, then the drawing alone."""
    ours = trainer(tmp_path / "ours", kept, kept, cache)
    peer = trainer(tmp_path / "peer", kept, Source("memory", kept.images))
    step = {"ours": 0, "peer": 0}

    def one(who: str, each: Trainer) -> Callable[[], None]:
        def run() -> None:
            assert each.feed.prepare(step[who], 1)
            each.runner.run(step[who], 1)
            step[who] += 1

        return run

    pair = Interleaved(one("ours", ours), one("peer", peer))
    for _ in range(2):
        pair()
    assert torch.equal(ours.iteration.real, peer.iteration.real)
    pair.times.clear()
    benchmark.pedantic(pair, rounds=ROUNDS)
    told(report, f"an iteration on a set kept in {cache}, of one in memory", pair.times.ratios,
         f"{DATA_AIM} or less")  # fmt: skip


@pytest.mark.benchmark(group="cache")
def test_gathering_from_the_file(benchmark: Any, report: list[str], kept: MadeUp) -> None:  # noqa: ANN401
    """An epoch's batches from the mapping, as bytes a second, of a plain read of the same file."""
    key = files.Key.of(kept)
    whole = files.open_whole(key, print)
    assert whole is not None
    images = torch.from_numpy(whole.images)
    orders = [torch.from_numpy(shuffle.indices(1, s * BATCH, BATCH, COUNT)) for s in range(400)]
    size = 400 * BATCH * images[0].numel()
    out = torch.empty((BATCH, *images.shape[1:]), dtype=torch.uint8)
    block = bytearray(BATCH * images[0].numel())
    path = files.folder() / f"{key.hash}.u8"

    def gather() -> None:
        for order in orders:
            torch.index_select(images, 0, order, out=out)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            for _ in orders:
                file.readinto(block)

    pair = Interleaved(read, gather)  # the ratio of rates is that of times, the other way round
    for _ in range(3):
        pair()
    pair.times.clear()
    benchmark.pedantic(pair, rounds=ROUNDS)
    told(report, f"rate of gathering {size >> 20} MiB from the file, of a plain read's",
         pair.times.ratios, f"{RATE_AIM} or more")  # fmt: skip


def test_opening_a_whole_file(report: list[str], kept: MadeUp) -> None:
    key = files.Key.of(kept)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        assert files.open_whole(key, print) is not None
        seconds.append(time.perf_counter() - begun)
    size = os.stat(files.folder() / f"{key.hash}.u8").st_size
    report.append(
        f"opening a whole file of {size >> 20} MiB, all checksums: {np.median(seconds):.2f} s, "
        f"{COUNT / np.median(seconds):,.0f} images/s"
    )
