"""Write weights: our safetensors, and the original's two `.pt` layouts.

Tensors come in under our names (`backbone.`, `head.`, and `pretraining.` for what only a
base_ssl.pt holds), in any float type, and are written as they are. `Facts` is what a shape cannot
say: JSON texts in the metadata of our files, and in `extra_state["hpc_ecg"]` of a `.pt`. Every file
is written aside, synced and renamed: a reader sees the old one or the new one, never half.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.weights import original
from hpc_ecg.weights.mapping import KEPT, PRETRAINING, check_fit, expected_shapes, file_key
from hpc_ecg.weights.reading import OUR_FORMAT, Facts

Weights = ECGClassifier | Mapping[str, Tensor]
LATENT_VARS, LATENT_GROUPS = 320, 2  # the published codebook


def save_model(
    path: str | Path,
    model: Weights,
    architecture: Architecture,
    labels: list[str],
    signal: SignalSpec,
    provenance: list[dict[str, Any]] | None = None,
) -> None:
    """Write `model` (the module, or a full state dict gathered from ranks) as our safetensors in
    float32. ValueError: tensors or label names that do not fit."""
    facts = Facts(
        architecture=architecture, labels=labels, signal=signal, provenance=provenance or []
    )
    write_safetensors(path, _plain_tensors(model), facts)


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Our file, with or without a head. ValueError: tensors or label names that do not fit."""
    check_tensors(tensors, facts, str(path))
    sizes = json.dumps(architecture_to_settings(facts.architecture))
    metadata = {"format": OUR_FORMAT, "architecture": sizes, **facts.texts()}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def write(aside: Path) -> None:
        aside.touch()
        mode = aside.stat().st_mode
        save_file(whole, aside, metadata)
        aside.chmod(mode)  # the library makes a file that only its owner can read

    write_atomically(Path(path), write)


def write_original(path: str | Path, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """A fresh `.pt` of the original: `classifier` (209 tensors at full size), or without a head
    `base_ssl` (215). ValueError: tensors or label names that do not fit."""
    num_labels = check_tensors(tensors, facts, str(path))
    layout = "classifier" if num_labels else "base_ssl"
    names = list(expected_shapes(facts.architecture, num_labels))
    if layout == "base_ssl":
        mask, *others = (KEPT + name for name in PRETRAINING)
        names = [mask, *names, *others]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(
                f"{path}: the layout of base_ssl needs the {len(PRETRAINING)} tensors of "
                f"pre-training, these weights lack {missing[0]}; write a .safetensors"
            )
    model = {file_key(name, layout): tensors[name] for name in names}
    content = original.fresh(layout, model, facts.architecture, num_labels)
    save_original(path, content, facts)


def save_original(path: str | Path, content: dict[str, Any], facts: Facts) -> None:
    """Write the content of a `.pt`, and the facts with it."""
    if facts.texts():
        state = content.get("extra_state")
        ours = {original.OURS: {"format": OUR_FORMAT, **facts.texts()}}
        content["extra_state"] = (state if isinstance(state, dict) else {}) | ours
    write_atomically(Path(path), lambda aside: _save(content, aside))


def _save(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch notes its name inside
        torch.save(content, file)


def export_original(
    path: str | Path,
    model: Weights,
    architecture: Architecture,
    layout: str = "classifier",
    seed: int = 0,
) -> None:
    """Write a model as the original's `.pt`; for `base_ssl` without the head, and the 8 tensors
    that only pre-training uses are filled at random from `seed`."""
    if layout not in original.LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(original.LAYOUTS)}, got {layout!r}")
    tensors = _plain_tensors(model)
    check_tensors(tensors, Facts(architecture=architecture), str(path))
    if layout == "base_ssl":
        tensors = {name: t for name, t in tensors.items() if not name.startswith("head.")}
        tensors |= _pretraining_tensors(architecture, seed)
    write_original(path, tensors, Facts(architecture=architecture))


def check_tensors(tensors: Mapping[str, Tensor], facts: Facts, source: str) -> int | None:
    """Number of labels, None without a head. ValueError unless names, shapes and labels fit."""
    head = tensors.get("head.weight")
    num_labels = None if head is None else head.shape[0]
    model = {name: tensor for name, tensor in tensors.items() if not name.startswith(KEPT)}
    check_fit(model, expected_shapes(facts.architecture, num_labels), source)
    if facts.labels is not None and len(facts.labels) != num_labels:
        what = f"a head of {num_labels}" if num_labels else "weights without a head"
        raise ValueError(f"{source}: {len(facts.labels)} label names for {what}")
    return num_labels


def _plain_tensors(model: Weights) -> dict[str, Tensor]:
    state = model.state_dict() if isinstance(model, ECGClassifier) else model
    return {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in state.items()}


def _pretraining_tensors(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """As published: final_dim is a third of the width, and divisible by the groups."""
    width, features = architecture.encoder_embed_dim, architecture.conv_feature_layers[-1][0]
    final = max(width // (3 * LATENT_GROUPS), 1) * LATENT_GROUPS
    codes = LATENT_VARS * LATENT_GROUPS
    shapes = {
        "mask_emb": (width,),
        "quantizer.vars": (1, codes, final // LATENT_GROUPS),
        "quantizer.weight_proj.weight": (codes, features),
        "quantizer.weight_proj.bias": (codes,),
        "project_q.weight": (final, final),
        "project_q.bias": (final,),
        "final_proj.weight": (final, width),
        "final_proj.bias": (final,),
    }
    generator = torch.Generator().manual_seed(seed)
    return {
        KEPT + name: torch.randn(shape, generator=generator) * 0.02
        for name, shape in shapes.items()
    }
