"""`hpc-ecg combine RUN`: what clinical data add to a run's network, fitted on its validation split.

The weights were chosen on validation too, so a logit may look better there than in new patients:
the gain to report is that on the test split, which the record has once the test is open.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from hpc_ecg.cohort.table import WEIGHT_PREFIX
from hpc_ecg.comparison.run_records import read_combined
from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.evaluation.covariates import COMBINE, combine_label, learn_covariate
from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.evaluation.thresholds import points_by_method
from hpc_ecg.hashing import write_record
from hpc_ecg.log import tracked
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.sweep.protocol import read_protocol
from hpc_ecg.training.environment import utc_now
from hpc_ecg.training.open_run import finished_run
from hpc_ecg.weights.reading import resolve_file


def combine(run_dir: str, names: Sequence[str]) -> dict[str, Any]:
    """Fit each label of a finished run with these columns of its shards, write combine.json into
    its folder and return it. ValueError: a regression, an unknown column, too few events."""
    folder = finished_run(run_dir)
    path, protocol = folder.path / COMBINE, read_protocol(folder.path.resolve().parent.parent)
    files = [folder.predictions / f"{split}.parquet" for split in ("valid", "test")]
    is_predicted = files[1].exists()
    is_open = is_predicted if protocol is None else protocol["opened"] is not None
    files = files if is_open and is_predicted else files[:1]
    splits = [read_predictions(file).sorted() for file in files]
    if splits[0].probability_NK is None:
        raise ValueError("combine is for yes/no labels; this run predicts numbers")
    groups = {n: v for n, v in splits[0].groups.items() if not n.startswith(WEIGHT_PREFIX)}
    for name in names:
        if name not in groups or names.count(name) > 1:
            has = f"the shards keep {', '.join(groups) or 'none'}{did_you_mean(name, groups)}"
            raise ValueError(f"--covariates: {name!r} is no column, or named twice; {has}")
    covariates = [learn_covariate(name, groups[name]) for name in names]
    points = read_optional(folder.best / "operating_point.json") or None
    fits, left_out = {}, {}
    labels = splits[0].labels
    with closing(tracked("labels combined", labels, len(labels))) as counted:
        for k, label in enumerate(counted):
            found = points_by_method(points, label, labels).items()
            thresholds = {m: p["threshold"] for m, p in found if 0 < p["threshold"] < 1}
            try:
                fits[label] = combine_label(splits, k, covariates, thresholds)
            except ValueError as error:
                left_out[label] = str(error)
    if not fits:
        raise ValueError("; ".join(left_out.values()))
    earlier = read_optional(path)
    fixed = earlier.get("fixed") if earlier.get("covariates") == covariates else None
    fixed = fixed or (None if is_open or is_predicted else utc_now())
    status = "fixed before the test" if fixed else "exploratory"
    status = status if is_open else "test closed"
    content = {"covariates": covariates, "labels": fits, "left_out": left_out}
    files = [*files, resolve_file(folder.best)]
    write_record(path, content | {"status": status, "fixed": fixed}, files)
    return read_combined(folder.path)
