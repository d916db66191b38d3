"""Pictures that do not decode: which, why, and when they are too many."""

import json
from collections import Counter
from pathlib import Path
from typing import Literal

from fastinfogan.data.decoders.base import BadImage
from fastinfogan.errors import InputError

OnBadImage = Literal["fail", "skip"]
MAX_SHARE = 0.01
"""Of a set's pictures that may be skipped; one may be in any set."""
FILE = "bad_images.jsonl"


class BadImages:
    """The bad pictures of a set, as far as they are known.

    Args:
        name: of the set, for messages.
        count: pictures in the set.
        policy: "fail" stops at the first one, "skip" goes on without them.

    Attributes:
        count: as given.
        bad: by number in the set; another dict after every addition, as one thread adds while
            others read.
    """

    def __init__(self, name: str, count: int, policy: OnBadImage) -> None:
        self._name = name
        self.count = count
        self._policy = policy
        self.bad: dict[int, BadImage] = {}

    def __len__(self) -> int:
        return len(self.bad)

    def add(self, *found: BadImage) -> bool:
        """Note bad pictures.

        Returns:
            Whether one of them is news.

        Raises:
            InputError: the policy is to fail, or they are too many.
        """
        news = {each.index: each for each in found if each.index not in self.bad}
        if news and self._policy == "fail":
            first = min(news.values(), key=lambda each: each.index)
            raise InputError(
                f"{self._name}: {first.name} cannot be decoded: {first.reason}; mend or remove it, "
                "or go on without it by `on_bad_image='skip'`"
            )
        self.bad = self.bad | news
        if len(self.bad) > max(1, MAX_SHARE * self.count):
            raise InputError(
                f"{self._name}: {len(self.bad)} pictures of {self.count:,} cannot be decoded, "
                f"more than {MAX_SHARE:.0%}, and not all were looked at: {self.reasons()}"
            )
        return bool(news)

    def reasons(self) -> str:
        """How many there are of each reason, and one of them by name."""
        bad = self.bad
        counted = Counter(each.reason for each in bad.values())
        names = {each.reason: each.name for each in bad.values()}
        most = [f"{n} {reason} (as {names[reason]})" for reason, n in counted.most_common(3)]
        return "; ".join(most) + ("; ..." if len(counted) > len(most) else "")

    def records(self) -> list[dict[str, int | str]]:
        """The list as JSON has it, in the order of the set."""
        bad = self.bad
        return [vars(bad[index]) for index in sorted(bad)]

    def write(self, folder: Path) -> None:
        """Leave the list in a folder, one JSON object a line.

        Raises:
            OSError: it cannot be written.
        """
        text = "".join(json.dumps(record) + "\n" for record in self.records())
        (folder / FILE).write_text(text)
