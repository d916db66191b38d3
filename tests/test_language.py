"""The words of the project: what docs/glossary.md says to avoid is avoided everywhere else."""

import re
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1]
GLOSSARY = TREE / "docs" / "glossary.md"
STORED = '"tally"'
"""A tensor's name in checkpoints, which stays readable."""
CHECKED = (".py", ".pyi", ".md", ".h", ".cpp", ".txt", ".toml", ".yml", "Makefile")


def phrases() -> list[str]:
    """The first column of the glossary's second table."""
    table = GLOSSARY.read_text().partition("## Words to avoid")[2]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    return [phrase.strip() for row in rows[1:] for phrase in row.split(";")]


def pattern() -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(map(re.escape, phrases())) + r")(?![\w])", re.IGNORECASE)


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [TREE / line for line in listed.stdout.splitlines() if line.endswith(CHECKED)]
    return [file for file in found if file.is_file() and file != GLOSSARY]


def test_the_list_is_read_and_matches() -> None:
    assert len(phrases()) > 20
    assert all(pattern().search(f"the {phrase}: x") for phrase in phrases())
    assert not pattern().search("the backward pass")


@pytest.mark.skipif(not (TREE / ".git").exists(), reason="only a checkout knows its files")
def test_words_to_avoid() -> None:
    avoided = pattern()
    found = [
        f"{file.relative_to(TREE)}:{number}: {match.group(1)}"
        for file in files()
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for match in avoided.finditer(line.replace(STORED, ""))
    ]
    assert not found, "\n".join(found)
