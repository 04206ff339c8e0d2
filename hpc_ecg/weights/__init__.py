"""Checkpoints, foreign and ours: read safely, match by name, initialize a model, convert.

reading           a path -> WeightsFile, or Checkpoint if a run can start from it, without torch
  stored_tensor   tensors in a memory-mapped file
  archive         a `.pt`: its zip is checked, its pickle read as data (unpickle, opcodes)
  safetensors_file, metadata   tensors and JSON texts of our files
  mapping         the file's keys <-> our names; the shapes that a model expects
initialize        a Checkpoint or nothing -> a model ready to train
  heads           which rows of the file's head the run starts from
export, onnx_export, original   write safetensors, ONNX, or the original's `.pt`
convert           change the format, reset the head, average runs
inspect_file, diff   what a file holds, and how two differ
"""

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
