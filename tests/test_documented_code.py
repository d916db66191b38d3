"""The Python in README and the guides runs as it stands, page by page."""

import re
from pathlib import Path

import pytest

from fastinfogan.cli import main

ROOT = Path(__file__).parents[1]


@pytest.mark.usefixtures("narrow_networks")
def test_the_code_of_every_page_runs() -> None:
    """Except docs/contributing.md's, a format and an experiment with tests of their own."""
    run = "train mnist --iterations 1 --batch-size 4 --out runs/mnist-001"
    assert main(run.split()) == 0
    pages = 0
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))):
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
        if blocks and page.name != "contributing.md":
            pages += 1
            exec(compile("".join(blocks), str(page), "exec"), {})
    assert pages >= 4
