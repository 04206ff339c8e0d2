"""Models of one label from a few columns: a plain regression, or the best in cross-validation."""

# N records, F features

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from hpc_ecg.evaluation.metrics import FloatArray, has_label, why_not_scorable
from hpc_ecg.evaluation.predictions import Predictions

MIN_PATIENTS = 10
"""With fewer in a class, cross-validation says little: the linear model of penalty 10 is taken."""
PENALTIES = (1, 10, 100)
Model = Callable[[FloatArray], FloatArray]
"""[N, F] in, logits or values [N] out."""


def fit_plain(known: Predictions, k: int, x_NF: FloatArray) -> Model:
    """Fit label k; scikit-learn's penalty keeps it finite where few records separate classes."""
    check_can_fit(known, k)
    is_regression = known.probability_NK is None
    model = LinearRegression() if is_regression else LogisticRegression()
    keep_N = has_label(known.label_NK[:, k])
    y_N, weight_N = known.label_NK[keep_N, k], known.weights(k)[keep_N]
    model = _fit(make_pipeline(StandardScaler(), model), x_NF[keep_N], y_N, weight_N)
    return model.predict if is_regression else model.decision_function


def fit_best(known: Predictions, k: int, x_NF: FloatArray) -> tuple[Model, str]:
    """Fit label k by what has the least log loss (squared error) in five-fold cross-validation by
    patient, and name it: ridge regression or boosted small trees. Features may be NaN."""
    check_can_fit(known, k)
    keep_N = has_label(known.label_NK[:, k])
    x_NF, y_N, patient_N = x_NF[keep_N], known.label_NK[keep_N, k], known.patient_N[keep_N]
    is_regression = known.probability_NK is None
    loss = mean_squared_error if is_regression else log_loss
    boosting = HistGradientBoostingRegressor if is_regression else HistGradientBoostingClassifier
    trees = boosting(max_iter=60, max_leaf_nodes=8, random_state=0)
    models: dict[str, Any] = {"gradient boosting": trees}
    fill = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    for penalty in PENALTIES:
        linear = Ridge(alpha=penalty) if is_regression else LogisticRegression(C=1 / penalty)
        models[f"linear, penalty {penalty}"] = make_pipeline(fill, StandardScaler(), linear)
    name = "linear, penalty 10"
    classes = [has_label(y_N)] if is_regression else [y_N == 0, y_N == 1]
    if min(len(np.unique(patient_N[is_one])) for is_one in classes) >= MIN_PATIENTS:
        folds = (GroupKFold if is_regression else StratifiedGroupKFold)(5)
        method = "predict" if is_regression else "predict_proba"
        how = {"groups": patient_N, "cv": folds, "method": method}
        name = min(models, key=lambda n: loss(y_N, cross_val_predict(models[n], x_NF, y_N, **how)))
    model = _fit(models[name], x_NF, y_N, known.weights(k)[keep_N])
    return (model.predict if is_regression else model.decision_function), name


def _fit(model: Any, x_NF: FloatArray, y_N: FloatArray, weight_N: FloatArray) -> Any:
    """Fit with weights against censoring; the choice in cross-validation goes without."""
    last = f"{model.steps[-1][0]}__" if isinstance(model, Pipeline) else ""
    return model.fit(x_NF, y_N, **{f"{last}sample_weight": weight_N})


def check_can_fit(known: Predictions, k: int) -> None:
    """ValueError unless label k has two classes (regression: two values)."""
    label_N, name = known.label_NK[:, k], known.labels[k]
    label_N = label_N[has_label(label_N)]
    if known.probability_NK is None and len(np.unique(label_N)) < 2:
        raise ValueError(f"{name} has fewer than two values in the records to fit on")
    if known.probability_NK is not None and (reason := why_not_scorable(label_N)):
        raise ValueError(f"{name}: {reason} in the records it would be fitted on")
