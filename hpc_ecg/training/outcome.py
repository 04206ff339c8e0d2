"""What a run notes and decides: how it began, which weights are best, how it ended."""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np

from hpc_ecg.atomic_io import read_json, write_json, write_text
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.ecg.signal import check_same_signal
from hpc_ecg.model.losses import LOSSES, REGRESSION, LossConfig, check_loss
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.meter import Meter
from hpc_ecg.training.predict import score_validation
from hpc_ecg.training.run_folder import RunFolder, describe_environment
from hpc_ecg.weights.initialize import Initialized

logger = logging.getLogger("hpc_ecg")

MOST_SPREADS = 3


class BestTracker:
    """Scores the validation split and says which weights are the best so far."""

    def __init__(
        self,
        valid: Dataset,
        task: str,
        best_metric: str,
        loss: LossConfig,
        decimals: int | None = None,
    ) -> None:
        """ValueError if loss, metric, task and validation labels do not fit together."""
        check_loss(loss, len(valid.label_names))
        fitting = [name for name in LOSSES if (name in REGRESSION) == (task == "regression")]
        if loss.name not in fitting:
            raise ValueError(
                f"data.task={task} needs loss.name={' or '.join(fitting)}, got {loss.name}"
            )
        if best_metric == "auto":
            best_metric = "loss" if task == "regression" else "auroc"
        elif task == "regression" and best_metric != "loss":
            raise ValueError(f"train.best_metric={best_metric} needs classes; use loss")
        self.valid, self.task, self.metric, self._loss = valid, task, best_metric, loss
        self._decimals = decimals
        if task == "regression":
            self._warn_of_units()
        else:
            self._check_two_classes()

    def score(self, logits_NK: np.ndarray) -> dict[str, float]:
        """Loss and metrics of the validation split; `score` is the one that chooses."""
        if not np.isfinite(logits_NK).all():
            raise ValueError("the model predicts NaN or infinity on validation; lower optim.lr")
        scores = score_validation(self.valid, logits_NK, self.task, self._loss)
        return scores | {"score": scores[self.metric]}

    def decide(self, progress: Progress, scores: dict[str, float]) -> tuple[Progress, bool]:
        """Progress after this evaluation, and whether these weights are the best: strictly, or as
        good as the best where scores are rounded. Patience wants a strictly better score."""
        score, best = scores["score"], progress.best_score
        gain = 1.0 if best is None else self._rounded(score) - self._rounded(best)
        gain = -gain if best is not None and self.metric == "loss" else gain
        is_best = gain > 0 or (gain == 0 and self._decimals is not None)
        if is_best:
            progress = replace(progress, best_step=progress.step, best_score=score)
        misses = 0 if gain > 0 else progress.evaluations_without_gain + 1
        return (
            replace(progress, evaluated_step=progress.step, evaluations_without_gain=misses),
            is_best,
        )

    def _rounded(self, score: float) -> float:
        if self._decimals is None:
            return score
        return round(score / math.log(2) if self.metric == "loss" else score, self._decimals)

    def describe(self, progress: Progress) -> str:
        if progress.best_score is None:
            return ""
        return f"best {self.metric} {progress.best_score:.4f} at step {progress.best_step}"

    def _check_two_classes(self) -> None:
        """A label with one class cannot be ranked; a single label must have both."""
        positives = np.nansum(self.valid.labels_NK, axis=0)
        known = np.sum(~np.isnan(self.valid.labels_NK), axis=0)
        if not np.any((positives > 0) & (positives < known)):
            raise ValueError(
                f"no label of split valid has both classes ({int(positives.sum())} positive of "
                f"{int(known.sum())} labels): the best weights cannot be chosen; split again with "
                "another --split-seed or larger --fractions for valid"
            )

    def _warn_of_units(self) -> None:
        """A new head says about 0 and moves by about the learning rate a step."""
        for name, label_N in zip(self.valid.label_names, self.valid.labels_NK.T, strict=True):
            known_N = label_N[~np.isnan(label_N)]
            if not len(known_N) or not np.ptp(known_N):
                continue
            mean, spread = float(known_N.mean()), float(known_N.std())
            if abs(mean) > MOST_SPREADS * spread or not 0.1 <= spread <= 10:
                logger.warning(
                    "%s is %.3g ± %.3g in split valid: a new head starts at 0 and may never get "
                    "there; give standardized values, such as (%s − %.3g) / %.3g",
                    *(name, mean, spread, name, mean, spread),
                )


def open_run(
    folder: RunFolder,
    config_yaml: str,
    notes: dict[str, Any],
    init_report: dict[str, Any],
) -> None:
    """Claim the folder; on a second start, data and weights must be the ones of the first."""
    folder.claim()
    folder.check_same_config(config_yaml)
    if folder.config.exists():
        _check_same_sources(folder, notes, init_report)
        return
    write_json(folder.init_report, init_report)
    write_json(folder.environment, describe_environment() | notes)
    write_text(folder.config, config_yaml)


def _check_same_sources(
    folder: RunFolder, notes: dict[str, Any], init_report: dict[str, Any]
) -> None:
    before, key = read_json(folder.environment), "data_index_sha256"
    if before[key] != notes[key]:
        raise ValueError(
            f"data.shards is not the data that {folder.path} was started on (index "
            f"{notes[key][:12]}, was {before[key][:12]}); give another run_dir"
        )
    if before["precision"] != notes["precision"]:
        raise ValueError(
            f"{folder.path} was started in {before['precision']} and would go on in "
            f"{notes['precision']}; set engine.precision={before['precision']} on such a machine"
        )
    if _digest_of(read_json(folder.init_report)) != _digest_of(init_report):
        raise ValueError(
            f"init.checkpoint is not the file that {folder.path} was started from (its SHA-256 "
            "differs); give another run_dir"
        )


def _digest_of(init_report: dict[str, Any]) -> str | None:
    checkpoint = init_report["checkpoint"]
    return checkpoint["sha256"] if checkpoint else None


def check_start(start: Initialized, shards: ShardSet, checkpoint: str | None) -> None:
    """The weights must have seen what these shards hold; says what was loaded."""
    names = f"data.shards={shards.name}", f"init.checkpoint={checkpoint}"
    if start.signal is not None:
        check_same_signal(shards.signal, start.signal, *names)
    leads, in_d = len(shards.signal.leads), start.architecture.in_d
    if leads != in_d:
        raise ValueError(f"model.in_d={in_d}, but {names[0]} has {leads} leads")
    counts, head = start.report["counts"], start.report["head"]
    logger.info(
        "weights: %d tensors from %s, %d new, %d ignored, %d frozen; head: %s (%s)",
        *(counts["tensors_loaded"], checkpoint or "nothing", counts["tensors_fresh"]),
        *(counts["tensors_ignored"], counts["tensors_frozen"], head["taken"], head["reason"]),
    )


def summary_of(metric: str, progress: Progress, meter: Meter) -> dict[str, Any]:
    """What finished.json says of score and cost."""
    return {
        "steps": progress.step,
        "metric": metric,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "skipped": progress.skipped,
        "train_seconds": progress.seconds,
        "process_seconds": progress.process_seconds,
        "energy_kwh": progress.energy_kwh,
        "ecg_per_s": meter.mean(),
    }
