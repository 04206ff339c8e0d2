"""What changed between two files of weights, tensor by tensor and by part of the model.

Tensors meet under our names, so files of different layouts compare. No torch: values are read from
the files as they lie, a chunk at a time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.weights.look import CHUNK, look
from hpc_ecg.weights.stored import StoredTensor

SHOWN = 12  # tensors in the table, unless all are asked for
WHOLE = "backbone in all"
PARTS = {
    "backbone.feature_extractor.": "conv stem",
    "backbone.layer_norm.": "projection",
    "backbone.post_extract_proj.": "projection",
    "backbone.conv_pos.": "positions",
    "backbone.encoder.layer_norm.": "positions",
    "head.": "head",
    "pretraining.": "only for pre-training",
}


def diff(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Plain data for `--json`. ValueError: a file is hostile or damaged."""
    a, b = look(first), look(second)
    changes: dict[str, Change] = {}
    other_shape = {}
    for name in sorted(a.names.keys() & b.names.keys(), key=_place):
        one, two = a.tensors[a.names[name]], b.tensors[b.names[name]]
        if one.shape == two.shape:
            changes[name] = _compare(one, two)
        else:
            other_shape[name] = [list(one.shape), list(two.shape)]
    only = [sorted(x.names.keys() - y.names.keys(), key=_place) for x, y in ((a, b), (b, a))]
    same = not other_shape and not any(only) and not any(c.changed for c in changes.values())
    return {
        "first": str(a.path),
        "second": str(b.path),
        "identical": same,
        "parts": {part: _total(names, changes) for part, names in _parts(changes).items()},
        "tensors": {name: _total([name], changes) for name in changes},
        "other_shape": other_shape,
        "only_in_first": only[0],
        "only_in_second": only[1],
    }


@dataclass(frozen=True)
class Change:
    changed: bool
    largest: float
    """Largest absolute difference of a value."""
    squares: float
    """Sum of the squared differences."""
    size: float
    """Sum of the squared values of the first."""


def _compare(one: StoredTensor, two: StoredTensor) -> Change:
    """Equal values are no change, whatever their type."""
    a, b = one.array().reshape(-1), two.array().reshape(-1)
    changed, largest, squares, size = False, 0.0, 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, a.size, CHUNK):
            x, y = a[start : start + CHUNK], b[start : start + CHUNK]
            size += float(np.square(x, dtype=np.float64).sum())
            if not np.array_equal(x, y, equal_nan=True):
                delta = y.astype(np.float64) - x
                largest = float(np.fmax(largest, np.abs(delta).max()))
                squares += float(np.square(delta).sum())
                changed = True
    for tensor in (one, two):
        tensor.block.file.drop()
    return Change(changed, largest, squares, size)


def _total(names: Sequence[str], changes: Mapping[str, Change]) -> dict[str, Any]:
    """Of one tensor or a part; relative_l2 is ||b - a|| / ||a||, None where that is no number."""
    found = [changes[name] for name in names]
    squares, size = sum(c.squares for c in found), sum(c.size for c in found)
    relative = math.sqrt(squares / size) if size and math.isfinite(squares / size) else None
    num_changed = sum(c.changed for c in found)
    return {
        "tensors": len(found),
        "changed": num_changed,
        "max_abs": max(c.largest for c in found),
        "relative_l2": relative if num_changed else 0.0,
    }


def part_of(name: str) -> str:
    """conv stem, projection, positions, encoder layer 0 …, head, by our name of a tensor."""
    if name.startswith("backbone.encoder.layers."):
        return f"encoder layer {name.split('.')[3]}"
    return next((part for start, part in PARTS.items() if name.startswith(start)), "other")


def _parts(names: Iterable[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(part_of(name), []).append(name)
    whole = [name for name in names if name.startswith("backbone.")]
    return ({WHOLE: whole} if whole else {}) | parts


def _place(name: str) -> tuple[int, int, str]:
    """In the order in which an ECG passes them."""
    order = list(PARTS)
    if name.startswith("backbone.encoder.layers."):
        number = name.split(".")[3]
        return order.index("head."), int(number) if number.isdecimal() else 0, name
    start = next((n for n, start in enumerate(order) if name.startswith(start)), len(order))
    return start + (start >= order.index("head.")), 0, name


def describe(result: Mapping[str, Any], *, all_tensors: bool = False) -> list[str]:
    """A line per part, and the tensors that changed most."""
    lines = [f"{'part':<24}{'changed':>12}{'max |d|':>11}{'|d| / |a|':>11}"]
    lines += [_line(part, total) for part, total in result["parts"].items()]
    tensors = [(name, total) for name, total in result["tensors"].items() if total["changed"]]
    if not all_tensors:
        tensors.sort(key=lambda item: -item[1]["max_abs"])
    shown = list(result["tensors"].items()) if all_tensors else tensors[:SHOWN]
    if shown:
        lines += ["", "tensors" if all_tensors else "changed most"]
        width = max(len(name) for name, _ in shown)
        lines += [_line(name, total, width) for name, total in shown]
    if not all_tensors and len(tensors) > SHOWN:
        lines.append(f"and {len(tensors) - SHOWN} more: --tensors lists all")
    for name, (one, two) in result["other_shape"].items():
        lines.append(f"other shape: {name}, {one} and {two}")
    for side, where in (("only_in_first", result["first"]), ("only_in_second", result["second"])):
        lines += [f"only in {where}: {name}" for name in result[side]]
    return [*lines, "", _verdict(result)]


def _line(name: str, total: Mapping[str, Any], width: int = 24) -> str:
    if not total["changed"]:
        return f"{name:<{width}}   identical"
    relative = "" if total["relative_l2"] is None else f"{total['relative_l2']:.2e}"
    changed = f"{total['changed']} of {total['tensors']}"
    return f"{name:<{width}}{changed:>12}{total['max_abs']:>11.2e}{relative:>11}"


def _verdict(result: Mapping[str, Any]) -> str:
    if result["identical"]:
        return "identical"
    says = []
    for part in (WHOLE, "head"):
        total = result["parts"].get(part)
        same = "not in both, or of another shape" if total is None else "identical"
        says.append(f"{part.split()[0]}: {'changed' if total and total['changed'] else same}")
    return "; ".join(says)
