"""The model that `predict` is given: a run, a sweep's selected seed or ensemble, or a file.

Thresholds come from the run's validation; a file of weights by itself has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.comparison.risk_coverage import rule_of_ensemble
from hpc_ecg.comparison.run_records import read_combined
from hpc_ecg.comparison.selected import validation_score
from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.evaluation.scores import fit_operating_points
from hpc_ecg.evaluation.thresholds import points_by_method
from hpc_ecg.hashing import read_record
from hpc_ecg.log import logger
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.sweep.folder import expected_cells
from hpc_ecg.training.open_run import UNVERIFIED, finished_run, load_run
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights.onnx_export import read_onnx_metadata
from hpc_ecg.weights.reading import read_checkpoint, resolve_file

BATCH_SIZE = 32
"""For files of weights; a run has data.batch_size."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    name: str
    """The run or file, for people."""
    files: list[Path]
    """Weights: several for an ensemble, whose probability is the mean of theirs."""
    labels: list[str]
    signal: SignalSpec
    config: FinetuneConfig
    """Of the run; the defaults for a file."""
    points: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Thresholds by label and method, fitted on validation."""
    combined: dict[str, Any] = field(default_factory=dict)
    """What `combine` fitted; {} if it was not called."""
    platt: list[tuple[float, float]] = field(default_factory=list)
    """Slope and offset of each file's logits, where they are not in its head."""
    abstention: dict[str, Any] = field(default_factory=dict)
    """The rule of an ensemble or a bundle; with a `cut`, risks are marked by it."""
    layer: int | None = None
    """If set, the features of this encoder layer are asked for (0: before the first), not risks."""

    @property
    def is_regression(self) -> bool:
        return self.config.data.task == "regression"

    @property
    def runs(self) -> list[RunFolder]:
        """Where the files are, if they are the best weights of runs."""
        return [RunFolder(file.parent.parent) for file in self.files]

    @property
    def is_run(self) -> bool:
        run = self.runs[0]
        return run.best == self.files[0].parent and run.finished.exists()

    @property
    def covariates(self) -> list[str]:
        return [covariate["name"] for covariate in self.combined.get("covariates", [])]

    @property
    def abstains(self) -> bool:
        return "cut" in self.abstention

    def digests(self) -> list[str]:
        return [sha256_of(file) for file in self.files]


def open_model(
    path: Path,
    strategy: str | None = None,
    is_ensemble: bool = False,
    needs_head: bool = True,
) -> ModelSource:
    """What `predict` needs to know of a model, without loading it.

    `strategy`: of a sweep; `is_ensemble`: all its finished seeds instead of the one that is best on
    validation. ValueError: nothing to predict with, or changed since it was finished.
    """
    is_sweep = path.is_dir() and not RunFolder(path).config.exists()
    is_sweep = is_sweep and not (path / "model.safetensors").exists()
    if is_sweep:
        runs = _runs_of(path, strategy)
        scores = [validation_score(read_record(run.finished)) for run in runs]
        chosen = runs if is_ensemble else [runs[scores.index(max(scores))]]
        name = f"the ensemble of {len(runs)} seeds of" if is_ensemble else "the selected seed of"
        return _from_runs(chosen, f"{name} {path}, {chosen[0].path.parent.name}")
    for option, value in (("--strategy", strategy), ("--ensemble", is_ensemble)):
        if value:
            raise ValueError(f"{option} chooses among the runs of a sweep, and {path} is none")
    if path.is_dir() and RunFolder(path).config.exists():
        return _from_runs([finished_run(str(path))], f"the run {path}")
    return _from_file(path, needs_head)


def with_features(model: ModelSource, layer: int | None) -> ModelSource:
    """The model for the features of a layer (None: the last). ValueError: it has no such layer."""
    if model.files[0].suffix == ".onnx" or len(model.files) > 1:
        raise ValueError("features are those of one model, in a run, .pt or .safetensors")
    layers = read_checkpoint(model.files[0]).architecture.encoder_layers
    if layer is not None and not 0 <= layer <= layers:
        raise ValueError(f"--layer must be from 0 to {layers} for this model, got {layer}")
    return replace(model, layer=layers if layer is None else layer, points={}, combined={})


