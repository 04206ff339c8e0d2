"""Point values of one label: labels and scores in, numbers out, by scikit-learn's definitions.

A number is given only where it means something: NaN scores, constant scores and labels of a single
class raise `ValueError` and never become 0 or 0.5. Missing labels are NaN: `has_label` finds the
others. scikit-learn is imported where it is called: it takes half a second, and many callers want
the names or the checks alone.
"""

# N records

import numpy as np
from numpy.typing import NDArray

from hpc_ecg.reporting.numbers import count

FloatArray = NDArray[np.float64]
Weights = FloatArray | None
"""What each record counts; None: 1."""

RANKING_METRICS = ("auroc", "auprc")


def has_label(labels_N: FloatArray) -> NDArray[np.bool_]:
    """Which records have a label (NaN means missing)."""
    return ~np.isnan(np.asarray(labels_N, dtype=np.float64))


def is_weighted(weights_N: Weights) -> bool:
    return weights_N is not None and bool((weights_N != 1).any())


def auroc(labels_N: FloatArray, scores_N: FloatArray, weights_N: Weights = None) -> float:
    """Area under the ROC curve; tied scores count one half."""
    from sklearn.metrics import roc_auc_score

    check_scorable(labels_N, scores_N, "auroc")
    return float(roc_auc_score(labels_N, scores_N, sample_weight=weights_N))


def auprc(labels_N: FloatArray, scores_N: FloatArray, weights_N: Weights = None) -> float:
    """Average precision: the step-wise area under the precision-recall curve."""
    from sklearn.metrics import average_precision_score

    check_scorable(labels_N, scores_N, "auprc")
    value = float(average_precision_score(labels_N, scores_N, sample_weight=weights_N))
    return 1.0 if value > 1 - 1e-12 else value  # its sum of steps ends near 1 where it is 1


def brier(labels_N: FloatArray, probabilities_N: FloatArray, weights_N: Weights = None) -> float:
    """Mean squared distance of the probability from the outcome."""
    return float(np.average((probabilities_N - labels_N) ** 2, weights=weights_N))


def log_loss(labels_N: FloatArray, p_N: FloatArray, weights_N: Weights = None) -> float:
    """Mean negative log likelihood in nats; probabilities are kept 2e-16 away from 0 and 1."""
    from sklearn.metrics import log_loss as mean_log_loss

    return float(mean_log_loss(labels_N, p_N, labels=[0, 1], sample_weight=weights_N))


def regression_metrics(labels_N: FloatArray, values_N: FloatArray) -> dict[str, float]:
    """MAE and RMSE in the label's unit, R² against the mean of these labels, Pearson's r."""
    error_N = values_N - labels_N
    total = float(np.sum((labels_N - labels_N.mean()) ** 2))
    return {
        "mae": float(np.mean(np.abs(error_N))),
        "rmse": float(np.sqrt(np.mean(error_N**2))),
        "r2": 1.0 - float(np.sum(error_N**2)) / total,
        "pearson": float(np.corrcoef(labels_N, values_N)[0, 1]),
    }


def count_label(labels_N: FloatArray, patients_N: NDArray, weights_N: Weights = None) -> dict:
    """Numbers of records and patients: labelled, positive and negative. A patient with ECGs of both
    kinds counts as positive and as negative. Weights matter for the prevalence alone."""
    keep_N = has_label(labels_N)
    labels, patients = labels_N[keep_N], patients_N[keep_N]
    num_positive = int(np.sum(labels == 1))
    weight_N = None if weights_N is None else weights_N[keep_N]
    return {
        "n": int(keep_N.sum()),
        "n_missing": int((~keep_N).sum()),
        "n_positive": num_positive,
        "n_patients": len(np.unique(patients)),
        "n_positive_patients": len(np.unique(patients[labels == 1])),
        "n_negative_patients": len(np.unique(patients[labels == 0])),
        "prevalence": float(np.average(labels == 1, weights=weight_N)) if len(labels) else None,
    }


def why_not_scorable(labels_N: FloatArray) -> str | None:
    """The reason why labels without missing values have no AUROC, or None."""
    classes = np.unique(labels_N)
    if len(classes) == 0:
        return "no record has a label"
    if not np.isin(classes, (0, 1)).all():
        return f"labels must be 0 or 1, got {', '.join(f'{c:g}' for c in classes[:5])}"
    if len(classes) == 1:
        return f"all {count(len(labels_N), 'label', 'are')} {classes[0]:g}; two classes are needed"
    return None


def check_scorable(labels_N: FloatArray, scores_N: FloatArray, name: str) -> None:
    """Raise `ValueError`, naming the label, unless these labels and scores can be ranked."""
    _check_aligned(labels_N, scores_N, name)
    check_finite(scores_N, name)
    if missing := int(np.isnan(labels_N).sum()):
        raise ValueError(
            f"{name}: {count(missing, 'label', 'are')} missing (NaN); "
            "leave them out with has_label()"
        )
    if reason := why_not_scorable(labels_N):
        raise ValueError(f"{name}: {reason}; check the split, or leave this label out")
    check_not_constant(scores_N, name)


def check_regression(labels_N: FloatArray, values_N: FloatArray, name: str) -> None:
    """Raise `ValueError` unless R² and Pearson's r exist for these labels and predictions."""
    _check_aligned(labels_N, values_N, name)
    check_finite(values_N, name)
    if len(labels_N) < 2 or np.ptp(labels_N) == 0:
        raise ValueError(
            f"{name}: needs two different labels, got {count(len(labels_N), 'record')} of "
            "one value; check the split, or leave this label out"
        )
    check_not_constant(values_N, name)


def check_finite(scores_N: FloatArray, name: str) -> None:
    """Raise `ValueError` if a prediction is NaN or infinite."""
    if bad := int(np.sum(~np.isfinite(scores_N))):
        raise ValueError(
            f"{name}: {bad} of {len(scores_N)} predictions are NaN or infinite; "
            "the training diverged: look at its loss, lower optim.lr or leave fp16"
        )


def check_not_constant(scores_N: FloatArray, name: str) -> None:
    """Raise `ValueError` if all predictions are the same."""
    if np.ptp(scores_N) == 0:
        raise ValueError(
            f"{name}: all {count(len(scores_N), 'prediction', 'are')} {scores_N[0]:g}; such "
            "a model tells nothing apart: look at its loss and its init_report.json"
        )


def check_probabilities(probabilities_N: FloatArray, name: str) -> None:
    """Raise `ValueError` unless all probabilities are finite and between 0 and 1."""
    check_finite(probabilities_N, name)
    low, high = float(np.min(probabilities_N)), float(np.max(probabilities_N))
    if low < 0 or high > 1:
        raise ValueError(
            f"{name}: probabilities must lie in 0 to 1, got {low:g} to {high:g}; "
            "apply the sigmoid to the logits"
        )


def _check_aligned(labels_N: FloatArray, scores_N: FloatArray, name: str) -> None:
    if np.shape(labels_N) != np.shape(scores_N) or np.ndim(labels_N) != 1:
        raise ValueError(
            f"{name}: labels {np.shape(labels_N)} and scores {np.shape(scores_N)} must be two "
            "arrays of one length; give one score per record"
        )
