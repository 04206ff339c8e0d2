"""Write weights: our safetensors, and the original's two `.pt` layouts.

Ours carries what a shape cannot say (signal, labels, sizes) as JSON metadata. The original's
layouts hold its top-level keys in its order, so that its tools find what they look for. Every file
is written aside, synced and renamed: a reader sees the old one or the new one, never half.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.weights.mapping import check_fit, expected_shapes, file_key
from hpc_ecg.weights.reading import FIXED, OUR_FORMAT
from hpc_ecg.writing import write_whole

Weights = ECGClassifier | Mapping[str, Tensor]
LAYOUTS = {
    "base_ssl": ("wav2vec2_cmsc", "ecg_pretraining"),
    "classifier": ("ecg_transformer_classifier", "ecg_classification"),
}
LATENT_VARS, LATENT_GROUPS = 320, 2  # the published codebook


def save_model(
    path: str | Path,
    model: Weights,
    architecture: Architecture,
    labels: list[str],
    signal: SignalSpec,
) -> None:
    """Write `model` (the module, or a full state dict gathered from ranks) as our safetensors."""
    tensors = _plain_tensors(model, architecture, str(path))
    if tensors["head.weight"].shape[0] != len(labels):
        raise ValueError(
            f"{path}: {len(labels)} label names for a head of {tensors['head.weight'].shape[0]}"
        )
    metadata = {
        "format": OUR_FORMAT,
        "architecture": json.dumps(architecture_to_settings(architecture)),
        "labels": json.dumps(labels),
        "signal": json.dumps(asdict(signal)),
    }
    write_whole(Path(path), lambda aside: save_file(tensors, aside, metadata))


def export_original(
    path: str | Path,
    model: Weights,
    architecture: Architecture,
    layout: str = "classifier",
    seed: int = 0,
) -> None:
    """Write the original's `.pt`: `classifier` (209 tensors at full size) or `base_ssl` (215: no
    head, and the 8 tensors that only pre-training uses filled at random from `seed`)."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    tensors = _plain_tensors(model, architecture, str(path))
    num_labels = tensors["head.weight"].shape[0]
    if layout == "base_ssl":
        tensors = {name: t for name, t in tensors.items() if not name.startswith("head.")}
    named = {file_key(name, layout): tensor for name, tensor in tensors.items()}
    if layout == "base_ssl":
        extra = _pretraining_tensors(architecture, seed)
        named = {"mask_emb": extra.pop("mask_emb")} | named | extra
    content: dict[str, Any] = {
        "args": None,
        "cfg": _cfg(architecture, layout, num_labels),
        "model": named,
        "criterion": None,
        "optimizer_history": [],
        "task_state": {},
        "extra_state": {},
    }
    write_whole(Path(path), lambda aside: torch.save(content, aside))


def _plain_tensors(model: Weights, architecture: Architecture, source: str) -> dict[str, Tensor]:
    state = model.state_dict() if isinstance(model, ECGClassifier) else model
    tensors = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in state.items()}
    num_labels = tensors["head.weight"].shape[0] if "head.weight" in tensors else 1
    check_fit(tensors, expected_shapes(architecture, num_labels), source)
    return tensors


def _cfg(architecture: Architecture, layout: str, num_labels: int) -> dict[str, Any]:
    model_name, task_name = LAYOUTS[layout]
    fixed = {name: value for name, (value, _) in FIXED.items()}
    model = {"_name": model_name, **architecture_to_settings(architecture), **fixed}
    if layout == "base_ssl":
        sizes = {"latent_vars": LATENT_VARS, "latent_groups": LATENT_GROUPS, "latent_dim": 0}
        model |= {**sizes, "final_dim": _final_dim(architecture), "quantize_targets": True}
    else:
        model |= {"num_labels": num_labels, "feature_grad_mult": 0.0, "apply_mask": False}
    task = {"_name": task_name, "normalize": False, "filter": False, "enable_padding": True}
    return {"_name": None, "model": model, "task": task}


def _final_dim(architecture: Architecture) -> int:
    """A third of the width, as published (256 of 768), and divisible by the groups."""
    return max(architecture.encoder_embed_dim // (3 * LATENT_GROUPS), 1) * LATENT_GROUPS


def _pretraining_tensors(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    final, codes = _final_dim(architecture), LATENT_VARS * LATENT_GROUPS
    width, features = architecture.encoder_embed_dim, architecture.conv_feature_layers[-1][0]
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
    return {n: torch.randn(shape, generator=generator) * 0.02 for n, shape in shapes.items()}
