"""A bundle: one folder with all that a colleague needs to use a model, and nothing about people.

    model.safetensors   the weights (model-1 … for an ensemble); model.onnx if asked for
    model.json          labels, signal, thresholds, risks by outcome, provenance, digests
    self-test.npy       three synthetic ECGs, whose logits model.json states
    CARD.md, README.md  for people

Opening it needs no trust: tensors and JSON, checked against their digests.
"""
# M members of an ensemble, K labels, L leads, S samples

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.atomic_io import write_atomically, write_text
from hpc_ecg.comparison.run_records import check_combined, read_update
from hpc_ecg.comparison.wording import FORMATS
from hpc_ecg.config.load import load_config
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.evaluation.abstention import DISTANCE, check_rule
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.evaluation.thresholds import points_by_method
from hpc_ecg.hashing import check_file, check_kinds, read_record, write_record
from hpc_ecg.inference.abstain import rule_of
from hpc_ecg.inference.audit import describe_audit, read_audit, warnings_of
from hpc_ecg.inference.cohort_context import risks_by_outcome
from hpc_ecg.inference.forward import GAUSSIAN, Forward
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.reporting.html import render_text
from hpc_ecg.shards.shard_task import Recordings, ShardRow, prepare_row
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.version import __version__
from hpc_ecg.weights.convert import convert
from hpc_ecg.weights.onnx_export import simulate_ecgs
from hpc_ecg.weights.reading import read_checkpoint

FORMAT, MODEL, SELF_TEST = "hpc_ecg/bundle/1", "model.json", "self-test.npy"
SETTINGS = ("data.batch_size", "data.task", "engine.precision", "model.attention", "model.pooling")
KINDS: Mapping[str, Any] = {
    "format": str,
    "labels": list,
    "weights": list,
    "settings": dict,
    "thresholds": dict,
    "self_test": {"logits": list},
    "digests": dict,
}
NUM_ECGS = 3
TOLERANCE = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.05}
"""Of a logit of the self-test, on another machine."""


def is_bundle(path: Path) -> bool:
    return (path / MODEL).is_file()


def open_bundle(path: Path) -> ModelSource:
    """What `predict` needs of a bundle. ValueError names a file that has changed or is missing."""
    record = path / MODEL
    content = {"combined": {}, "abstention": {}} | read_record(record, KINDS)
    check_kinds(record, content, {"combined": dict, "abstention": dict})
    if content["format"] != FORMAT:
        raise ValueError(f"{record}: its format is {content['format']!r}, known is {FORMAT!r}")
    for name in content["digests"]:
        if Path(name).name != name:
            raise ValueError(f"{record} is damaged: {name!r} is no name of a file beside it")
        check_file(path / name, record)
    names, rule = [str(name) for name in content["weights"]], content["abstention"]
    files, rule = [path / name for name in names], rule and check_rule(record, rule, len(names))
    needed = {*names, *[GAUSSIAN] * (rule.get("score") == DISTANCE)}
    if not files or not needed <= set(content["digests"]):
        raise ValueError(f"{record} is damaged: it has no digest of its weights; copy it again")
    stated = content["settings"]
    settings = [f"{key}={stated[key]}" for key in SETTINGS if key in stated]
    settings += [f"run_dir={path}", f"data.shards={path}"]
    checkpoint = read_checkpoint(files[0])
    labels = checkpoint.labels
    if labels is None or labels != content["labels"] or checkpoint.signal is None:
        raise ValueError(f"{record} and {files[0]} state other labels; copy the bundle again")
    return ModelSource(
        name=f"the bundle {path}",
        files=files,
        labels=labels,
        signal=checkpoint.signal,
        config=load_config(FinetuneConfig, [], settings),
        combined=check_combined(record, content["combined"]) if content["combined"] else {},
        points={label: _points(record, content["thresholds"], label, labels) for label in labels},
        abstention=rule,
    )


def _points(record: Path, stored: dict[str, Any], label: str, labels: list[str]) -> dict[str, Any]:
    points = (
        points_by_method(stored, label, labels) if isinstance(stored.get(label, {}), dict) else {}
    )
    check_kinds(record, points, {"*": {"threshold": float}})
    return points


