"""Writes the numbers of README.md and bench/scaling.md, from bench/results/.

    python -m bench.numbers            # write them
    python -m bench.numbers --check    # or say which are not what bench/results/ holds

A part between `<!-- numbers: NAME -->` and `<!-- end of NAME -->` is what the writer of that name
makes of the results; the rest of a page is left alone.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.writers import PAGES, WRITERS
from fastinfogan.errors import InputError

ROOT = Path(__file__).parents[1]


def filled(text: str, writers: Mapping[str, Callable[[], str]]) -> str:
    """A page with its numbers.

    Args:
        text: of the page.
        writers: by name.

    Raises:
        InputError: the page asks for numbers that nobody writes, or does not end a part.
    """
    begun = re.findall(r"<!-- numbers: (.+?) -->", text)
    ended = re.findall(r"<!-- end of (.+?) -->", text)
    if begun != ended:
        raise InputError(f"parts {begun} are begun, {ended} are ended")
    for name in begun:
        if name not in writers:
            raise InputError(f"no numbers {name!r}; there are {', '.join(sorted(writers))}")
        first, last = f"<!-- numbers: {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(first)
        _, _, after = rest.partition(last)
        text = f"{before}{first}\n{writers[name]().strip()}\n\n{last}{after}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """The command; the exit code, 1 if --check finds old numbers."""
    parser = argparse.ArgumentParser(prog="python -m bench.numbers", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args(arguments)
    old = 0
    for page in PAGES:
        text = (ROOT / page).read_text()
        try:
            new = filled(text, WRITERS)
        except InputError as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 2
        if new == text:
            continue
        old += 1
        if asked.check:
            print(f"{page}: not the numbers of bench/results/; run python -m bench.numbers")
        else:
            (ROOT / page).write_text(new)
            print(page)
    return 1 if asked.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
