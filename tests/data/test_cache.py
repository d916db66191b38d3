"""The cache of decoded images: verified when opened, resumed after a crash, locked by its owner."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastinfogan.data import ImageSet
from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.cache.fill import fill_cache_file
from fastinfogan.data.cache.partial_file import FileCache
from fastinfogan.data.cache.policy import available_memory, choose_cache_policy
from fastinfogan.data.cache.storage import CacheKey, cache_folder, checksums, open_complete
from fastinfogan.data.decoders.base import BadImage
from fastinfogan.errors import InputError
from tests.helpers.image_files import RawDecoder, encoded
from tests.helpers.training import full

pytestmark = pytest.mark.usefixtures("empty_cache")

COUNT = 60


@pytest.fixture
def source() -> ImageSet:
    random = np.random.default_rng(1)
    return ImageSet("noise", random.integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8))


@pytest.fixture
def decoder(source: ImageSet) -> RawDecoder:
    return RawDecoder(encoded(source))


def there() -> set[str]:
    return {path.suffix for path in cache_folder().iterdir()}


def prepare(decoder: RawDecoder, **more: Any) -> list[str]:  # noqa: ANN401
    reported: list[str] = []
    bad_images = BadImages("noise", COUNT, "fail")
    fill_cache_file(decoder, bad_images, reported.append, batch_size=8, **more)
    return reported


def test_a_complete_file_is_mapped_and_a_damaged_one_filled_again(
    source: ImageSet, decoder: RawDecoder
) -> None:
    key = CacheKey.of(decoder)
    assert open_complete(key, pytest.fail) is None
    assert prepare(decoder) == []
    assert there() == {".u8", ".json"}
    found = open_complete(key, pytest.fail)
    assert np.array_equal(found.images, source.images)
    found.images[0] = 0  # private to this process
    data = cache_folder() / f"{key.hash}.u8"
    described = data.with_suffix(".json")
    assert json.loads(described.read_text())["made of"]["decoder"] == "raw 1"
    whole = data.read_bytes()
    assert whole == source.images.tobytes()
    damages = {
        "a checksum differs": lambda: data.write_bytes(whole[:77] + b"?" + whole[78:]),
        "truncated": lambda: data.write_bytes(whole[:-1]),
        "Expecting value": lambda: described.write_text("?"),
    }
    for said, damage in damages.items():
        damage()
        (reported,) = prepare(decoder)
        assert said in reported
        assert data.read_bytes() == whole
    assert len(decoder.asked) == 4 * COUNT


def test_another_decoder_or_changed_files_have_another_key(decoder: RawDecoder) -> None:
    prepare(decoder)
    other = RawDecoder(decoder.image_set)
    other.name = "raw 2"
    prepare(other)
    assert len(other.asked) == COUNT
    os.utime(decoder.image_set.files[5].path, ns=(1, 1))
    prepare(decoder)
    assert len(decoder.asked) == 2 * COUNT
    decoder.image_set.files[5].path.unlink()
    with pytest.raises(FileNotFoundError):  # of this decoder; it is not the cache that minds
        prepare(decoder)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from tests.helpers.image_files import RawDecoder
from fastinfogan.data.cache.fill import fill_cache_file
from fastinfogan.data.bad_images import BadImages
from fastinfogan.data.image_set import EncodedImageSet, ImageShape, ImageFile, CropResize
from pathlib import Path
found = sorted(Path("pictures").iterdir())
pictures = [ImageFile(f.name, f, 0, f.stat().st_size) for f in found]
encoded = EncodedImageSet("pictures", pictures, CropResize(ImageShape(6, 5, 3)))
decoder = RawDecoder(encoded, delay=0.05)
bad_images = BadImages("noise", len(found), "fail")
fill_cache_file(decoder, bad_images, print, lambda done: print(done, flush=True), batch_size=4)
"""


def test_a_killed_fill_is_resumed_and_verified(source: ImageSet, decoder: RawDecoder) -> None:
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", KILLED.format(tests=tests)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == "20":
                break
        # While the other one fills, this one makes its own.
        prepare(decoder)
        assert len(decoder.asked) == COUNT
        process.send_signal(signal.SIGKILL)
    key = CacheKey.of(decoder)
    for name in (".u8", ".json"):
        (cache_folder() / f"{key.hash}{name}").unlink()
    assert there() == {".partial", ".sums"}
    assert open_complete(key, pytest.fail) is None
    (sums,) = cache_folder().glob("*.sums")
    assert np.count_nonzero(np.frombuffer(sums.read_bytes(), np.uint32)) >= 20
    (partial,) = cache_folder().glob("*.partial")
    with partial.open("r+b") as file:  # an image that did not come to the disk
        file.seek(3 * 90)
        file.write(bytes(90))
    again = RawDecoder(decoder.image_set)
    assert prepare(again) == []
    assert 3 in again.asked
    assert len(again.asked) < COUNT - 15
    assert there() == {".u8", ".json"}
    found = open_complete(key, pytest.fail)
    assert np.array_equal(found.images, source.images)


