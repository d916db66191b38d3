"""Bring pictures that the benchmarks wrote into the site.

Pages link to them as ../bench/results/..., which is where they lie for readers of the repository.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def on_files(files: Files, *, config: Any) -> Files:  # noqa: ANN401 - MkDocs' configuration
    """Add every picture under bench/results to the site."""
    for picture in RESULTS.rglob("*.png"):
        uri = f"results/{picture.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links at the pictures' place in the site."""
    return markdown.replace("](../bench/results/", "](results/")
