"""`fastinfogan data`: look at a set of images, check it, decode it beforehand."""

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastinfogan import experiments
from fastinfogan.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from fastinfogan.data import ImageSet
    from fastinfogan.data.decoders.base import Decoder

_DecoderName = Literal["auto", "dali", "pillow"]
_Path = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
_ACROSS, _DOWN = 10, 10
_ROWS = 128
_PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


def _open(
    path: Path, experiment: str, decoder: _DecoderName, damaged: Literal["fail", "skip"] = "fail"
) -> "tuple[ImageSet | Decoder, str]":
    """A set, and why its decoder is the one it is."""
    from fastinfogan.cli.progress import RENDERING, ProgressBar
    from fastinfogan.data import ImageSet, open_image_set
    from fastinfogan.data.decoders.choose import choose_decoder
    from fastinfogan.engine.config import choose_device

    with ProgressBar(RENDERING) as progress:
        source = open_image_set(path, experiments.get(experiment), progress, damaged)
    if isinstance(source, ImageSet):
        return source, ""
    return choose_decoder(decoder, source, choose_device("auto").type, _ROWS)


@dataclass(frozen=True)
class DataInfo:
    """Tell what a path holds and what training will do with it, and draw some of its images."""

    path: _Path
    """A set in any format that train takes."""
    experiment: str = "mnist"
    """Whose images they are to become: decides height, width and channels."""
    decoder: _DecoderName = "auto"
    """Who decodes pictures."""
    out: Path = Path("contact-sheet.png")
    """Where to draw a hundred of them, chosen by chance and always the same."""

    def run(self) -> int:
        """Do it; the exit code."""
        import numpy as np
        from PIL import Image

        from fastinfogan.data import ImageSet
        from fastinfogan.data.make_loader import describe_cache_plan
        from fastinfogan.data.subset import decode_subset, subset_indices
        from fastinfogan.engine.config import choose_device

        found, why = _open(self.path, self.experiment, self.decoder)
        source = found if isinstance(found, ImageSet) else found.source
        labels = "none" if source.labels is None else f"{len(np.unique(source.labels))} classes"
        facts = {
            "set": source.name,
            "images": f"{len(source):,}, {source.shape}",
            "labels": labels,
            "factors": ", ".join(source.factors.names) if source.factors else "none",
            "test part": "none" if source.test is None else f"{len(source.test):,} images",
        }
        chosen = subset_indices(len(source), _ACROSS * _DOWN)
        if isinstance(found, ImageSet):
            facts["pictures"] = "decoded already"
            images = found.images[chosen]
        else:
            facts["recipe"] = str(found.source.recipe)
            facts["decoder"] = f"{found.name}: {why}"
            facts["cache"] = describe_cache_plan(found, choose_device("auto"))
            images, good = decode_subset(found, chosen)
            images[~good] = 0
            if not good.all():
                facts["bad"] = f"{(~good).sum()} of {len(chosen)} that were drawn; see data verify"
        for name, fact in facts.items():
            print(f"{name:12} {fact}")
        try:
            Image.fromarray(_contact_sheet(images)).save(self.out)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.out}: cannot be written: {error}") from error
        print(f"{'sheet':12} {self.out}")
        return 0


@dataclass(frozen=True)
class Verify:
    """Decode every picture of a set and list those that cannot be; exit code 1 if any cannot."""

    path: _Path
    """A set in any format that train takes."""
    experiment: str = "mnist"
    """Whose images they are to become."""
    decoder: _DecoderName = "auto"
    """Who decodes pictures."""

    def run(self) -> int:
        """Do it; the exit code."""
        from fastinfogan.data import ImageSet
        from fastinfogan.data.cache.fill import sequential_batches

        found, _ = _open(self.path, self.experiment, self.decoder)
        if isinstance(found, ImageSet):
            test = f" and {len(found.test):,} for testing" if found.test else ""
            print(f"{found.name}: {len(found):,} images{test}, all read")
            return 0
        bad = 0
        parts = [found.source]
        if found.source.test is not None:
            parts.append(found.source.test)
        for part in parts:
            decoder = found if part is found.source else _decoder_of(part, self.decoder)
            with _progress("decoding", len(part)) as advance:
                done = 0
                for batch in decoder.batches(sequential_batches(len(part), _ROWS)):
                    for each in batch.bad:
                        print(f"{each.name}: {each.reason}")
                    bad += len(batch.bad)
                    done += len(batch.index)
                    advance(done)
        count = sum(len(part) for part in parts)
        print(f"{found.source.name}: {bad:,} of {count:,} pictures cannot be decoded")
        return 1 if bad else 0