def test_abandoned_partial_files_are_removed_and_locked_ones_kept(
    source: ImageSet, decoder: RawDecoder
) -> None:
    key = CacheKey.of(decoder)
    live = FileCache(key)
    FileCache(key).close()
    other = cache_folder() / f"{'0' * 32}.abc.partial"
    other.write_bytes(b"?")
    old = cache_folder() / f"{'1' * 32}.abc.partial"
    old.write_bytes(b"?")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    taken = FileCache(key)
    assert len(list(cache_folder().glob("*.partial"))) == 3
    assert other.exists()
    assert not old.exists()
    for slots in (live, taken):
        slots.put(np.arange(COUNT), source.images)
        slots.finish(BadImages("noise", COUNT, "fail"))
        assert open_complete(key, pytest.fail) is not None
    assert [p.name for p in cache_folder().glob("*.partial")] == [other.name]


def test_the_fullest_partial_file_is_resumed_and_leftovers_removed(
    source: ImageSet, decoder: RawDecoder
) -> None:
    key = CacheKey.of(decoder)
    fills = [FileCache(key) for _ in range(3)]
    for slots, count in zip(fills, (7, 21, 14), strict=True):
        slots.put(np.arange(count), source.images[:count])
    for slots in fills:
        slots.close()
    name = "3" * 32
    left = [
        cache_folder() / each for each in (f"{name}.u8", f"{name}.x.sums", f".{name}.7.partial")
    ]
    for path in left:
        path.write_bytes(b"?")
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    taken = FileCache(key)
    assert taken.filled.sum() == 21
    assert there() == {".partial", ".sums"}
    assert len(list(cache_folder().iterdir())) == 2
    taken.close()


def test_an_unreadable_file_is_reported_and_kept(
    decoder: RawDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(decoder)

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    reported: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr("mmap.mmap", no_memory)
        assert open_complete(CacheKey.of(decoder), reported.append) is None
    assert "Cannot allocate memory; decoding again" in reported[0]
    assert open_complete(CacheKey.of(decoder), pytest.fail) is not None


def test_a_full_disk_is_reported_and_leaves_no_files(
    source: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("posix_fallocate", "pwrite", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left on device"):
                prepare(RawDecoder(encoded(source)))
        assert there() == set(), name


def test_checksums_of_chunks() -> None:
    data = np.random.default_rng(0).integers(0, 256, (9 << 20) + 5, dtype=np.uint8)
    step = 1 << 22
    expected = [zlib.crc32(data[i : i + step].tobytes()) for i in range(0, len(data), step)]
    assert checksums(data) == expected


def test_cache_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastinfogan.data.cache.policy.available_memory", lambda: 1000)
    monkeypatch.setattr("fastinfogan.data.cache.policy.available_disk", lambda _: 100)

    def place(asked: Any, size: int, gpu: int | None = None) -> tuple[str, bool]:  # noqa: ANN401
        found = choose_cache_policy(asked, size, gpu, tmp_path)
        assert found.reason
        return found.location, found.writes_file

    assert place("auto", 50) == ("file", True)
    assert choose_cache_policy("auto", 10**6, None, tmp_path, is_cached=True).location == "file"
    assert place("auto", 500) == ("host", False)
    assert place("auto", 501) == ("off", False)
    assert place("auto", 50, 100) == ("device", True)
    assert place("auto", 500, 1000) == ("device", False)
    assert place("auto", 50, 99) == ("file", True)
    assert place("host", 1000, 10) == ("host", False)
    assert place("device", 1000) == ("host", False)
    assert place("device", 10, 10) == ("device", False)
    assert place("file", 10**6) == ("file", True)
    assert place("off", 1, 10) == ("off", False)
    with pytest.raises(InputError, match="`cache='device'`: decoded, the images take 11 bytes, 10"):
        place("device", 11, 10)


def test_reclaimable_memory_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = (tmp_path, "memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr("fastinfogan.data.cache.policy._CGROUPS", (group,))
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_memory() == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 1 << 20


def test_bad_images_are_read_while_others_are_added() -> None:
    bad_images = BadImages("set", 1000, "skip")
    bad_images.add(BadImage(1, "one", "cut short"))
    seen = iter(bad_images.bad.values())
    bad_images.add(BadImage(2, "two", "empty"))  # as by the thread that decodes
    assert [each.name for each in seen] == ["one"]
    assert bad_images.reasons() == "1 cut short (as one); 1 empty (as two)"
