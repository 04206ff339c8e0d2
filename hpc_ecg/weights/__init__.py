"""Checkpoints, foreign and ours: read safely, match by name, initialize a model, convert."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_ecg.weights.initialize import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> object:
    """Import `load_model` on first use: it needs torch, inspecting a file does not."""
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hpc_ecg.weights.initialize import load_model

    return load_model
