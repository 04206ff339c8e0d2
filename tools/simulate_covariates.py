"""Does `combine` find what covariates add, and nothing where they add nothing?

    python tools/simulate_covariates.py 0.5 150     # log-odds per SD of age; number of cohorts

Each cohort has 750 patients for validation and 750 for the test, 1 to 3 ECGs each; the outcome has
log-odds -2.2 + z + EFFECT * (age per SD + 2 * (smoker - 0.3)), where the network's logit is 2z - 1.
"""

import sys

import numpy as np
from scipy.special import expit

from hpc_ecg.evaluation.covariates import combine_label, learn_covariate
from hpc_ecg.evaluation.predictions import Predictions

PATIENTS, YOUDEN = 750, 0.3


def simulate(rng: np.random.Generator, effect: float, patients: int = PATIENTS) -> Predictions:
    """One split: labels, logits, and the groups age and smoker."""
    patient_N = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    num = len(patient_N)
    z_N = 0.8 * rng.normal(size=patients)[patient_N] + 0.6 * rng.normal(size=num)
    age_N = rng.normal(60, 12, patients)[patient_N].clip(20, 90)
    smokes_N = (rng.random(patients) < 0.3)[patient_N]
    odds_N = -2.2 + z_N + effect * ((age_N - 60) / 12 + 2 * (smokes_N - 0.3))
    label_N1 = (rng.random(patients)[patient_N] < expit(odds_N)).astype(float)[:, None]
    return Predictions(
        record_N=np.arange(num).astype(str).astype(object),
        patient_N=patient_N.astype(str).astype(object),
        labels=["af"],
        label_NK=label_N1,
        logit_NK=2 * z_N[:, None] - 1,
        probability_NK=expit(2 * z_N[:, None] - 1),
        groups={"age": age_N, "smoker": np.where(smokes_N, "yes", "no").astype(object)},
    )


def main(effect: float, cohorts: int) -> None:
    rng, covered = np.random.default_rng(1), []
    gains: dict[str, list] = {}
    for _ in range(cohorts):
        valid, test = simulate(rng, effect), simulate(rng, effect)
        covariates = [learn_covariate(n, valid.groups[n]) for n in ("age", "smoker")]
        fit = combine_label([valid, test], 0, covariates, {"youden": YOUDEN})
        truth = (0.5, effect / 12, 2 * effect)
        ends = [(t["per_sd"]["low"] / t["sd"], t["per_sd"]["high"] / t["sd"]) for t in fit["terms"]]
        covered.append([low <= b <= high for b, (low, high) in zip(truth, ends, strict=True)])
        for row in fit["scores"]:
            gain, metric = row["over_network"], f"{row['split']}, {row['metric']}"
            gains.setdefault(metric, []).append((gain["value"], gain["low"] > 0, gain["high"] < 0))
    print(f"{cohorts} cohorts, coefficients of logit, age, smoker held:", np.mean(covered, axis=0))
    for metric, rows in gains.items():
        mean, above, below = np.mean(rows, axis=0)
        text = f"interval above 0 in {above:.1%}, holds 0 in {1 - above - below:.1%}"
        print(f"{metric}: mean gain {mean:+.4f}, {text}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
