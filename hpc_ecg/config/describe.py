"""The settings of a schema: key, type, default and documentation, read from the dataclasses."""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING

from hpc_ecg.config.schema import default_of, section_of

KINDS: dict[Any, str] = {
    float: "a number such as 1e-5",
    int: "a whole number such as 8",
    bool: "true or false",
}
KINDS |= {str: "text", Any: "a value in YAML", int | str: "a whole number or text"}
LISTS = {float: "numbers such as [0.1,0.9]", int: "whole numbers such as [0,1,2]"}
LISTS |= {str: "names such as [a,b]"}


def describe_settings(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, type, default, documentation) of every setting, in the schema's order."""
    hints, docs = typing.get_type_hints(schema), _field_docs(schema)
    for item in dataclasses.fields(schema):
        key, kind = prefix + item.name, hints[item.name]
        section = section_of(kind)
        if section:
            yield from describe_settings(section, f"{key}.")
            continue
        yield key, _type_name(kind), _show(default_of(item)), docs.get(item.name, "")
        entry = section_of(typing.get_args(kind)[-1]) if typing.get_args(kind) else None
        if entry and typing.get_origin(kind) is dict:
            yield from describe_settings(entry, f"{key}.NAME.")


def _field_docs(schema: type) -> dict[str, str]:
    """The string literal below each field of a dataclass, joined into one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            docs[ast.unparse(field.target)] = " ".join(text.split())
    return docs


def _type_name(kind: Any) -> str:
    """Such as `str | None` or `dict[str, StageConfig]`: our classes without their module."""
    is_plain = isinstance(kind, type) and not typing.get_args(kind)
    return kind.__name__ if is_plain else re.sub(r"hpc_ecg\.[\w.]*\.", "", str(kind))


def _show(value: Any) -> str:
    if value == MISSING or value is dataclasses.MISSING:
        return "(must be given)"
    return value if isinstance(value, str) else show_value(value)


def show_value(value: Any) -> str:
    """A value as it is written in YAML; text in quotes."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def describe_kind(kind: Any) -> str:
    """What a setting of this type takes, with an example: `a number such as 1e-5`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, tuple):
        size = f"{len(inner)} " if origin is tuple else ""
        return f"a list of {size}{LISTS.get(inner[0], 'values')}"
    return KINDS.get(kind, "a section (NAME: value)")
