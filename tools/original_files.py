"""Write models in the original's `.pt` layout, in place of the published files in the demo, the
benchmarks and the tests."""

from pathlib import Path

import torch
from torch import Tensor

from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.weights.export import check_weights, write_original
from hpc_ecg.weights.mapping import LAYOUTS
from hpc_ecg.weights.metadata import Metadata

LATENT_VARS, LATENT_GROUPS = 320, 2  # the published codebook
# As deep as the published model, so that the files have its 215 and 209 keys, but narrower.
SMALL = Architecture(
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=2,
    conv_feature_layers=((16, 2, 2), (16, 2, 2), (16, 2, 2), (16, 4, 4)),
    conv_pos=16,
    conv_pos_groups=4,
)


def export_original(
    path: str | Path, model: ECGClassifier, layout: str = "classifier", seed: int = 0
) -> None:
    """Write a model in the original's `.pt` layout.

    For `base_ssl` the head is left out, and the 8 tensors that only pre-training uses are drawn
    with `seed`. ValueError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    metadata = Metadata(architecture=model.architecture)
    tensors = {name: t.detach().to("cpu", torch.float32) for name, t in model.state_dict().items()}
    if layout == "base_ssl":
        tensors = {name: t for name, t in tensors.items() if not name.startswith("head.")}
        tensors |= pretraining_tensors(model.architecture, seed)
    check_weights(path, tensors, metadata)
    write_original(path, tensors, metadata)


def pretraining_tensors(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """Random tensors for pre-training with the published proportions: final_dim is a third of the
    width, rounded down to a multiple of the groups."""
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
        "pretraining." + name: torch.randn(shape, generator=generator) * 0.02
        for name, shape in shapes.items()
    }