def write_bundle(model: ModelSource, out: Path, forward: Forward, onnx: bool = False) -> list[str]:
    """Write a bundle of a run, or an ensemble of a sweep's, into the new folder `out`; returns
    lines for the user. ValueError: `out` exists, or the model is no run's."""
    if not model.runs[0].finished.exists():
        raise ValueError(
            f"{model.name}: a bundle is made of a run or a sweep, not of a file of weights"
        )
    if onnx and len(model.files) > 1:
        raise ValueError("--onnx holds one model; an ensemble is bundled without it")

    def write(folder: Path) -> None:
        folder.mkdir()
        for file, name in zip(model.files, _names(model), strict=True):
            convert(file, folder / name, strip=True, labels=model.labels)
        if rule.get("score") == DISTANCE:
            shutil.copyfile(model.files[0].with_name(GAUSSIAN), folder / GAUSSIAN)
        if onnx:
            lines.append(convert(model.files[0], folder / "model.onnx", strip=True)[0])
        metadata = read_checkpoint(model.files[0])
        seconds = model.signal.num_samples / model.signal.sample_rate_hz
        np.save(folder / SELF_TEST, next(simulate_ecgs(metadata, ((NUM_ECGS, seconds),))))
        logits = _logits(model, folder, forward).tolist()
        content = describe(model) | {"self_test": {"logits": logits}, "abstention": rule}
        write_text(folder / "CARD.md", _render("bundle_card.md.jinja", model, content))
        write_text(folder / "README.md", _render("bundle_readme.md.jinja", model, content))
        write_record(folder / MODEL, content, sorted(folder.iterdir()))

    lines: list[str] = []
    rule = rule_of(model)
    if out.exists():
        raise ValueError(f"{out} exists; give the name of a new folder")
    write_atomically(out, write)
    audits = [read_audit(run.path) for run in model.runs]
    if not all(audits):
        lines.append("not audited: hpc-ecg audit RUN measures what weights reveal of patients")
    lines += [line for audit in audits for line in warnings_of(audit)]
    return [*lines, f"written: {out}", f"check it anywhere: hpc-ecg predict {out} --self-test"]


def describe(model: ModelSource) -> dict[str, Any]:
    """model.json without the self-test: no path, no name, no record of a person."""
    runs = model.runs
    environment, finished = (read_record(path) for path in (runs[0].environment, runs[0].finished))
    return {
        "format": FORMAT,
        "version": __version__,
        "labels": model.labels,
        "signal": asdict(model.signal),
        "weights": _names(model),
        "settings": {key: attrgetter(key)(model.config) for key in SETTINGS},
        "thresholds": model.points,
        "calibration": read_optional(runs[0].best / "calibration.json") if len(runs) == 1 else {},
        "risks_by_outcome": risks_by_outcome(model),
        "combined": model.combined,
        "audit": [read_audit(run.path) for run in runs],
        "update": read_update(runs[0]),
        "test": _test_of(runs[0]) if len(runs) == 1 else {},
        "provenance": {
            "data_index_sha256": environment.get("data_index_sha256"),
            "weights_sha256": model.digests(),
            "metric": finished.get("metric"),
            "best_score": finished.get("best_score"),
            "steps": finished.get("steps"),
        },
    }


def self_test(model: ModelSource, folder: Path, forward: Forward) -> str:
    """A line on how far the logits of the self-test are from those stated. ValueError if further
    than the arithmetic explains."""
    expected = np.array(read_record(folder / MODEL, KINDS)["self_test"]["logits"], np.float64)
    found = _logits(model, folder, forward)
    if expected.shape != found.shape:
        raise ValueError(f"{folder / MODEL} is damaged: the logits of its self-test do not fit")
    error = float(np.abs(found - expected).max())
    allowed = TOLERANCE.get(model.config.engine.precision, max(TOLERANCE.values()))
    if not error <= allowed:
        raise ValueError(
            f"the self-test of {folder} fails: logits are off by {error:.2g}, allowed is "
            f"{allowed:g}; do not use its risks on this machine"
        )
    return f"self-test passed: logits of {NUM_ECGS} ECGs are within {error:.1e} of those stated"


def _names(model: ModelSource) -> list[str]:
    count = len(model.files)
    return [f"model{f'-{n}' if count > 1 else ''}.safetensors" for n in range(1, count + 1)]


def _logits(model: ModelSource, folder: Path, forward: Forward) -> np.ndarray:
    """Logits [3, M, K] of the ECGs of the self-test, read as `predict` reads files."""
    rows = [ShardRow(row=row, file=f"{SELF_TEST}::{row}") for row in range(NUM_ECGS)]
    signal = model.signal
    layout = ArrayLayout(leads=tuple(signal.leads), sample_rate_hz=float(signal.sample_rate_hz))
    recordings = Recordings(signals=folder, layout=layout, signal=signal)
    shape = (model.config.data.batch_size, len(signal.leads), signal.num_samples)
    counts_BLS = np.zeros((max(shape[0], NUM_ECGS), *shape[1:]), np.int16)
    for row in rows:
        counts_BLS[row.row] = prepare_row(row, recordings)[0].counts_LS
    samples_B = np.full(len(counts_BLS), signal.num_samples, np.int64)
    return forward(counts_BLS, samples_B)[:NUM_ECGS].astype(np.float64)


def _test_of(run: RunFolder) -> dict[str, Any]:
    """Discrimination and calibration on the run's test split, by label."""
    evaluation = read_optional(run.evaluation)
    kept = ("n", "n_patients", "n_positive", "prevalence", "auroc", "auprc", "brier", "rmse", "r2")
    return {
        label: {name: values[name] for name in (*kept, "at_threshold") if name in values}
        for label, values in evaluation.get("labels", {}).items()
    }


def _render(template: str, model: ModelSource, content: dict[str, Any]) -> str:
    return render_text(
        template, model=content, names=METRIC_NAMES, describe_audit=describe_audit, **FORMATS
    )
