"""The parts of `tools/gpu_check.py`, each a module with `measure(emit, clock, options)`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # for _loops and _costs
