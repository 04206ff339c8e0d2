"""Foreign checkpoints and ours: read safely, fit by name, initialize, export.

stored      tensors where they lie in a file that is mapped (no torch up to `reading`)
zipped      the zip around a `.pt`: its directory, held against the file
opcodes     the pickle inside a `.pt` split into opcodes, within bounds
pickles     … and read as data
archive     opens a `.pt` without running anything in it
safetensors_file  metadata and tensors of a safetensors file
mapping     the file's keys <-> our parameter names; every tensor is accounted for
reading     a path -> OpenFile, also one that no run can start from -> Checkpoint
heads       which rows of a file's head a run starts from
initialize  the `init` section: a Checkpoint or nothing -> a model that is ready to train
account     what became of every tensor, for init_report.json
export      our safetensors, and the original's `.pt` layouts (original: what lies around tensors)
inspection, diff  what files hold, and what differs between two
convert     other formats (formats: written, what is lost), a fresh head, the mean of several runs
onnx_export ONNX, held against torch
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_ecg.weights.initialize import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """`load_model` on demand: it needs torch, and looking into a file does not."""
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hpc_ecg.weights.initialize import load_model

    return load_model
