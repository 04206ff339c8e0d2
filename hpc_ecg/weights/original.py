"""What lies around the tensors in the original's `.pt`: made fresh, carried over, or left out.

The original's loader wants a history with an entry and an iterator's state even where nothing was
trained; `original_layout.json` holds a neutral form of all that it writes. No torch here: a file's
content is data of `archive.read_archive`, and containers in it may refer to each other at will.
"""

import json
from collections.abc import Container, Iterator, Mapping
from copy import deepcopy
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.weights.mapping import HasShape
from hpc_ecg.weights.pickles import Inert
from hpc_ecg.weights.stored import StoredTensor

LAYOUTS = ("base_ssl", "classifier")
OPTIMIZER, OURS = "last_optimizer_state", "hpc_ecg"
MANY = 20  # so many numbers in a row are no longer a setting
MOST_SETTINGS = 20_000  # the published files have 300


@cache
def _template() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("original_layout.json").read_text())


def layout_of(names: Container[str]) -> str:
    """Of weights under our names."""
    return "classifier" if "head.weight" in names else "base_ssl"


def fresh(
    layout: str, model: Mapping[str, Any], architecture: Architecture, num_labels: int | None
) -> dict[str, Any]:
    """The whole content for `model` (tensors under the file's keys)."""
    return {
        "args": None,
        "cfg": fresh_cfg(layout, model, architecture, num_labels),
        "model": dict(model),
        **fresh_state(layout),
    }


def fresh_state(layout: str) -> dict[str, Any]:
    """What follows the tensors in a file that says nothing of a training."""
    return {
        "criterion": None,
        "optimizer_history": [deepcopy(_template()[layout]["history"])],
        "task_state": {},
        "extra_state": deepcopy(_template()["extra_state"]),
    }


def fresh_cfg(
    layout: str, model: Mapping[str, HasShape], architecture: Architecture, num_labels: int | None
) -> dict[str, Any]:
    """All sections and keys of the original, with the sizes of these weights and neutral paths."""
    cfg = deepcopy(_template()[layout]["cfg"])
    cfg["model"] |= architecture_to_settings(architecture)
    if layout == "base_ssl":
        cfg["model"] |= _codebook_sizes(model)
    else:
        cfg["model"]["num_labels"] = num_labels
    return cfg


def _codebook_sizes(model: Mapping[str, HasShape]) -> dict[str, int]:
    """From the pre-training tensors; the original takes latent_dim 0 to mean final_dim."""
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


def own_cfg(content: Mapping[str, Any], *, neutral: bool) -> dict[str, Any]:
    """A copy of a `.pt`'s own cfg; `neutral`: without what names a machine. ValueError: it is no
    tree of plain values."""
    try:
        return _plain(content["cfg"], "cfg", neutral, [MOST_SETTINGS])
    except RecursionError:
        raise ValueError("its cfg is no tree of plain settings: it lies in itself") from None


def _plain(value: Any, key: str, neutral: bool, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0 or isinstance(value, Inert | StoredTensor):
        raise ValueError("its cfg is no tree of plain settings and cannot be carried over")
    if isinstance(value, dict):
        return {k: _plain(v, str(k), neutral, left) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, key, neutral, left) for item in value)
    return _neutral(key, value) if neutral and isinstance(value, str) else value


def _neutral(key: str, text: str) -> str | None:
    known = _template()["neutral"]
    if key in known:
        return known[key]
    return "removed" if is_of_a_machine(text) else text


def is_of_a_machine(text: str) -> bool:
    """A path or an address; `ext://sys.stdout` is neither."""
    return ("/" in text or "\\" in text) and not text.startswith("ext://")


def walk(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All that lies inside dicts, lists and tuples with its place; each container once, so that
    one which is referred to a million times costs nothing."""
    seen: set[int] = set()
    todo = [(place, value)]
    while todo:
        place, item = todo.pop()
        if id(item) in seen:
            continue
        if isinstance(item, dict | list | tuple):
            seen.add(id(item))
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            inner = [(f"{place[:160]}.{str(key)[:40]}", part) for key, part in pairs]
            todo += reversed(inner)
        yield place, item


def scores_of_people(content: Mapping[str, Any]) -> dict[str, int]:
    """Place -> number of values, of arrays and long lists in the state of a training: scores and
    labels of the records that it was validated on."""
    state = {k: v for k, v in content.items() if k not in ("cfg", "model", OPTIMIZER)}
    found = {}
    for place, item in walk(state, ""):
        count = 0
        if isinstance(item, Inert | StoredTensor):
            count = prod(item.shape) if item.shape else 0
        elif isinstance(item, list | tuple):
            count = sum(isinstance(part, int | float) for part in item)
            count = count if count >= MANY else 0
        if count > 1:
            found[place[1:]] = count
    return found


def machine_paths(cfg: Any) -> dict[str, str]:
    """Place in the cfg -> what it says of the machine of the training."""
    texts = ((place, text) for place, text in walk(cfg, "cfg") if isinstance(text, str))
    return {place: text for place, text in texts if is_of_a_machine(text)}


def num_tensors(value: Any) -> int:
    return sum(isinstance(item, StoredTensor) for _, item in walk(value, ""))
