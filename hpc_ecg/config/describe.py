"""What settings there are: key, type, default and documentation, read from the dataclasses."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING


def explain(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, documentation) of every setting, in the order of the schema."""
    hints, docs = typing.get_type_hints(schema), _field_docs(schema)
    for item in dataclasses.fields(schema):
        key, kind = prefix + item.name, hints[item.name]
        # a section, or one that may be left out: Section | None
        section = next(iter(typing.get_args(kind)), kind) if item.default is None else kind
        if dataclasses.is_dataclass(section) and isinstance(section, type):
            yield from explain(section, key + ".")
            continue
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        yield key, _type_name(kind), _show_value(default), docs.get(item.name, "")
        of_each = typing.get_args(kind)[-1] if typing.get_origin(kind) is dict else None
        if dataclasses.is_dataclass(of_each) and isinstance(of_each, type):
            yield from explain(of_each, f"{key}.NAME.")


def _field_docs(schema: type) -> dict[str, str]:
    """The string literal under each field of a dataclass, as one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            docs[ast.unparse(field.target)] = " ".join(text.split())
    return docs


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _show_value(value: Any) -> str:
    if value == MISSING or value is dataclasses.MISSING:
        return "(must be given)"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