@dataclass(frozen=True)
class Prepare:
    """Decode a set into its file, which every later run maps; goes on where it was stopped."""

    path: _Path
    """A set in any format that train takes."""
    experiment: str
    """Whose images they are to become."""
    decoder: _DecoderName = "auto"
    """Who decodes pictures: the same as in training."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do about a picture that cannot be decoded, as in training."""

    def run(self) -> int:
        """Do it; the exit code."""
        from fastinfogan.data import ImageSet
        from fastinfogan.data.bad_images import BadImages
        from fastinfogan.data.cache.fill import fill_cache_file
        from fastinfogan.data.cache.policy import format_size
        from fastinfogan.data.cache.storage import decoded_size, folder

        found, _ = _open(self.path, self.experiment, self.decoder, self.on_bad_image)
        if isinstance(found, ImageSet):
            print(f"{found.name}: holds images that are decoded already; nothing to prepare")
            return 0
        count = len(found.source)
        bad_images = BadImages(found.source.name, count, self.on_bad_image)
        seen: list[int] = []
        begun = time.perf_counter()
        with _progress("decoding", count) as advance:

            def progress(done: int) -> None:
                seen.append(done)
                advance(done)

            fill_cache_file(found, bad_images, lambda text: print(text, file=sys.stderr), progress)
        seconds, new = time.perf_counter() - begun, count - seen[0]
        if bad_images.bad:
            print(f"{len(bad_images)} cannot be decoded and are skipped: {bad_images.reasons()}")
        rate = f", {new / seconds:,.0f} images/s" if new else ""
        there = f"{seen[0]:,} of them were there already" if seen[0] else "all of them new"
        print(f"{count:,} images, {format_size(decoded_size(found))}, in {folder()}; {there}{rate}")
        return 0


def _decoder_of(part: object, name: _DecoderName) -> "Decoder":
    from fastinfogan.data.image_set import EncodedImageSet
    from fastinfogan.engine.config import choose_device
    from fastinfogan.engine.session import open_decoder

    assert isinstance(part, EncodedImageSet)
    return open_decoder(part, name, choose_device("auto").type)


def _contact_sheet(images: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """Rows of images with a gap of a pixel: uint8 (height, width) or (height, width, 3)."""
    import numpy as np

    count, height, width, channels = images.shape
    down = -(-count // _ACROSS)
    sheet = np.full((down * (height + 1) - 1, _ACROSS * (width + 1) - 1, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // _ACROSS * (height + 1), i % _ACROSS * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet[..., 0] if channels == 1 else sheet


@contextmanager
def _progress(what: str, total: int) -> "Iterator[Callable[[int], None]]":
    """A bar with a rate on a terminal, a line now and then elsewhere; on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    begun = told = time.monotonic()
    first = -1
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=total)

    def advance(done: int) -> None:
        nonlocal first, told
        first = done if first < 0 else first
        now = time.monotonic()
        rate = (done - first) / max(now - begun, 1e-3)
        bar.update(task, completed=done, description=f"{what}, {rate:,.0f} images/s")
        if not console.is_terminal and now - told > _PLAIN_EVERY:
            told = now
            console.print(f"{done:,} of {total:,}, {rate:,.0f} images/s")

    with bar:
        yield advance
