"""The demo's patients: a known risk that lies in the P wave and not in the rhythm."""

import csv
import filecmp

import numpy as np
import pytest
from af_risk import (
    MEASURED,
    TABLE,
    draw_risk_patient,
    synthesize_sinus,
    write_risk_cohort,
)
from sklearn.metrics import roc_auc_score
from synthetic import Population

from hpc_ecg.comparison.heartbeat import FEATURES, RHYTHM, features_of
from hpc_ecg.ecg.signal import LEADS

NUM_ECGS = 400
V1 = LEADS.index("V1")


def expected_auroc(score_N, risk_N):
    """The AUROC to expect when labels are drawn from the risk: each patient counts as a case with
    weight risk, and as a control with 1 - risk."""
    label = np.repeat([1, 0], len(risk_N))
    return roc_auc_score(label, np.r_[score_N, score_N], sample_weight=np.r_[risk_N, 1 - risk_N])


def draw_many(number):
    rng = np.random.default_rng(0)
    return [draw_risk_patient(rng, Population()) for _ in range(number)]


@pytest.fixture(scope="module")
def measured():
    """Patients, and FEATURES of an ECG of each."""
    rng = np.random.default_rng(1)
    patients = draw_many(NUM_ECGS)
    ecgs = [synthesize_sinus(rng, p, Population(), p.heart_rate_bpm) for p in patients]
    return patients, np.stack([features_of(ecg[:, ::2], LEADS, 250) for ecg in ecgs]), ecgs


def test_the_true_risk_has_the_auroc_that_the_demo_calls_its_ceiling():
    patients = draw_many(4000)
    risk = np.array([p.true_risk for p in patients])
    label = np.random.default_rng(2).random(len(risk)) < risk
    assert label.mean() == pytest.approx(risk.mean(), abs=0.02)
    assert roc_auc_score(label, risk) == pytest.approx(expected_auroc(risk, risk), abs=0.015)
    assert expected_auroc(risk, risk) == pytest.approx(0.87, abs=0.02)
    for name in ("age", "p_duration_ms", "late_force", "ectopy"):  # each tells a part, none all
        value = np.array([getattr(p, name) for p in patients], float)
        assert 0.5 < expected_auroc(value, risk) < 0.83, name


def test_neither_rhythm_nor_rate_tells_the_risk(measured):
    patients, features, _ = measured
    risk = np.array([p.true_risk for p in patients])
    for name in (*RHYTHM, "heart rate"):
        value = features[:, FEATURES.index(name)]
        assert expected_auroc(value, risk) == pytest.approx(0.5, abs=0.06), name


def test_the_p_wave_is_as_long_as_the_patient_says(measured):
    patients, features, _ = measured
    found = features[:, FEATURES.index("P duration")]
    is_found = np.isfinite(found)
    assert is_found.mean() > 0.97  # all are in sinus rhythm
    true = np.array([p.p_duration_ms for p in patients])
    assert np.corrcoef(found[is_found], true[is_found])[0, 1] > 0.85
    pr = np.array([p.pr_ms for p in patients])
    assert np.corrcoef(features[is_found, FEATURES.index("PR")], pr[is_found])[0, 1] > 0.85


def test_a_late_force_makes_the_end_of_p_deep_in_v1():
    quiet = Population(noise_mv=0, wander_mv=0, powerline_mv=0)
    deep, force = [], []
    for seed, patient in enumerate(draw_many(100)):
        ecg = synthesize_sinus(np.random.default_rng(seed), patient, quiet, 60)
        peak = 200 + ecg[LEADS.index("II"), 200:].argmax()
        end = peak + round(500 * (-0.045 - (patient.pr_ms - patient.p_duration_ms) / 1000))
        deep.append(ecg[V1, end - round(0.2 * patient.p_duration_ms) : end].mean())
        force.append(patient.late_force)
    assert np.corrcoef(deep, force)[0, 1] < -0.7


def test_an_ectopic_beat_is_early_and_rare(measured):
    patients, features, _ = measured
    changes = features[:, FEATURES.index("share of changes above 10 %")]
    has_ectopy = np.array([p.ectopy for p in patients])
    assert 0.03 < has_ectopy.mean() < 0.12
    assert 0.25 < (changes[has_ectopy] > 0.1).mean() < 0.75  # half of their ECGs
    assert (changes[~has_ectopy] > 0.1).mean() < 0.02


def test_the_tables_of_a_cohort_agree_and_a_patient_does_not_depend_on_the_others(tmp_path):
    for name, number in (("a", 12), ("b", 6)):
        write_risk_cohort(tmp_path / name, num_patients=number, seed=3, population=Population())
    tables = {}
    for name in ("table", "measurements", "truth"):
        with (tmp_path / "a" / f"{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
    rows = tables["table"]
    assert tuple(rows[0]) == TABLE  # nothing that only the generator knows
    assert tuple(tables["measurements"][0]) == ("record", *MEASURED)
    assert [r["record"] for r in rows] == [r["record"] for r in tables["truth"]]
    labels = {}
    for row in rows:
        assert labels.setdefault(row["patient_id"], row["af_5y"]) == row["af_5y"]
    assert len(labels) == 12 < len(rows)
    with (tmp_path / "b" / "table.csv").open() as file:
        files = [f"{row['file']}.dat" for row in csv.DictReader(file)]
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False)[1:] == ([], [])
