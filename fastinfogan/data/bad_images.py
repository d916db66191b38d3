"""Images that cannot be decoded: which, why, and whether there are too many."""

import json
from collections import Counter
from pathlib import Path
from typing import Literal

from fastinfogan import files
from fastinfogan.data.decoders.base import BadImage
from fastinfogan.errors import InputError

OnBadImage = Literal["fail", "skip"]
MAX_SHARE = 0.01
"""Largest share of a set's images that may be skipped; one may be in any set."""
FILE = "bad_images.jsonl"


class BadImages:
    """The bad images found in a set so far.

    Args:
        name: of the set, for errors.
        count: images in the set.
        policy: "fail" raises at the first bad image, "skip" continues without them.

    Attributes:
        bad: by index in the set; replaced by a new dict at each addition, as one thread adds while
            others read.
    """

    def __init__(self, name: str, count: int, policy: OnBadImage) -> None:
        self._name = name
        self.count = count
        self._policy = policy
        self.bad: dict[int, BadImage] = {}

    def __len__(self) -> int:
        return len(self.bad)

    def add(self, *found: BadImage) -> None:
        """Add bad images.

        Raises:
            InputError: the policy is "fail", or there are too many.
        """
        new = {each.index: each for each in found if each.index not in self.bad}
        if new and self._policy == "fail":
            first = new[min(new)]
            raise InputError(
                f"{self._name}: {first.name} cannot be decoded: {first.reason}; repair or remove "
                "it, or continue without it by `on_bad_image='skip'`"
            )
        self.bad = self.bad | new
        if len(self.bad) > max(1, MAX_SHARE * self.count):
            raise InputError(
                f"{self._name}: {len(self.bad)} images of {self.count:,} cannot be decoded so far, "
                f"more than {MAX_SHARE:.0%}: {self.reasons()}"
            )

    def reasons(self) -> str:
        """Return the most frequent reasons, their counts and an example of each."""
        bad = self.bad
        counts = Counter(each.reason for each in bad.values())
        names = {each.reason: each.name for each in bad.values()}
        most = [f"{n} {reason} (as {names[reason]})" for reason, n in counts.most_common(3)]
        return "; ".join(most) + ("; ..." if len(counts) > len(most) else "")

    def records(self) -> list[dict[str, int | str]]:
        """Return the bad images as JSON values, in the order of the set."""
        bad = self.bad
        return [vars(bad[index]) for index in sorted(bad)]

    def write(self, folder: Path) -> None:
        """Write the list to a folder, one JSON object per line.

        Raises:
            OSError: it cannot be written.
        """
        text = "".join(json.dumps(record) + "\n" for record in self.records())
        files.write_text(folder / FILE, text)
