"""Write notebooks of the documentation as pages, with the outputs that they hold."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from hpc_ecg.reporting.html import inline_svg


def write(notebook: Path, page: Path) -> None:
    """Write one notebook as Markdown; a page that has not changed keeps its time."""
    text = "\n".join(_blocks(nbformat.read(notebook, as_version=4))) + "\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def _blocks(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            # links start in tutorials/; the page is one folder further down
            yield re.sub(r"\]\((?=[\w./-]+\.md)", "](../", cell.source) + "\n"
            continue
        yield f"```python\n{cell.source}\n```\n"
        for output in cell.get("outputs", []):
            yield _output(output)


def _output(output: Any) -> str:
    """The richest form that a page can show. Figures follow the page's text colour."""
    data = output.get("data", {})
    if "text/html" in data:
        return f"```{{raw}} html\n{_without_styles(data['text/html'])}\n```\n"
    if "image/svg+xml" in data:
        svg = str(inline_svg(data["image/svg+xml"], "The output of the cell above"))
        svg = re.sub(r' width="[\d.]+mm" height="[\d.]+mm"', ' width="100%"', svg, count=1)
        return f"```{{raw}} html\n{svg}\n```\n"
    return f"```text\n{(data.get('text/plain') or output.text).rstrip()}\n```\n"


def _without_styles(html: str) -> str:
    """The HTML without the style sheet that pandas puts into each table."""
    return re.sub(r"<style.*?</style>\s*", "", html, flags=re.DOTALL)
