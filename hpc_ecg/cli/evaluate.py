"""`hpc-ecg evaluate RUN_DIR`: score a finished run on its test split or on other shards."""

import argparse
import os
from pathlib import Path
from textwrap import wrap
from typing import Any

from hpc_ecg.cli.parser import Parser, Verbs, check_effects
from hpc_ecg.reporting.numbers import count, format_percent, format_with_interval

WIDTH = 80
COLUMNS = 3  # thresholds side by side
CALIBRATION = {"slope": "slope", "intercept": "intercept", "ece": "ECE"}
RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}
RATES |= {"f1": "F1", "nns": "to screen"}


def add_evaluate(verbs: Verbs) -> None:
    # A subparser does not allow options between settings, so this one takes all arguments as they
    # are, and `_parser` reads them.
    evaluate = verbs.add_parser(
        "evaluate", help="score a finished run", add_help=False, prefix_chars="\0"
    )
    evaluate.add_argument("arguments", nargs="*")
    evaluate.set_defaults(verb=_evaluate, parsers={"": _parser})


def _parser() -> Parser:
    parser = Parser(prog="hpc-ecg evaluate", description="Score a finished run.")
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("settings", nargs="*", help="key=value, overrides of the run's settings")
    parser.add_argument(
        "--shards",
        help="of another cohort; data.labels=[…] gives its label names, in the run's order",
    )
    parser.add_argument(
        "--split", default="test", help="test (default), valid, or all: all records of the shards"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for predictions.parquet and evaluation.json (default: in RUN_DIR)",
    )
    for kind in ("sensitivity", "specificity"):
        parser.add_argument(
            f"--{kind}",
            type=float,
            action="append",
            default=[],
            help=f"one more threshold, with this {kind} on validation, such as 0.95",
        )
    return parser


def _evaluate(command: argparse.Namespace) -> int:
    """Report mistakes that need no torch before importing it."""
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import logger, say
    from hpc_ecg.training.open_run import UNVERIFIED, finished_run, load_run, load_run_for

    options = _parser().parse_intermixed_args(command.arguments)
    run_dir, shards, out = options.run_dir, options.shards, options.out
    kinds = ("sensitivity", "specificity")
    targets = [(kind, level) for kind in kinds for level in getattr(options, kind)]
    if wrong := [level for _, level in targets if not 0 < level < 1]:
        raise ValueError(f"--sensitivity and --specificity lie between 0 and 1, got {wrong[0]}")
    near = Path() if out is None else next(p for p in (out, *out.parents) if p.exists())
    if not near.is_dir():
        raise ValueError(f"--out {out}: {near} is a file; give a folder, new or not")
    config = load_run(run_dir, options.settings)
    if shards is not None:
        config = load_run_for(run_dir, shards, options.settings)
    has_risks = config.data.task != "regression"
    check_effects(options, *[(kind, "yes/no labels", has_risks) for kind in kinds])
    if not finished_run(run_dir).check_unchanged():
        logger.warning(UNVERIFIED, run_dir)

    from hpc_ecg.training.evaluate import evaluate, evaluate_weights

    if shards is None and out is None and options.split == "test" and not targets:
        result, written = evaluate(config), Path(run_dir)
    else:
        name = "own" if shards is None else Path(shards.rstrip("/")).name
        written = out or Path(run_dir) / "evaluations" / f"{name}-{options.split}"
        weights = Path(run_dir) / "best"
        result = evaluate_weights(config, weights, written, options.split, targets)
    if read_ranks(os.environ).rank == 0:
        say(*table_of(result), f"written: {written}/evaluation.json")
    return 0


def table_of(result: dict[str, Any]) -> list[str]:
    """Lines for a terminal; intervals are at 95 %, with patients resampled."""
    from hpc_ecg.evaluation.metric_names import METRIC_NAMES

    note = f": {result['note']}" if "note" in result else ""
    lines = _wrapped(f"records: {result['split']}{note}")
    parts = dict(result["labels"])
    if "macro" in result:
        parts |= {f"{kind} average": result[kind] for kind in ("macro", "micro") if kind in result}
    for name, label in parts.items():
        lines += ["", f"{name}{_counts(label)}"]
        shown = (METRIC_NAMES, label), (CALIBRATION, label.get("calibration", {}))
        for names, values in shown:
            found = {text: values[key] for key, text in names.items() if key in values}
            lines += [f"  {text:<16}{format_with_interval(of)}" for text, of in found.items()]
        lines += _thresholds(label.get("at_threshold", {}))
        lines += _wrapped(label.get("auroc", {}).get("warning", ""), "  ")
    for name, reason in result["not_scored"].items():
        lines += ["", *_wrapped(f"{name} is not scored: {reason}")]
    return [*lines, ""]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _counts(label: dict[str, Any]) -> str:
    if "n_patients" not in label:
        return ""
    text = f": {count(label['n'], 'ECG')} of {count(label['n_patients'], 'patient')}"
    if "n_positive" in label:
        text += f", {label['n_positive']} positive ({format_percent(label['prevalence'])})"
    return text + (f", {label['n_missing']} without label" if label["n_missing"] else "")


def _thresholds(points: dict[str, dict[str, Any]]) -> list[str]:
    from hpc_ecg.comparison.wording import fitted_for, format_threshold

    lines = []
    methods = list(points)
    for start in range(0, len(methods), COLUMNS):
        shown = methods[start : start + COLUMNS]
        rows = {"": [fitted_for(method) for method in shown]}
        if all("threshold" in points[method] for method in shown):
            rows["threshold"] = [format_threshold(points[method]["threshold"]) for method in shown]
        rows |= {
            text: [format_with_interval(points[m][rate]) for m in shown]
            for rate, text in RATES.items()
        }
        for name, row in rows.items():
            lines.append(f"  {name:<13}{''.join(f'{cell:<21}' for cell in row)}".rstrip())
    return lines
