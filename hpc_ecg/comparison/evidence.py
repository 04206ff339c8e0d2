"""The evaluation of a run, compared with its predictions where no digest vouches for it."""

import json
import math
from typing import Any

from hpc_ecg.comparison.results import RunResult
from hpc_ecg.evaluation.scores import evaluate_predictions
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.training.evaluate import fitted_on_validation

REPLICATES = 200
ENDS = ("low", "high")
FREE = ("split", "warning", "method", "interval", "replicates")
"""What depends on the version that wrote it and, as the ends do, on the number of replicates."""


def read_evaluation(run: RunResult) -> dict[str, Any]:
    """The content of evaluation.json; {} if there is none. ValueError: the run is of version 0.1,
    which wrote no digests, and some value or name is not what its predictions give."""
    found = read_optional(run.folder.evaluation)
    if run.is_verified or not found:
        return found
    points, fits = fitted_on_validation(run.folder.best)
    task = str(run.settings.get("data.task"))
    fresh = evaluate_predictions(run.test, task, points, REPLICATES, calibrators=fits)
    if place := _difference(json.loads(json.dumps(fresh)), found):
        raise ValueError(
            f"{run.folder.evaluation} is damaged: {place[1:]} is not what predictions/test.parquet "
            f"gives; make it again with: hpc-ecg evaluate {run.folder.path}"
        )
    return found


def _difference(fresh: Any, found: Any, name: str = "", place: str = "") -> str:
    """The first place in which two evaluations differ; "" if there is none."""
    if isinstance(fresh, dict) and isinstance(found, dict):
        for key in sorted(fresh.keys() | found.keys()):
            at = f"{place}.{key}"
            is_free = key in FREE and isinstance(found.get(key, ""), str | int)
            if not is_free and (key not in fresh or key not in found):
                return at
            if not is_free and (inner := _difference(fresh[key], found[key], key, at)):
                return inner
        return ""
    if isinstance(fresh, list) and isinstance(found, list) and len(fresh) == len(found):
        pairs = enumerate(zip(fresh, found, strict=True))
        return next(filter(None, (_difference(*p, name, f"{place}[{n}]") for n, p in pairs)), "")
    return "" if _is_same(fresh, found, name) else place


def _is_same(fresh: Any, found: Any, name: str) -> bool:
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if name in ENDS:
        return is_number or found is None
    if is_number and isinstance(fresh, int | float):
        return math.isclose(fresh, found, rel_tol=1e-6, abs_tol=1e-9)
    return bool(type(fresh) is type(found) and fresh == found)
