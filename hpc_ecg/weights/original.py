"""What surrounds the tensors in a `.pt` of the original (fairseq-signals): build it, copy its
settings, and find what is private in it.

The original's loader needs an entry of the training's history and the state of an iterator even
where nothing was trained; `original_layout.json` holds neutral values for everything it writes. No
torch here. The content of a file comes from `archive.read_archive`; its containers may refer to
each other in any way.
"""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.weights.mapping import HasShape
from hpc_ecg.weights.opcodes import Placeholder
from hpc_ecg.weights.stored_tensor import StoredTensor

OPTIMIZER = "last_optimizer_state"
MIN_SCORES = 20  # a shorter list of numbers may be a setting
MAX_SETTINGS = 20_000  # the published files have 300


@cache
def _template() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("original_layout.json").read_text())


def layout_of(tensors: Mapping[str, HasShape]) -> str:
    """The layout that weights, by our names, are written in."""
    return "classifier" if "head.weight" in tensors else "base_ssl"


def num_labels_of(tensors: Mapping[str, HasShape]) -> int | None:
    """Rows of the head; None = no head."""
    return tensors["head.weight"].shape[0] if "head.weight" in tensors else None


def build_content(layout: str, cfg: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    """All of a file that states nothing about a training. `model`: tensors by the file's keys."""
    return {
        "args": None,
        "cfg": cfg,
        "model": dict(model),
        "criterion": None,
        "optimizer_history": [deepcopy(_template()[layout]["history"])],
        "task_state": {},
        "extra_state": deepcopy(_template()["extra_state"]),
    }


def build_cfg(
    layout: str, model: Mapping[str, HasShape], architecture: Architecture, num_labels: int | None
) -> dict[str, Any]:
    """Every section and key of the original's cfg, with the sizes of these weights and neutral
    paths."""
    cfg = deepcopy(_template()[layout]["cfg"])
    cfg["model"] |= architecture_to_settings(architecture)
    if layout == "base_ssl":
        cfg["model"] |= _codebook_sizes(model)
    else:
        cfg["model"]["num_labels"] = num_labels
    return cfg


def _codebook_sizes(model: Mapping[str, HasShape]) -> dict[str, int]:
    """Sizes of the pre-training tensors; for the original, latent_dim 0 means final_dim."""
    try:
        _, codes, code_width = model["quantizer.vars"].shape
        final, inner = model["project_q.weight"].shape
        groups = inner // code_width
        sizes = {"latent_vars": codes // groups, "latent_groups": groups, "final_dim": final}
    except (KeyError, ValueError, ZeroDivisionError):
        raise ValueError(
            "the layout of base_ssl needs the codebook of pre-training (quantizer.vars, "
            "project_q …), which these weights lack or have in another shape"
        ) from None
    return sizes | {"latent_dim": 0 if inner == final else inner}


def copy_cfg(cfg: Any, *, neutral: bool) -> Any:
    """A copy of a file's cfg; `neutral` replaces paths and addresses. ValueError: it is not a tree
    of plain values."""
    num_left = MAX_SETTINGS

    def copy(value: Any, key: str) -> Any:
        nonlocal num_left
        num_left -= 1
        if num_left < 0 or isinstance(value, Placeholder | StoredTensor):
            raise ValueError("its cfg is not a tree of plain settings and cannot be carried over")
        if isinstance(value, dict):
            return {name: copy(item, str(name)) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copy(item, key) for item in value)
        return _neutral(key, value) if neutral and isinstance(value, str) else value

    try:
        return copy(cfg, "cfg")
    except RecursionError:
        raise ValueError("its cfg is not a tree of plain settings: it contains itself") from None


def _neutral(key: str, text: str) -> str | None:
    known = _template()["neutral"]
    if key in known:
        return known[key]
    return "removed" if _is_location(text) else text


def _is_location(text: str) -> bool:
    """Whether a text is a path or an address; `ext://sys.stdout` is neither."""
    return ("/" in text or "\\" in text) and not text.startswith("ext://")


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value inside dicts, lists and tuples with its dotted path. Each container is visited
    once, so one that is referred to a million times costs nothing."""
    seen: set[int] = set()
    pending = [(path, value)]
    while pending:
        path, item = pending.pop()
        if id(item) in seen:
            continue
        if isinstance(item, dict | list | tuple):
            seen.add(id(item))
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            inner = [(f"{path[:160]}.{str(key)[:40]}", part) for key, part in pairs]
            pending += reversed(inner)
        yield path, item


def patient_values(content: Mapping[str, Any]) -> dict[str, int]:
    """Dotted path -> number of values, of arrays and long lists in the state of a training: scores
    and labels of the records that it was validated on."""
    state = {k: v for k, v in content.items() if k not in ("cfg", "model", OPTIMIZER)}
    counts = {}
    for path, item in _walk(state, ""):
        count = 0
        if isinstance(item, Placeholder | StoredTensor):
            count = prod(item.shape) if item.shape else 0
        elif isinstance(item, list | tuple):
            count = sum(isinstance(part, int | float) for part in item)
            count = count if count >= MIN_SCORES else 0
        if count > 1:
            counts[path[1:]] = count
    return counts


def machine_paths(cfg: Any) -> dict[str, str]:
    """Dotted path in the cfg -> the path or address on the training's machine."""
    texts = ((path, text) for path, text in _walk(cfg, "cfg") if isinstance(text, str))
    return {path: text for path, text in texts if _is_location(text)}


def count_tensors(value: Any) -> int:
    return sum(isinstance(item, StoredTensor) for _, item in _walk(value, ""))
