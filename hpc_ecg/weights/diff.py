"""What changed between two files of weights, tensor by tensor and by part of the model.

Tensors meet under our names, so files of different layouts compare. No torch: values are read from
the files as they lie, a chunk at a time.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.weights.reading import open_file
from hpc_ecg.weights.stored import CHUNK, StoredTensor

SHOWN = 12  # tensors in the table
WHOLE = "backbone in all"
PARTS = {  # in the order in which an ECG passes them
    "backbone.feature_extractor.": "conv stem",
    "backbone.layer_norm.": "projection",
    "backbone.post_extract_proj.": "projection",
    "backbone.conv_pos.": "positions",
    "backbone.encoder.layer_norm.": "positions",
    "backbone.encoder.layers.": "encoder layer",
    "head.": "head",
    "pretraining.": "only for pre-training",
}


def diff(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Plain data for `--json`. ValueError: a file is hostile or damaged, or holds no tensors."""
    a, b = open_file(first), open_file(second)
    ours, theirs = a.names.all, b.names.all
    changes: dict[str, dict[str, Any]] = {}
    other_shape = {}
    for name in sorted(ours.keys() & theirs.keys(), key=_place):
        one, two = a.tensors[ours[name]], b.tensors[theirs[name]]
        if one.shape == two.shape:
            changes[name] = _compare(one, two)
        else:
            other_shape[name] = [list(one.shape), list(two.shape)]
    parts: dict[str, list[str]] = {}
    for name in changes:
        if name.startswith("backbone."):
            parts.setdefault(WHOLE, []).append(name)
        parts.setdefault(part_of(name), []).append(name)
    only = [sorted(x.keys() - y.keys(), key=_place) for x, y in ((ours, theirs), (theirs, ours))]
    tensors = {name: _total([change]) for name, change in changes.items()}
    same = not other_shape and not any(only) and not any(t["changed"] for t in tensors.values())
    return {
        "first": a.path,
        "second": b.path,
        "identical": same,
        "parts": {part: _total([changes[n] for n in names]) for part, names in parts.items()},
        "tensors": tensors,
        "other_shape": other_shape,
        "only_in_first": only[0],
        "only_in_second": only[1],
    }


def _compare(one: StoredTensor, two: StoredTensor) -> dict[str, Any]:
    """Equal values are no change, whatever their type. squares: sum of the squared differences;
    size: of the squared values of the first."""
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
    return {"changed": changed, "max_abs": largest, "squares": squares, "size": size}


def _total(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one tensor or a part; relative_l2 is ||b - a|| / ||a||, None where that is no number."""
    squares, size = (sum(change[name] for change in changes) for name in ("squares", "size"))
    relative = math.sqrt(squares / size) if size and math.isfinite(squares / size) else None
    num_changed = sum(change["changed"] for change in changes)
    return {
        "tensors": len(changes),
        "changed": num_changed,
        "max_abs": max(change["max_abs"] for change in changes),
        "relative_l2": relative if num_changed else 0.0,
    }


def part_of(name: str) -> str:
    """conv stem, projection, positions, encoder layer 0 …, head, by our name of a tensor."""
    part = next((part for start, part in PARTS.items() if name.startswith(start)), "other")
    return f"{part} {name.split('.')[3]}" if part == "encoder layer" else part


def _place(name: str) -> tuple[int, list[str]]:
    """Parts as an ECG passes them, layer 10 after layer 9."""
    part = next((n for n, start in enumerate(PARTS) if name.startswith(start)), len(PARTS))
    return part, [word.zfill(4) if word.isdecimal() else word for word in name.split(".")]


def describe(result: Mapping[str, Any]) -> list[str]:
    """A line per part, and the tensors that changed most."""
    lines = [f"{'part':<24}{'changed':>12}{'max |d|':>11}{'|d| / |a|':>11}"]
    lines += [_line(part, total) for part, total in result["parts"].items()]
    changed = [(name, total) for name, total in result["tensors"].items() if total["changed"]]
    changed.sort(key=lambda item: -item[1]["max_abs"])
    if changed:
        width = max(len(name) for name, _ in changed[:SHOWN])
        lines += ["", "changed most"]
        lines += [_line(name, total, width) for name, total in changed[:SHOWN]]
    if len(changed) > SHOWN:
        lines.append(f"and {len(changed) - SHOWN} more: --json lists all")
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
