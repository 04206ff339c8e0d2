"""The JSON files in a run's folder, with the type of every field that a report uses: one that was
edited and sealed again is refused by its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_ecg.evaluation.abstention import DISTANCE, check_rule
from hpc_ecg.evaluation.covariates import COMBINE, LOGIT, MODELS, encode
from hpc_ecg.hashing import check_kinds, check_record, read_record
from hpc_ecg.training.run_folder import RunFolder

Kinds = dict[str, Any]
ABSTENTION, UPDATE = "abstention.json", "update.json"
NUMBER, MAYBE = int | float, int | float | None
VALUE: Kinds = {"value": MAYBE, "low": MAYBE, "high": MAYBE}
INTERVAL, ESTIMATE = dict.fromkeys(VALUE, NUMBER), VALUE | {"value": NUMBER}
POINT: Kinds = {"threshold": NUMBER, "counts?": dict.fromkeys(("tp", "fp", "fn", "tn"), int)}
POINT |= dict.fromkeys(("sensitivity", "specificity", "ppv", "npv", "f1?", "nns?"), VALUE)
BIN = dict.fromkeys(("predicted", "observed", "low", "high"), NUMBER) | {"n": int}
CURVE = ("threshold", "net_benefit", "low", "high", "treat_all")
RANKED: Kinds = {"auroc?": INTERVAL, "auprc?": VALUE, "reason?": str}
GROUP: Kinds = RANKED | {"group": str, "level": str, "n": int, "n_positive": int}
GROUP |= {"interaction_p?": MAYBE, "interaction_p_holm?": MAYBE}
LABEL: Kinds = RANKED | dict.fromkeys(("n", "n_missing", "n_patients", "n_positive?"), int)
LABEL |= dict.fromkeys(("brier?", "log_loss?", "mae?", "rmse?", "r2?", "pearson?"), VALUE)
LABEL |= {"prevalence?": NUMBER, "at_threshold?": {"*": POINT}, "one_ecg_per_patient?": RANKED}
LABEL |= {"decision_curve?": {name: [NUMBER] for name in CURVE}, "subgroups?": [GROUP]}
LABEL["calibration?"] = dict.fromkeys(("slope", "intercept", "ece"), VALUE) | {"curve": [BIN]}
EVALUATION: Kinds = {"labels?": {"*": LABEL}}
KEPT: Kinds = RANKED | {"label": str, "score": str, "coverage": NUMBER, "kept": NUMBER, "n": int}
KEPT |= {"prevalence?": MAYBE, "auroc_gain?": INTERVAL}
KEPT |= dict.fromkeys(("brier?", "sensitivity?", "ppv?"), VALUE)
LEVELS: Kinds = {"name": str, "levels": [str]}
NUMERIC: Kinds = {"name": str, "mean": NUMBER, "sd": NUMBER}
COUNTS = dict.fromkeys(("n_positive_patients", "n_negative_patients"), int)
SCORE: Kinds = {"split": str, "metric": str, "n": int, "risk": MAYBE}
SCORE |= dict.fromkeys((*MODELS, "over_network", "over_covariates"), ESTIMATE)
FIT: Kinds = {"intercept": NUMBER, "terms": [NUMERIC | {"per_sd": ESTIMATE}], "scores": [SCORE]}
FIT |= {"warnings": [str], "counts": COUNTS | {"n": int, "num_lacking": int}}
COMBINED: Kinds = {"covariates": [{"name": str}], "labels": {"*": FIT}, "left_out": {"*": str}}
COMBINED |= {"status": str, "fixed": str | None}
TEST: Kinds = {"method": str, "made": str, "p_values": {"*": NUMBER}, "warning?": str}
TEST |= COUNTS | {"slope": NUMBER, "offset": NUMBER}
UPDATED: Kinds = dict.fromkeys(("from", "shards", "strangers", "run"), str) | {"held_out": MAYBE}
UPDATED |= {"measures": {"*": str}, "tests": {"*": dict}}
UPDATED |= {when: {"*": {"*": VALUE}} for when in ("before", "after", "gained")}


def check_evaluation(path: Path, content: Mapping[str, Any]) -> None:
    """ValueError: a field of evaluation.json is of another type, or a curve's lists differ."""
    check_kinds(path, content, EVALUATION)
    for label in content.get("labels", {}).values():
        curve = label.get("decision_curve", {})
        if len({len(curve[name]) for name in CURVE if curve}) > 1:
            raise ValueError(f"{path} is damaged: lists of decision_curve differ in length")


def read_abstention(run: Path) -> list[dict[str, Any]] | None:
    """Its curve, None without one. ValueError: it, or its source, has changed, or another shape."""
    path = run / ABSTENTION
    if not path.exists():
        return None
    check_record(path)
    content = read_record(path, {"curve": [KEPT]})
    check_rule(path, content, members=1)
    for row in content["curve"]:
        if row["score"] != DISTANCE or not {"auroc", "reason"} & row.keys():
            raise ValueError(f"{path} is damaged: a row of curve has no {DISTANCE} or no AUROC")
    return list(content["curve"])


def read_update(run: RunFolder) -> dict[str, Any]:
    """The record in a run's folder, {} without one. ValueError as `read_abstention`."""
    path, content = run.path / UPDATE, run.read_about(UPDATE, UPDATED)
    for name, test in content.get("tests", {}).items():
        check_kinds(path, {name: test}, {name: {"reason": str} if "reason" in test else TEST})
    for name, after in content.get("after", {}).items():
        check_kinds(path, content["before"], {name: dict.fromkeys(after, dict)})
        check_kinds(path, content["gained"], {name: dict})
    return content


def read_combined(run: Path) -> dict[str, Any]:
    """The record in a run's folder, {} without one. ValueError as `read_abstention`."""
    path = run / COMBINE
    if not path.exists():
        return {}
    check_record(path)
    return check_combined(path, read_record(path))


def check_combined(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a record of `combine`. ValueError: another type or length than it writes."""
    check_kinds(path, content, COMBINED)
    covariates = content["covariates"]
    for c in covariates:
        check_kinds(path, c, LEVELS if c.get("levels") else NUMERIC)
    names = [LOGIT, *encode(covariates, {c["name"]: [""] for c in covariates})[0]]
    for label, fit in content["labels"].items():
        if [t["name"] for t in fit["terms"] if t["sd"] > 0] != names or not fit["scores"]:
            raise ValueError(f"{path} is damaged: {label} has other terms than its covariates")
    return {name: content[name] for name in COMBINED}
