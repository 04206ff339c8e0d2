"""Score validation and decide which weights are the best so far."""

import math
from dataclasses import replace

import numpy as np

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.log import logger
from hpc_ecg.model.losses import check_loss
from hpc_ecg.model.settings import LOSSES, REGRESSION_LOSSES
from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.predict import score_validation
from hpc_ecg.training.settings import FinetuneConfig

FAR_FROM_ZERO = 3
"""Mean of a regression label, in standard deviations, beyond which a new head starts too far."""


class BestTracker:
    def __init__(self, valid: Dataset, config: FinetuneConfig) -> None:
        """Raise ValueError if loss, metric, task and validation labels do not fit together."""
        task, loss, best_metric = config.data.task, config.loss, config.train.best_metric
        check_loss(loss, len(valid.label_names))
        suitable = [n for n in LOSSES if (n in REGRESSION_LOSSES) == (task == "regression")]
        if loss.name not in suitable:
            raise ValueError(
                f"data.task={task} needs loss.name={' or '.join(suitable)}, got {loss.name}"
            )
        if loss.ipcw and (task == "regression" or (valid.weights_NK == 1).all()):
            raise ValueError(
                f"loss.ipcw=true needs a yes/no label with a column ipcw.{valid.label_names[0]} in "
                "the shards; make it with hpc-ecg cohort --censored ipcw"
            )
        if best_metric == "auto":
            best_metric = "loss" if task == "regression" else "auroc"
        elif task == "regression" and best_metric != "loss":
            raise ValueError(f"train.best_metric={best_metric} needs classes; use loss")
        self.valid, self.task, self.metric, self._loss = valid, task, best_metric, loss
        self._decimals = config.train.best_decimals
        if task == "regression":
            self._warn_about_units()

    def score(self, logits_NK: np.ndarray) -> dict[str, float]:
        """Loss and metrics on validation from logits [N, K]; `score` is the one that decides.

        ValueError if a logit is not finite.
        """
        if not np.isfinite(logits_NK).all():
            raise ValueError("the model predicts NaN or infinity on validation; lower optim.lr")
        scores = score_validation(self.valid, logits_NK, self.task, self._loss)
        return scores | {"score": scores[self.metric]}

    def update(self, progress: Progress, scores: dict[str, float]) -> tuple[Progress, bool]:
        """The progress after this evaluation, and whether these weights are the best so far.

        They are if their score is better than the best or, where scores are rounded, equal to it.
        Only a better score resets patience.
        """
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
        """A loss is rounded in bits, as in fairseq."""
        if self._decimals is None:
            return score
        return round(score / math.log(2) if self.metric == "loss" else score, self._decimals)

    def describe(self, progress: Progress) -> str:
        if progress.best_score is None:
            return ""
        return f"best {self.metric} {progress.best_score:.4f} at step {progress.best_step}"

    def _warn_about_units(self) -> None:
        """A new head predicts about 0, and each step moves it by about the learning rate."""
        for name, label_N in zip(self.valid.label_names, self.valid.labels_NK.T, strict=True):
            known_N = label_N[~np.isnan(label_N)]
            if not len(known_N) or not np.ptp(known_N):
                continue
            mean, sd = float(known_N.mean()), float(known_N.std())
            if abs(mean) > FAR_FROM_ZERO * sd or not 0.1 <= sd <= 10:
                logger.warning(
                    f"{name} is {mean:.3g} ± {sd:.3g} in split valid: a new head starts at 0 and "
                    "may never get there; give standardized values, such as "
                    f"({name} − {mean:.3g}) / {sd:.3g}"
                )
