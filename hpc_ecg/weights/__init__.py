"""Foreign checkpoints and ours: read safely, fit by name, initialize, export.

archive     opens a `.pt` without running anything in it
mapping     the file's keys <-> our parameter names; every tensor is accounted for
reading     a path -> Checkpoint
initialize  the `init` section: a Checkpoint or nothing -> a model that is ready to train
export      our safetensors, and the original's `.pt` layouts
"""

from hpc_ecg.weights.initialize import load_model

__all__ = ["load_model"]