def _runs_of(sweep: Path, strategy: str | None) -> list[RunFolder]:
    """The finished runs of a strategy of a sweep, in the order of seeds."""
    cells = expected_cells(sweep)
    if not cells:
        raise ValueError(f"{sweep} is neither a run, nor a sweep, nor a file of weights")
    names = list(dict.fromkeys(name for name, _ in cells))
    if strategy is None and len(names) > 1:
        raise ValueError(f"{sweep} has several strategies; give --strategy: {', '.join(names)}")
    strategy = strategy or names[0]
    if strategy not in names:
        hint = did_you_mean(strategy, names)
        raise ValueError(f"--strategy {strategy}: {sweep} has {', '.join(names)}{hint}")
    folders = [RunFolder(sweep / strategy / f"seed-{seed}") for n, seed in cells if n == strategy]
    runs = [finished_run(str(folder.path)) for folder in folders if folder.is_finished()]
    if not runs:
        raise ValueError(f"{sweep}: no run of {strategy} is finished")
    if missing := len(folders) - len(runs):
        logger.warning(f"{missing} of {len(folders)} runs of {strategy} are not finished: left out")
    return runs


def _from_runs(runs: Sequence[RunFolder], name: str) -> ModelSource:
    for run in runs:
        if not run.check_unchanged():
            logger.warning(UNVERIFIED, run.path)
    first = runs[0]
    config, checkpoint = load_run(str(first.path), []), read_checkpoint(first.best)
    labels = checkpoint.labels or config.data.labels
    signal = _signal_of(checkpoint.signal, first.path)
    rule: dict[str, Any] = {}
    if len(runs) > 1:
        points, rule = _rules_of_ensemble(runs)
    else:
        path = first.best / "operating_point.json"
        stored = read_record(path) if path.exists() else None
        points = {label: points_by_method(stored, label, labels) for label in labels}
    files = [resolve_file(run.best) for run in runs]
    about: dict[str, Any] = {"points": points, "abstention": rule}
    about["combined"] = read_combined(first.path) if len(runs) == 1 else {}
    return ModelSource(name=name, files=files, labels=labels, signal=signal, config=config, **about)


def _rules_of_ensemble(runs: Sequence[RunFolder]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Thresholds of the mean probability and the rule of abstention, fitted on validation."""
    seeds = [read_predictions(run.predictions / "valid.parquet").sorted() for run in runs]
    first = seeds[0]
    if first.probability_NK is None:
        return {}, {}
    for run, other in zip(runs, seeds, strict=True):
        if not np.array_equal(other.record_N, first.record_N):
            raise ValueError(f"{run.path} was validated on other records than {runs[0].path}")
    probabilities = [seed.probability_NK for seed in seeds if seed.probability_NK is not None]
    mean: Predictions = replace(first, probability_NK=np.mean(probabilities, axis=0))
    return fit_operating_points(mean), rule_of_ensemble(seeds)


def _from_file(path: Path, needs_head: bool) -> ModelSource:
    config = FinetuneConfig(run_dir=str(path.parent))
    config = replace(config, data=replace(config.data, batch_size=BATCH_SIZE))
    if path.suffix == ".onnx":
        labels, num_labels, signal = read_onnx_metadata(path)
    else:
        checkpoint = read_checkpoint(path)
        labels, signal = checkpoint.labels, checkpoint.signal
        num_labels, path = checkpoint.num_labels or 0, Path(checkpoint.path)
        if needs_head and not num_labels:
            raise ValueError(
                f"{path}: a pre-trained file without a head predicts nothing; fine-tune it first"
            )
    labels = labels or [f"output_{k + 1}" for k in range(num_labels)]
    signal = _signal_of(signal, path)
    name = f"the weights {path}"
    return ModelSource(name=name, files=[path], labels=labels, signal=signal, config=config)


def _signal_of(signal: SignalSpec | None, path: Path) -> SignalSpec:
    if signal is None:
        spec = SignalSpec()
        logger.warning(
            f"{path} does not say which signals it takes: DeepECG-SSL's are assumed "
            f"({spec.sample_rate_hz} Hz, {spec.num_samples / spec.sample_rate_hz:g} s, mV)"
        )
    return signal or SignalSpec()
