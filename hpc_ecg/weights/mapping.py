"""The file's keys <-> our parameter names, strictly by name.

    kind         file key                          our name
    base_ssl     <name>                            backbone.<name>
    classifier   encoder.<name>, proj.<w|b>        backbone.<name>, head.<w|b>
    hpc_ecg      (ours already)

`<name>` is the name in base_ssl.pt (`encoder.layers.0.fc1.weight`, `layer_norm.weight` …). Exactly
one leading `encoder.` is taken off, and only in a classifier: in base_ssl `layer_norm` is the norm
of the stem's features and `encoder.layer_norm` the encoder's, so a blind replacement mixes them up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.transformer import build_on_meta

# Newer torch names the two tensors of weight norm otherwise.
RENAMED = {
    "conv_pos.pos_conv.0.parametrizations.weight.original0": "conv_pos.pos_conv.0.weight_g",
    "conv_pos.pos_conv.0.parametrizations.weight.original1": "conv_pos.pos_conv.0.weight_v",
}

PRETRAINING = {
    "mask_emb": "stands for masked tokens in pre-training; fine-tuning masks none",
    "quantizer.vars": "codebook of the pre-training targets",
    "quantizer.weight_proj.weight": "codebook of the pre-training targets",
    "quantizer.weight_proj.bias": "codebook of the pre-training targets",
    "project_q.weight": "projects the pre-training targets",
    "project_q.bias": "projects the pre-training targets",
    "final_proj.weight": "projects tokens onto the pre-training targets",
    "final_proj.bias": "projects tokens onto the pre-training targets",
}


@dataclass(frozen=True, kw_only=True)
class NameMap:
    ours: dict[str, str]
    """Our parameter name -> the file's key."""
    ignored: dict[str, str]
    """The file's keys that are left out on purpose -> the reason."""


def kind_of_keys(keys: Iterable[str], source: str) -> str:
    """`base_ssl` or `classifier`, by the names alone. ValueError: neither."""
    keys = set(keys)
    if any(key.startswith("encoder.encoder.") for key in keys) or "proj.weight" in keys:
        return "classifier"
    if any(key.startswith("encoder.layers.") for key in keys):
        return "base_ssl"
    raise ValueError(
        f"{source}: weights of another model: expected names such as encoder.layers.0.fc1.weight "
        f"(base_ssl) or encoder.encoder.layers.0.fc1.weight (classifier), got {_some(keys, 3)}"
    )


def map_names(keys: Iterable[str], kind: str) -> NameMap:
    """Our name for each key of a file. A key of no known pattern keeps its own name, so that
    `check_fit` reports it as unexpected."""
    ours: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key in keys:
        name = key.removeprefix("encoder.") if kind == "classifier" else key
        of_backbone = kind == "base_ssl" or (kind == "classifier" and name != key)
        if of_backbone and name in PRETRAINING:
            ignored[key] = PRETRAINING[name]
            continue
        target = key
        if of_backbone:
            target = "backbone." + RENAMED.get(name, name)
        elif kind == "classifier" and key in ("proj.weight", "proj.bias"):
            target = "head." + key.removeprefix("proj.")
        ours[target if target not in ours else key] = key  # a second key for one name: unexpected
    return NameMap(ours=ours, ignored=ignored)


def file_key(name: str, kind: str) -> str:
    """The file's key of one of our parameter names: the way back, for export."""
    if name.startswith("head."):
        return "proj." + name.removeprefix("head.")
    return ("encoder." if kind == "classifier" else "") + name.removeprefix("backbone.")


def expected_shapes(
    architecture: Architecture, num_labels: int | None
) -> dict[str, tuple[int, ...]]:
    """Our parameter names -> shapes; without the head if `num_labels` is None."""
    parameters = build_on_meta(architecture, num_labels or 1).named_parameters()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    return {name: s for name, s in shapes.items() if num_labels or not name.startswith("head.")}


def check_fit(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """ValueError that lists both sides unless names and shapes agree exactly (our names)."""
    missing = shapes.keys() - tensors.keys()
    unexpected = tensors.keys() - shapes.keys()
    other = {
        f"{name} (file {tuple(tensors[name].shape)}, model {shapes[name]})"
        for name in shapes.keys() & tensors.keys()
        if tuple(tensors[name].shape) != shapes[name]
    }
    found = {"not in the file": missing, "not in the model": unexpected, "of other shape": other}
    problems = [f"{len(names)} {what}: {_some(names, 6)}" for what, names in found.items() if names]
    if problems:
        raise ValueError(f"{source}: weights do not fit the model: " + "; ".join(problems))


def _some(names: Iterable[str], count: int) -> str:
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
