"""Sphinx settings. `make docs` needs no network; a warning is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import notebook_pages
import reference_pages

from hpc_ecg.version import __version__

project = "hpc_ecg"
author = "the hpc_ecg developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["build"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
html_theme = "furo"
html_title = f"hpc_ecg {release}"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}

DOCS = Path(__file__).parent
reference_pages.write(DOCS / "reference" / "generated")
notebook_pages.write(
    DOCS / "tutorials" / "notebook.ipynb", DOCS / "tutorials" / "generated" / "notebook.md"
)
