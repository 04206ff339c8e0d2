"""Map a file's keys to our parameter names and back, strictly by name.

    kind         file key                          our name
    base_ssl     <name>                            backbone.<name>
    classifier   encoder.<name>, proj.<w|b>        backbone.<name>, head.<w|b>
    hpc_ecg      <our name>                        the same

`<name>` is the name in base_ssl.pt (`encoder.layers.0.fc1.weight`, `layer_norm.weight` …). Exactly
one leading `encoder.` is removed, and only in a classifier: in base_ssl `layer_norm` normalizes the
stem's features and `encoder.layer_norm` the encoder's output; removing it everywhere would confuse
the two.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from hpc_ecg.model.architecture import Architecture, format_conv_layers

# Newer versions of torch use other names for the two tensors of weight norm.
RENAMED = {
    "conv_pos.pos_conv.0.parametrizations.weight.original0": "conv_pos.pos_conv.0.weight_g",
    "conv_pos.pos_conv.0.parametrizations.weight.original1": "conv_pos.pos_conv.0.weight_v",
}

LAYOUTS = ("base_ssl", "classifier")
"""Kinds of the original's files."""

# Tensors of a base_ssl.pt outside the backbone, by our names, and why a model ignores them. Our
# files keep them for the conversion back.
PRETRAINING = {
    "pretraining.mask_emb": "stands for masked tokens in pre-training; fine-tuning masks none",
    "pretraining.quantizer.vars": "codebook of the pre-training targets",
    "pretraining.quantizer.weight_proj.weight": "codebook of the pre-training targets",
    "pretraining.quantizer.weight_proj.bias": "codebook of the pre-training targets",
    "pretraining.project_q.weight": "projects the pre-training targets",
    "pretraining.project_q.bias": "projects the pre-training targets",
    "pretraining.final_proj.weight": "projects tokens onto the pre-training targets",
    "pretraining.final_proj.bias": "projects tokens onto the pre-training targets",
}


class HasShape(Protocol):
    """A torch tensor, or a tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def kind_of_keys(keys: Iterable[str]) -> str:
    """The kind of a file without our metadata, by its keys alone: `base_ssl`, `classifier`, our
    names (`hpc_ecg`) or `unknown`."""
    keys = list(keys)
    if any(key.startswith("encoder.encoder.") for key in keys) or "proj.weight" in keys:
        return "classifier"
    if any(key.startswith("encoder.layers.") for key in keys):
        return "base_ssl"
    return "hpc_ecg" if any(key.startswith("backbone.") for key in keys) else "unknown"


def map_names(keys: Iterable[str], kind: str) -> dict[str, str]:
    """Our name -> the file's key, for each key. An unknown key, or a second key for the same name,
    gets a name that no model has, so that `check_fit` reports it."""
    names: dict[str, str] = {}
    for key in keys:
        suffix = key.removeprefix("encoder.") if kind == "classifier" else key
        name = f"{key} (the file's)"
        if kind == "base_ssl" or (kind == "classifier" and suffix != key):
            is_ignored = f"pretraining.{suffix}" in PRETRAINING
            name = ("pretraining." if is_ignored else "backbone.") + RENAMED.get(suffix, suffix)
        elif kind == "classifier" and key in ("proj.weight", "proj.bias"):
            name = key.replace("proj.", "head.")
        elif kind == "hpc_ecg":
            name = key
        names[name if name not in names else f"{key} (a second)"] = key
    return names


def file_key(name: str, kind: str) -> str:
    """The key that one of our names has in a file of this kind, for export."""
    if name in PRETRAINING:
        return name.removeprefix("pretraining.")
    if name.startswith("head."):
        return "proj." + name.removeprefix("head.")
    return ("encoder." if kind == "classifier" else "") + name.removeprefix("backbone.")


def expected_shapes(
    architecture: Architecture, num_labels: int | None
) -> dict[str, tuple[int, ...]]:
    """Our parameter names -> shapes, in the model's order; no head if `num_labels` is None.

    Written out so that a file can be checked without torch; a test compares it with the model."""
    a, width = architecture, architecture.encoder_embed_dim
    inner, features = a.encoder_ffn_embed_dim, a.conv_feature_layers[-1][0]
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    for layer in range(a.encoder_layers):
        prefix = f"backbone.encoder.layers.{layer}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            add(f"{prefix}self_attn.{name}", width, width)
        add(f"{prefix}self_attn_layer_norm", width)
        add(f"{prefix}fc1", inner, width)
        add(f"{prefix}fc2", width, inner)
        add(f"{prefix}final_layer_norm", width)
    add("backbone.encoder.layer_norm", width)
    channels_in = a.in_d
    for index, (channels, kernel, _) in enumerate(a.conv_feature_layers):
        name = f"backbone.feature_extractor.conv_layers.{index}"
        add(f"{name}.0", channels, channels_in, kernel, bias=False)
        if index == 0:
            add(f"{name}.2", channels)
        channels_in = channels
    if features != width:
        add("backbone.post_extract_proj", width, features)
    positions = "backbone.conv_pos.pos_conv.0."
    shapes[f"{positions}bias"] = (width,)
    shapes[f"{positions}weight_g"] = (1, 1, a.conv_pos)
    shapes[f"{positions}weight_v"] = (width, width // a.conv_pos_groups, a.conv_pos)
    add("backbone.layer_norm", features)
    if num_labels:
        add("head", num_labels, width)
    return shapes


def deduce_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int | str]:
    """The sizes that shapes (by our names) imply, under the names of `cfg.model`. The number of
    heads and the strides of the stem leave no trace; each stride is assumed to equal its kernel.
    Empty if a needed tensor is missing or has other axes."""
    stem = "backbone.feature_extractor.conv_layers."
    layers = {name for name in shapes if name.startswith("backbone.encoder.layers.")}
    convs = [n for n in shapes if n.startswith(stem) and n.endswith(".0.weight")]
    convs.sort(key=lambda name: (len(name), name))  # 10 after 9
    try:
        kernels = [(shapes[name][0], shapes[name][2], shapes[name][2]) for name in convs]
        inner, width = shapes["backbone.encoder.layers.0.fc1.weight"]
        _, per_group, taps = shapes["backbone.conv_pos.pos_conv.0.weight_v"]
        return {
            "encoder_layers": len({name.split(".")[3] for name in layers}),
            "encoder_embed_dim": width,
            "encoder_ffn_embed_dim": inner,
            "conv_feature_layers": format_conv_layers(tuple(kernels)),
            "conv_pos": taps,
            "conv_pos_groups": width // per_group,
            "in_d": shapes[convs[0]][1],
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return {}


def check_fit(tensors: Mapping[str, HasShape], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError lists the differences unless names (ours) and shapes agree exactly."""
    differences = {
        "not in the file": shapes.keys() - tensors.keys(),
        "not in the model": tensors.keys() - shapes.keys(),
        "of other shape": {
            f"{name} (file {tuple(tensors[name].shape)}, model {shapes[name]})"
            for name in shapes.keys() & tensors.keys()
            if tuple(tensors[name].shape) != shapes[name]
        },
    }
    num_shown = 6 if sum(map(bool, differences.values())) == 1 else 2
    problems = [
        f"{len(names)} {problem}: {abbreviate(sorted(names), num_shown)}"
        for problem, names in differences.items()
        if names
    ]
    if problems:
        raise ValueError("weights do not fit the model: " + "; ".join(problems))


def abbreviate(names: Sequence[str], count: int = 6) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
