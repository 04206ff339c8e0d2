"""The file's keys <-> our parameter names, strictly by name.

    kind         file key                          our name
    base_ssl     <name>                            backbone.<name>
    classifier   encoder.<name>, proj.<w|b>        backbone.<name>, head.<w|b>
    hpc_ecg      <our name>                        the same; pretraining.<name> is ignored

`<name>` is the name in base_ssl.pt (`encoder.layers.0.fc1.weight`, `layer_norm.weight` …). Exactly
one leading `encoder.` is taken off, and only in a classifier: in base_ssl `layer_norm` is the norm
of the stem's features and `encoder.layer_norm` the encoder's, so a blind replacement mixes them up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hpc_ecg.model.architecture import Architecture, format_conv_layers

# Newer torch names the two tensors of weight norm otherwise.
RENAMED = {
    "conv_pos.pos_conv.0.parametrizations.weight.original0": "conv_pos.pos_conv.0.weight_g",
    "conv_pos.pos_conv.0.parametrizations.weight.original1": "conv_pos.pos_conv.0.weight_v",
}

# In our own files: what a base_ssl.pt holds besides the backbone, kept for the way back.
KEPT = "pretraining."
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


class HasShape(Protocol):
    """A tensor, of torch or in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class NameMap:
    ours: dict[str, str]
    """Our parameter name -> the file's key."""
    kept: dict[str, str]
    """pretraining.<name>, of tensors that a model leaves out -> the file's key."""

    @property
    def all(self) -> dict[str, str]:
        return self.ours | self.kept

    @property
    def ignored(self) -> dict[str, str]:
        """The file's keys that are left out on purpose -> the reason."""
        return {key: PRETRAINING[name.removeprefix(KEPT)] for name, key in self.kept.items()}


def kind_of_keys(keys: Iterable[str], source: str) -> str:
    """`base_ssl` or `classifier`, by the names alone. ValueError: neither."""
    keys = sorted(keys)
    if any(key.startswith("encoder.encoder.") for key in keys) or "proj.weight" in keys:
        return "classifier"
    if any(key.startswith("encoder.layers.") for key in keys):
        return "base_ssl"
    raise ValueError(
        f"{source}: weights of another model: expected names such as encoder.layers.0.fc1.weight "
        f"(base_ssl) or encoder.encoder.layers.0.fc1.weight (classifier), got {some(keys, 3)}"
    )


def map_names(keys: Iterable[str], kind: str) -> NameMap:
    """Our name for each key of a file. A key of no known pattern, or a second one for the same
    name, gets a name that no model has, so that `check_fit` reports it."""
    names: dict[str, str] = {}
    for key in keys:
        name = key.removeprefix("encoder.") if kind == "classifier" else key
        target = f"{key} (the file's)"
        if kind == "base_ssl" or (kind == "classifier" and name != key):
            part = KEPT if name in PRETRAINING else "backbone."
            target = part + RENAMED.get(name, name)
        elif kind == "classifier" and key in ("proj.weight", "proj.bias"):
            target = "head." + key.removeprefix("proj.")
        elif kind == "hpc_ecg":
            target = key
        names[target if target not in names else f"{key} (a second)"] = key
    kept = {KEPT + name: names.pop(KEPT + name) for name in PRETRAINING if KEPT + name in names}
    return NameMap(ours=names, kept=kept)


def file_key(name: str, kind: str) -> str:
    """The file's key of one of our parameter names: the way back, for export."""
    if name.startswith(KEPT):
        return name.removeprefix(KEPT)
    if name.startswith("head."):
        return "proj." + name.removeprefix("head.")
    return ("encoder." if kind == "classifier" else "") + name.removeprefix("backbone.")


def expected_shapes(
    architecture: Architecture, num_labels: int | None
) -> dict[str, tuple[int, ...]]:
    """Our parameter names -> shapes, in the model's order; without the head if `num_labels` is
    None. Written out, so that a file is judged without torch; a test holds it against the model."""
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
    """What the shapes (our names) tell of the sizes, under the names of `cfg.model`. The number of
    heads and the strides of the stem leave no trace; a stride is taken to be the kernel. Empty
    where a needed tensor is missing or has other axes."""
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


def check_fit(
    tensors: Mapping[str, HasShape], shapes: Mapping[str, tuple[int, ...]], source: str
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
    few = 6 if sum(map(bool, found.values())) == 1 else 2
    problems = [
        f"{len(names)} {what}: {some(sorted(names), few)}" for what, names in found.items() if names
    ]
    if problems:
        raise ValueError(f"{source}: weights do not fit the model: " + "; ".join(problems))


def some(names: Sequence[str], count: int = 6) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
