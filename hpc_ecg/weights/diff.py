"""Compare two files of weights, tensor by tensor and by part of the model.

Tensors are matched by our names, so the layouts may differ. No torch: values are read from the
files a chunk at a time.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.weights.reading import open_weights
from hpc_ecg.weights.stored_tensor import StoredTensor

NUM_SHOWN = 12  # tensors in the table
BACKBONE = "backbone in all"
PARTS = {  # in the order of the forward pass
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
    a, b = open_weights(first), open_weights(second)
    keys_a, keys_b = a.names, b.names
    changes: dict[str, dict[str, Any]] = {}
    other_shape = {}
    for name in sorted(keys_a.keys() & keys_b.keys(), key=_sort_key):
        one, two = a.tensors[keys_a[name]], b.tensors[keys_b[name]]
        if one.shape == two.shape:
            changes[name] = _compare(one, two)
        else:
            other_shape[name] = [list(one.shape), list(two.shape)]
    parts: dict[str, list[dict[str, Any]]] = {}
    for name, change in changes.items():
        if name.startswith("backbone."):
            parts.setdefault(BACKBONE, []).append(change)
        parts.setdefault(part_of(name), []).append(change)
    only_in_first = sorted(keys_a.keys() - keys_b.keys(), key=_sort_key)
    only_in_second = sorted(keys_b.keys() - keys_a.keys(), key=_sort_key)
    is_changed = any(change["changed"] for change in changes.values())
    return {
        "first": a.path,
        "second": b.path,
        "identical": not (other_shape or only_in_first or only_in_second or is_changed),
        "parts": {part: _summarize(inside) for part, inside in parts.items()},
        "tensors": {name: _summarize([change]) for name, change in changes.items()},
        "other_shape": other_shape,
        "only_in_first": only_in_first,
        "only_in_second": only_in_second,
    }


def _compare(one: StoredTensor, two: StoredTensor) -> dict[str, Any]:
    """Equal values of another type are no change. `squares`: sum of the squared differences;
    `size`: sum of the squared values of `one`."""
    changed, largest, squares, size = False, 0.0, 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for x, y in zip(one.chunks(), two.chunks(), strict=True):
            size += float(np.square(x, dtype=np.float64).sum())
            if not np.array_equal(x, y, equal_nan=True):
                delta = y.astype(np.float64) - x
                largest = float(np.fmax(largest, np.abs(delta).max()))
                squares += float(np.square(delta).sum())
                changed = True
    one.drop_pages()
    two.drop_pages()
    return {"changed": changed, "max_abs": largest, "squares": squares, "size": size}


def _summarize(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One tensor or a part; relative_l2 is ||b - a|| / ||a||, None where that is not finite."""
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
    """The part of the model that a tensor, by our name, belongs to: conv stem, encoder layer 0 …"""
    part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "other")
    return f"{part} {name.split('.')[3]}" if part == "encoder layer" else part


def _sort_key(name: str) -> tuple[int, list[str]]:
    """Parts in the order of the forward pass, layer 10 after layer 9."""
    part = next((n for n, prefix in enumerate(PARTS) if name.startswith(prefix)), len(PARTS))
    return part, [word.zfill(4) if word.isdecimal() else word for word in name.split(".")]


def describe(result: Mapping[str, Any]) -> list[str]:
    """The lines of a table: each part, and the tensors that changed most."""
    lines = [f"{'part':<24}{'changed':>12}{'max |d|':>11}{'|d| / |a|':>11}"]
    lines += [_row(part, summary) for part, summary in result["parts"].items()]
    changed = [(name, tensor) for name, tensor in result["tensors"].items() if tensor["changed"]]
    changed.sort(key=lambda item: -item[1]["max_abs"])
    if changed:
        width = max(len(name) for name, _ in changed[:NUM_SHOWN])
        lines += ["", "changed most"]
        lines += [_row(name, tensor, width) for name, tensor in changed[:NUM_SHOWN]]
    if len(changed) > NUM_SHOWN:
        lines.append(f"and {len(changed) - NUM_SHOWN} more: --json lists all")
    for name, (one, two) in result["other_shape"].items():
        lines.append(f"other shape: {name}, {one} and {two}")
    for side in ("first", "second"):
        lines += [f"only in {result[side]}: {name}" for name in result[f"only_in_{side}"]]
    return [*lines, "", _verdict(result)]


def _row(name: str, summary: Mapping[str, Any], width: int = 24) -> str:
    if not summary["changed"]:
        return f"{name:<{width}}   identical"
    relative = "" if summary["relative_l2"] is None else f"{summary['relative_l2']:.2e}"
    changed = f"{summary['changed']} of {summary['tensors']}"
    return f"{name:<{width}}{changed:>12}{summary['max_abs']:>11.2e}{relative:>11}"


def _verdict(result: Mapping[str, Any]) -> str:
    if result["identical"]:
        return "identical"
    verdicts = []
    for name, part in (("backbone", BACKBONE), ("head", "head")):
        verdict = "not in both, or of another shape"
        if summary := result["parts"].get(part):
            verdict = "changed" if summary["changed"] else "identical"
        verdicts.append(f"{name}: {verdict}")
    return "; ".join(verdicts)
