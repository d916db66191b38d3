"""Loaders: images decoded during training give the same run as images in memory."""

import errno
import os
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastinfogan.data import ImageSet
from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.fill import CacheFiller, Sampler
from fastinfogan.data.cache.partial_file import FileCache
from fastinfogan.data.cache.policy import CacheName
from fastinfogan.data.cache.storage import CacheKey, cache_folder, open_complete
from fastinfogan.data.loader import StagedLoader
from fastinfogan.engine import RunDirectory, Schedule, Trainer
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan_kernels import philox
from tests.helpers.image_files import RawDecoder, encoded
from tests.helpers.training import digest, made_up_images, train_config

CPU = torch.device("cpu")
EPOCH = 8  # iterations of 8 of 64 images


def begin(tiny: Experiment, path: str, images: Any, **more: Any) -> Trainer:  # noqa: ANN401
    config = replace(train_config(made_up_images(tiny)), data_fingerprint=images.fingerprint)
    return Trainer(RunDirectory.create(Path(path), tiny, config), images, CPU, **more)


def digest_in_memory(tiny: Experiment, source: ImageSet) -> str:
    """The state after a run with images in memory."""
    whole = begin(tiny, "memory", source)
    whole.train(2 * EPOCH)
    return digest(whole)


@pytest.fixture(scope="module")
def in_memory(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> str:
    with chdir(tmp_path_factory.mktemp("memory")):
        return digest_in_memory(tiny, made_up_images(tiny))


@pytest.fixture
def decoder(tiny: Experiment) -> RawDecoder:
    return RawDecoder(encoded(made_up_images(tiny)))


@pytest.mark.parametrize("cache", ["auto", "host", "device", "file", "off"])
def test_every_cache_gives_the_same_run(
    tiny: Experiment, in_memory: str, decoder: RawDecoder, cache: CacheName
) -> None:
    trainer = begin(tiny, "run", decoder, cache=cache)
    trainer.train(2 * EPOCH)
    assert digest(trainer) == in_memory
    last = list(trainer.run.metrics())[-1]
    assert last["data_seconds"] >= 0
    if cache == "off":
        assert len(decoder.asked) >= 2 * 64
        return
    assert sorted(decoder.asked) == list(range(64))  # each of them once
    again = RawDecoder(decoder.image_set)
    begin(tiny, "again", again, cache=cache).train(3)
    assert bool(again.asked) == (cache in ("host", "device"))  # these leave no file


@pytest.mark.parametrize("cache", ["file", "off"])
def test_a_run_resumed_in_mid_epoch_is_bit_identical(
    tiny: Experiment,
    in_memory: str,
    decoder: RawDecoder,
    monkeypatch: pytest.MonkeyPatch,
    cache: CacheName,
) -> None:
    monkeypatch.setattr("fastinfogan.data.loader._DECODED_AHEAD", 1)
    cut = begin(tiny, "cut", decoder, cache=cache)
    cut.train(2)
    assert len(decoder.asked) < 64 or cache == "off"
    second = RawDecoder(decoder.image_set)
    resumed = Trainer(RunDirectory.open(Path("cut")), second, CPU, cache=cache)
    resumed.resume()
    resumed.train(2 * EPOCH)
    assert digest(resumed) == in_memory
    if cache == "file":  # what the first one left in its partial file is not decoded again
        assert not set(decoder.asked[:16]) & set(second.asked)


def test_a_fill_killed_before_it_finished_is_completed(
    tiny: Experiment, decoder: RawDecoder
) -> None:
    key = CacheKey.of(decoder)
    slots = FileCache(key)
    slots.put(np.arange(64), made_up_images(tiny).images)
    slots.close()
    begin(tiny, "run", decoder).train(1)
    assert not decoder.asked
    assert open_complete(key, pytest.fail) is not None


def test_resuming_with_another_decoder_is_an_error(tiny: Experiment, decoder: RawDecoder) -> None:
    begin(tiny, "run", decoder).train(1)
    decoder.name = "raw 2"
    with pytest.raises(InputError, match="now and then: decoder: 'raw 2' and 'raw 1'"):
        Trainer(RunDirectory.open(Path("run")), decoder, CPU)


@pytest.mark.parametrize("cache", ["file", "off"])
def test_a_bad_image_ends_the_run_with_a_checkpoint_or_is_skipped(
    tiny: Experiment, decoder: RawDecoder, cache: CacheName
) -> None:
    source = made_up_images(tiny)
    late = int(philox.shuffled_indices(3, 5 * 8, 1, 64)[0])  # in the sixth batch
    decoder.image_set.files[late].path.write_bytes(b"short")
    trainer = begin(tiny, "run", decoder, cache=cache)
    reported = f"pictures: {late:04d}.raw cannot be decoded: cut short; .* `on_bad_image='skip'`"
    with pytest.raises(InputError, match=reported):
        trainer.train(2 * EPOCH)
    assert 0 <= trainer.step <= 5
    if trainer.step:
        assert trainer.run.read_checkpoint().iteration == trainer.step
    skipping: dict[str, Any] = {"cache": cache, "on_bad_image": "skip"}
    warnings: list[str] = []
    run = begin(tiny, "skip", RawDecoder(decoder.image_set), **skipping)
    run.train(2 * EPOCH, Schedule(on_warning=warnings.append))
    assert len([w for w in warnings if "1 of 64 images cannot be decoded" in w]) == 1
    (line,) = Path("skip/bad_images.jsonl").read_text().splitlines()
    assert f'"name": "{late:04d}.raw", "reason": "cut short"' in line
    source.images[late] = source.images[(late + 1) % 64]
    assert digest(run) == digest_in_memory(tiny, source)
    if cache == "file":  # a later run reports it, too, or fails
        warnings.clear()
        unasked = RawDecoder(decoder.image_set)
        begin(tiny, "later", unasked, **skipping).train(1, Schedule(on_warning=warnings.append))
        assert not unasked.asked
        assert Path("later/bad_images.jsonl").exists()
        with pytest.raises(InputError, match="cannot be decoded: cut short"):
            begin(tiny, "fail", RawDecoder(decoder.image_set), cache=cache)


def test_too_many_bad_images_are_an_error_with_reasons(
    tiny: Experiment, decoder: RawDecoder
) -> None:
    for picture in list(decoder.image_set.files)[:40]:
        picture.path.write_bytes(b"")
    trainer = begin(tiny, "run", decoder, on_bad_image="skip")
    with pytest.raises(
        InputError, match=r"images of 64 cannot be decoded so far, more than 1%.* cut short \(as"
    ):
        trainer.train(EPOCH)


def test_a_disk_that_fills_up_costs_the_file_alone(
    tiny: Experiment, in_memory: str, decoder: RawDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = begin(tiny, "run", decoder, cache="file")
    write, calls = os.pwrite, []

    def full(*arguments: Any) -> int:  # noqa: ANN401
        calls.append(arguments)
        if len(calls) > 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr("os.pwrite", full)
    warnings: list[str] = []
    trainer.train(2 * EPOCH, Schedule(on_warning=warnings.append))
    assert digest(trainer) == in_memory
    (reported,) = warnings
    assert "No space left on device; decoded images stay in memory" in reported
    key = CacheKey.of(decoder)
    assert not list(cache_folder().glob(f"{key.hash}*"))


@pytest.mark.parametrize("room", [True, False])
def test_a_read_only_cache_folder(
    tiny: Experiment,
    in_memory: str,
    decoder: RawDecoder,
    monkeypatch: pytest.MonkeyPatch,
    room: bool,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    if not room:
        monkeypatch.setattr("fastinfogan.data.loader.available_memory", lambda: 0)
    trainer = begin(tiny, "run", decoder)
    warnings: list[str] = []
    trainer.train(2 * EPOCH, Schedule(on_warning=warnings.append))
    assert digest(trainer) == in_memory
    (reported,) = warnings
    assert "Read-only file system; " in reported
    assert ("memory has no room either" in reported) != room


def test_stopping_does_not_wait_for_images(tiny: Experiment, decoder: RawDecoder) -> None:
    decoder.delay = 0.3
    trainer = begin(tiny, "run", decoder)
    asked = iter((False, False))
    trainer.train(2 * EPOCH, Schedule(stop=lambda: next(asked, True)))
    assert trainer.step < 4
    assert decoder.closed == 1


def test_batches_are_staged_one_by_one_while_the_cache_is_filled(
    tiny: Experiment, decoder: RawDecoder
) -> None:
    """As on a GPU with the cache in a file, which is being filled and then complete."""
    source = made_up_images(tiny)
    key, sampler = CacheKey.of(decoder), Sampler(3, 64, 10, range(2, 10))
    filler = CacheFiller(sampler, decoder, FileCache(key), BadImages("set", 64, "fail"))
    loader = StagedLoader(CPU, "", filler, shape=source.images.shape[1:])
    for step in [*range(40), 4, 5]:
        assert loader.prepare(step, 1)
        expected = source.images[philox.shuffled_indices(3, step * 10 + 2, 8, 64)]
        assert np.array_equal(loader.images.numpy(), expected)
    loader.close()
    assert loader.in_order
    assert loader.iterations_per_call == 1
    assert open_complete(key, pytest.fail) is not None
    assert len(decoder.asked) == 64
