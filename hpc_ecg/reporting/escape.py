"""Names from tables and files, made safe for the format in which they are written: Markdown, CSV
(and back), SVG. HTML is escaped by jinja (html.py), the terminal's lines by `log.printable`."""

import re
from typing import Any

import pandas as pd
from markupsafe import Markup

from hpc_ecg.log import printable

FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠].", re.DOTALL)
"""What a spreadsheet runs as a formula, also in full width, and what escaping has made of it."""
NUMBER = re.compile(r"[+-]?[\d.,:\s]+(e[+-]?\d+)?\s*%?", re.IGNORECASE)
NOT_IN_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
IN_MARKDOWN = re.compile(
    r"[\\`*~\[\]#|]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|<(?=[a-zA-Z/!?])"
    r"|(?<=\w):(?=//)|(?<=\bwww)\.|^[-+>=](?!\d)|^\d(?=\d*[.)]\s)"
)
"""What means something in Markdown; the second line: addresses, which GitHub makes links of, and
the beginnings of lists, quotations and headings."""


def markdown(value: Any) -> Any:
    """A value as text within a line, or a cell, of Markdown; what is not text stays."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = printable(value).replace("\n", " ").lstrip()
    return IN_MARKDOWN.sub(lambda found: f"&#{ord(found[0])};", text)


def code(value: Any) -> Markup:
    """A name as code in Markdown, or as text if it holds more than names usually do: within code
    nothing can be escaped."""
    is_plain = re.fullmatch(r"[\w.,+/=:-]+", str(value))
    return Markup(f"`{value}`" if is_plain else markdown(str(value)))  # noqa: S704  # not HTML


def xml_text(text: str) -> str:
    """Text or markup without the characters that XML forbids."""
    return NOT_IN_XML.sub("\ufffd", text)


def csv_text(table: pd.DataFrame, lineterminator: str = "\n") -> str:
    """A table as CSV without its index. Text that a spreadsheet would run as a formula gets a
    leading ', which `from_csv` takes away again; numbers stay as they are."""
    safe = table.set_axis([_csv_cell(name) for name in table.columns], axis=1)
    for k, (_, column) in enumerate(table.items()):
        if not pd.api.types.is_numeric_dtype(column):
            cells = [_csv_cell(value) for value in column]
            safe.isetitem(k, pd.array(cells, dtype=object))
    text = safe.to_csv(index=False, lineterminator=lineterminator)
    # a return within a cell is quoted only if lines end with it
    return safe.to_csv(index=False, lineterminator="\r\n") if "\r" in text else text


def from_csv(table: pd.DataFrame) -> pd.DataFrame:
    """The text that `csv_text` was given, from the text that it wrote."""
    plain = table.set_axis([_from_csv_cell(str(name)) for name in table.columns], axis=1)
    for k, (_, column) in enumerate(table.items()):
        if column.str.startswith("'").any():
            plain.isetitem(k, column.map(_from_csv_cell).array)
    return plain


def _csv_cell(value: Any) -> Any:
    is_formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def _from_csv_cell(text: str) -> str:
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
