"""`fastinfogan data`: inspect an image set, verify it, decode it in advance."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastinfogan import experiments
from fastinfogan.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastinfogan.data import ImageSet
    from fastinfogan.data.decoders.base import Decoder

_DecoderName = Literal["auto", "dali", "pillow"]
_Path = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
_COLUMNS, _ROWS = 10, 10
_BATCH = 128


def _open(
    path: Path,
    experiment: str,
    decoder: _DecoderName,
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> "tuple[ImageSet | Decoder, str]":
    """Open a set; also return why its decoder was chosen."""
    from fastinfogan.data import ImageSet, open_image_set
    from fastinfogan.data.decoders.base import choose_decoder
    from fastinfogan.engine.config import choose_device

    images = open_image_set(path, experiments.get(experiment), on_bad_image=on_bad_image)
    if isinstance(images, ImageSet):
        return images, ""
    return choose_decoder(decoder, images, choose_device("auto").type, _BATCH)


@dataclass(frozen=True)
class _SetOptions:
    """The set that a command reads."""

    path: _Path
    """An image set in any format that train takes."""
    experiment: str = "mnist"
    """The experiment whose image size and channels are used."""
    decoder: _DecoderName = "auto"
    """The decoder of encoded images."""


@dataclass(frozen=True)
class DataInfo(_SetOptions):
    """Show what a path holds and how training will read it, and draw some of its images."""

    out: Path = Path("contact-sheet.png")
    """The PNG to write, with a hundred images chosen at random, the same every time."""

    def run(self) -> int:
        """Run the command; the exit code."""
        import numpy as np
        from PIL import Image

        from fastinfogan.data import ImageSet
        from fastinfogan.data.cache.fill import describe_cache_plan
        from fastinfogan.data.subset import decode_subset, subset_indices
        from fastinfogan.engine.config import choose_device

        found, reason = _open(self.path, self.experiment, self.decoder)
        image_set = found if isinstance(found, ImageSet) else found.image_set
        labels = image_set.labels
        facts = {
            "set": image_set.name,
            "images": f"{len(image_set):,}, {image_set.shape}",
            "labels": "none" if labels is None else f"{len(np.unique(labels))} classes",
            "factors": ", ".join(image_set.factors.names) if image_set.factors else "none",
            "test split": "none" if image_set.test is None else f"{len(image_set.test):,} images",
        }
        chosen = subset_indices(len(image_set), _COLUMNS * _ROWS)
        if isinstance(found, ImageSet):
            facts["files"] = "decoded already"
            images = found.images[chosen]
        else:
            facts["transform"] = str(found.image_set.transform)
            facts["decoder"] = f"{found.name}: {reason}"
            facts["cache"] = describe_cache_plan(found, choose_device("auto"))
            images, good = decode_subset(found, chosen)
            images[~good] = 0
            if not good.all():
                facts["bad"] = f"{(~good).sum()} of {len(chosen)} images drawn; see data verify"
        for name, fact in facts.items():
            print(f"{name:12} {fact}")
        try:
            Image.fromarray(_contact_sheet(images)).save(self.out)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.out}: cannot be written: {error}") from error
        print(f"{'sheet':12} {self.out}")
        return 0


@dataclass(frozen=True)
class Verify(_SetOptions):
    """Decode every image of a set and list those that cannot be; exit code 1 if there are any."""

    def run(self) -> int:
        """Run the command; the exit code."""
        from fastinfogan.cli.progress import ProgressBar
        from fastinfogan.data import ImageSet
        from fastinfogan.data.cache.fill import sequential_batches
        from fastinfogan.engine.config import choose_device
        from fastinfogan.engine.session import open_decoder

        found, _ = _open(self.path, self.experiment, self.decoder)
        if isinstance(found, ImageSet):
            test = f" and {len(found.test):,} for testing" if found.test else ""
            print(f"{found.name}: {len(found):,} images{test}, all read")
            return 0
        decoders, test_split = [found], found.image_set.test
        if test_split is not None:
            device = choose_device("auto").type
            decoders.append(open_decoder(test_split, self.decoder, device))
        bad = 0
        for decoder in decoders:
            count, done = len(decoder.image_set), 0
            with ProgressBar("decoding", count, unit="images") as progress:
                for batch in decoder.batches(sequential_batches(count, _BATCH)):
                    for each in batch.bad:
                        print(f"{each.name}: {each.reason}")
                    bad += len(batch.bad)
                    done += len(batch.index)
                    progress(done)
        total = sum(len(decoder.image_set) for decoder in decoders)
        print(f"{found.image_set.name}: {bad:,} of {total:,} images cannot be decoded")
        return 1 if bad else 0


@dataclass(frozen=True)
class Prepare:
    """Decode a set into its cache file, which later runs map; resumes where it was stopped."""

    path: _Path
    """An image set in any format that train takes."""
    experiment: str
    """The experiment whose image size and channels are used."""
    decoder: _DecoderName = "auto"
    """The decoder of encoded images: the same as in training."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with an image that cannot be decoded, as in training."""

    def run(self) -> int:
        """Run the command; the exit code."""
        from fastinfogan.cli.progress import ProgressBar
        from fastinfogan.data import ImageSet
        from fastinfogan.data.bad_images import BadImages
        from fastinfogan.data.cache.fill import fill_cache_file
        from fastinfogan.data.cache.policy import format_size
        from fastinfogan.data.cache.storage import cache_folder, decoded_size

        found, _ = _open(self.path, self.experiment, self.decoder, self.on_bad_image)
        if isinstance(found, ImageSet):
            print(f"{found.name}: holds images that are decoded already; nothing to prepare")
            return 0
        count = len(found.image_set)
        bad_images = BadImages(found.image_set.name, count, self.on_bad_image)
        seen: list[int] = []
        begun = time.perf_counter()
        with ProgressBar("decoding", count, unit="images") as bar:

            def progress(done: int) -> None:
                seen.append(done)
                bar(done)

            fill_cache_file(found, bad_images, lambda text: print(text, file=sys.stderr), progress)
        seconds, new = time.perf_counter() - begun, count - seen[0]
        if bad_images.bad:
            print(f"{len(bad_images)} cannot be decoded and are skipped: {bad_images.reasons()}")
        rate = f", {new / seconds:,.0f} images/s" if new else ""
        present = f"{seen[0]:,} of them were there already" if seen[0] else "all of them new"
        size = format_size(decoded_size(found))
        print(f"{count:,} images, {size}, in {cache_folder()}; {present}{rate}")
        return 0


def _contact_sheet(images: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """Arrange images with gaps of one pixel: uint8 (height, width) or (height, width, 3)."""
    import numpy as np

    count, height, width, channels = images.shape
    rows = -(-count // _COLUMNS)
    sheet = np.full((rows * (height + 1) - 1, _COLUMNS * (width + 1) - 1, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // _COLUMNS * (height + 1), i % _COLUMNS * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet[..., 0] if channels == 1 else sheet
