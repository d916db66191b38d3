"""Sphinx configuration: `make docs` builds docs/ into build/site, and every warning is an error."""

from fastinfogan import __version__

project = "fastinfogan"
copyright = "the fastinfogan authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns: list[str] = []
html_theme = "furo"
html_title = f"fastinfogan {__version__}"

myst_heading_anchors = 3
myst_enable_extensions = ["html_image"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
