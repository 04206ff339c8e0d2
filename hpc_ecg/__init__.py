"""hpc_ecg: fine-tune the DeepECG-SSL transformer on clusters; learn which start is best.

From Python: `load_predictor`, `read_recording`, `open_shards`, `evaluate` and `compare`; each is
imported on first use, since torch takes seconds.
"""

from importlib import import_module
from typing import Any

from hpc_ecg.version import __version__

__all__ = ["__version__", "compare", "evaluate", "load_predictor", "open_shards", "read_recording"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hpc_ecg.inference.api"), name)


def __dir__() -> list[str]:
    return __all__
