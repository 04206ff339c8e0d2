"""The evaluation of a run, compared with its predictions where no digest vouches for it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from hpc_ecg.comparison.results import RunResult
from hpc_ecg.comparison.run_records import check_evaluation
from hpc_ecg.evaluation.scores import evaluate_predictions
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.training.evaluate import fitted_on_validation

REPLICATES = 200
ENDS = ("low", "high", "interaction_p", "interaction_p_holm")
FREE = ("split", "warning", "method", "interval", "replicates")
"""What depends on the version that wrote it and, as the ends do, on the number of replicates."""
NEW = re.compile("o_e|recalibrated|validation_.*")
"""What 0.1 did not write, or fitted in another way."""


def read_evaluation(run: RunResult) -> dict[str, Any]:
    """The content of evaluation.json; {} if there is none. ValueError: the run is of version 0.1,
    which wrote no digests, and some value or name is not what its predictions give."""
    found = read_optional(run.folder.evaluation)
    if run.is_verified or not found:
        check_evaluation(run.folder.evaluation, found)
        return found
    points, fits = fitted_on_validation(run.folder.best)
    task = str(run.settings.get("data.task"))
    fresh = evaluate_predictions(run.test, task, points, REPLICATES, calibrators=fits)
    wrong = {*_values(json.loads(json.dumps(fresh)))} ^ {*_values(found)}
    if wrong:
        raise ValueError(
            f"{run.folder.evaluation} is damaged: {min(wrong)[0][1:]} is not what "
            "predictions/test.parquet gives; make it again with: hpc-ecg evaluate "
            f"{run.folder.path}"
        )
    return found


def _values(value: Any, name: str = "", place: str = "") -> Iterator[tuple[str, str]]:
    """Each place of an evaluation, with its value in six figures or its kind alone."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, dict):
        yield place, "an object"
        for key, inner in value.items():
            if not (NEW.fullmatch(key) or (key in FREE and isinstance(inner, str | int))):
                yield from _values(inner, key, f"{place}.{key}")
    elif isinstance(value, list):
        yield place, f"a list of {len(value)}"
        for number, inner in enumerate(value):
            yield from _values(inner, name, f"{place}[{number}]")
    elif name in ENDS and (is_number or value is None):
        yield place, "an end"
    else:
        yield place, f"{round(value, 12) + 0.0:.6g}" if is_number else repr(value)
