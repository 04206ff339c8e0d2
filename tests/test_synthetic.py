"""Synthetic ECGs: physics, rhythm, patients; cohorts: deterministic and broken on purpose."""

import csv
import filecmp

import numpy as np
import pytest
import waves
from scipy.signal import find_peaks, periodogram
from synthetic import Population, draw_patient, synthesize, write_cohort

from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.preprocess import prepare
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.signal import LEADS, SignalSpec

QUIET = Population(noise_mv=0.0, wander_mv=0.0, powerline_mv=0.0)
ROW = {lead: row for row, lead in enumerate(LEADS)}


def ecg_of(seed, af, population=QUIET, seconds=10.0):
    rng = np.random.default_rng(seed)
    patient = draw_patient(rng, population)
    return synthesize(rng, af=af, patient=patient, population=population, seconds=seconds)


def rr_seconds(signal_LS):
    """R-R intervals from the steepest slopes over all leads."""
    steep_S = np.abs(np.diff(signal_LS, axis=1)).sum(axis=0)
    steep_S = np.convolve(steep_S, np.ones(30), "same")
    peaks, _ = find_peaks(steep_S, height=0.5 * steep_S.max(), distance=125)
    return np.diff(peaks) / 500


def mean_beat(signal_LS, lead):
    """Samples from -0.3 to +0.1 s about the steepest point of each beat, averaged."""
    steep_S = np.convolve(np.abs(np.diff(signal_LS, axis=1)).sum(axis=0), np.ones(30), "same")
    peaks, _ = find_peaks(steep_S, height=0.5 * steep_S.max(), distance=125)
    inside = [p for p in peaks if 150 <= p < signal_LS.shape[1] - 50]
    return np.mean([signal_LS[ROW[lead], p - 150 : p + 50] for p in inside], axis=0)


@pytest.mark.parametrize("af", [False, True])
def test_limb_leads_obey_einthoven_and_goldberger(af):
    signal_LS = ecg_of(0, af, Population())
    one, two, three, avr, avl, avf = signal_LS[:6]
    np.testing.assert_allclose(three, two - one, atol=1e-12)
    np.testing.assert_allclose(avr + avl + avf, 0, atol=1e-12)
    np.testing.assert_allclose(avl, (one - three) / 2, atol=1e-12)
    np.testing.assert_allclose(avf, (two + three) / 2, atol=1e-12)


def test_a_typical_sinus_beat_looks_like_one():
    peaks_B = np.arange(-2, 8, 1.0)
    dipole_DS = waves.beats_to_dipole(np.arange(1500) / 500 + 1.5, peaks_B, waves.TYPICAL_BEAT)
    lead = dict(
        zip(LEADS, waves.complete_leads(waves.LEADS_FROM_DIPOLE_LD @ dipole_DS), strict=True)
    )
    for name in ("I", "II", "aVF", "V4", "V5", "V6"):
        assert lead[name].max() > 2 * -lead[name].min(), f"R dominates {name}"
    for name in ("aVR", "V1"):
        assert -lead[name].min() > 2 * lead[name].max(), f"S dominates {name}"
    assert 0.5 < lead["II"].max() < 2
    p_wave, t_wave = slice(150, 200), slice(350, 450)  # the beat is at sample 250
    for name in ("I", "II", "V5"):
        assert 0.02 < lead[name][p_wave].max() < 0.25
        assert 0.08 < lead[name][t_wave].max() < 0.8


def test_atrial_fibrillation_is_irregular_and_sinus_rhythm_is_not():
    for seed in range(10):
        sinus_s = rr_seconds(ecg_of(seed, af=False, seconds=60))
        af_s = rr_seconds(ecg_of(seed, af=True, seconds=60))
        assert sinus_s.std() / sinus_s.mean() < 0.08
        assert 0.12 < af_s.std() / af_s.mean() < 0.35
        lag_one = np.corrcoef(af_s[:-1], af_s[1:])[0, 1]
        assert abs(lag_one) < 0.5  # independent intervals


def test_the_p_wave_is_there_in_sinus_rhythm_and_gone_in_atrial_fibrillation():
    no_fwaves = Population(noise_mv=0, wander_mv=0, powerline_mv=0, fwave_mv=0)
    before_qrs = slice(40, 115)
    for seed in range(5):
        sinus = mean_beat(ecg_of(seed, False, no_fwaves, 60), "II")[before_qrs]
        fibrillating = mean_beat(ecg_of(seed, True, no_fwaves, 60), "II")[before_qrs]
        assert np.ptp(sinus) > 0.05
        assert np.ptp(fibrillating) < 0.5 * np.ptp(sinus)


def test_fwaves_are_4_to_9_hz_and_largest_in_v1():
    time_S = np.arange(30_000) / 500
    fwaves_LS = waves.draw_fwaves(np.random.default_rng(0), time_S, 0.1)
    size_L = fwaves_LS.std(axis=1)
    assert size_L.argmax() == 2
    frequency, power = periodogram(fwaves_LS[2], 500)
    assert 4 <= frequency[power.argmax()] <= 9
    is_fundamental = (frequency >= 3.5) & (frequency <= 9.5)
    assert power[is_fundamental].sum() > 0.8 * power.sum()


def test_ecgs_of_one_patient_are_more_alike_than_those_of_two():
    def template(rng, patient):
        signal_LS = synthesize(rng, af=False, patient=patient, population=QUIET)
        return np.concatenate([mean_beat(signal_LS, lead) for lead in LEADS])

    rng = np.random.default_rng(0)
    patients = [draw_patient(rng, QUIET) for _ in range(8)]
    first = np.array([template(rng, p) for p in patients])
    again = np.array([template(rng, p) for p in patients])
    distance = np.linalg.norm(first[:, None] - again[None], axis=2)
    assert (distance.argmin(axis=1) == np.arange(8)).mean() >= 0.75


def test_populations_differ_as_asked():
    rng = np.random.default_rng(0)
    population = Population(af_prevalence=0.3, heart_rate_bpm=90)
    patients = [draw_patient(rng, population) for _ in range(3000)]
    share = np.array([p.af_share for p in patients])
    age = np.array([p.age for p in patients])
    assert share.mean() == pytest.approx(0.3, abs=0.03)
    assert set(share) == {0.0, 0.5, 1.0}
    assert age[share > 0].mean() - age[share == 0].mean() > 5
    assert {p.sex for p in patients} == {"female", "male"}
    assert (age.min(), age.max()) >= (18, 60)
    assert np.mean([p.heart_rate_bpm for p in patients]) == pytest.approx(90, abs=1)
    louder = ecg_of(0, False, Population(amplitude=2.0, noise_mv=0, wander_mv=0, powerline_mv=0))
    np.testing.assert_allclose(louder, 2 * ecg_of(0, False), rtol=1e-9)


@pytest.mark.parametrize("rate", [250, 400, 1000])
def test_length_and_rate_are_as_asked(rate):
    rng = np.random.default_rng(0)
    patient = draw_patient(rng, QUIET)
    options = {"af": True, "patient": patient, "population": QUIET, "sample_rate_hz": rate}
    assert synthesize(rng, seconds=7.3, **options).shape == (12, round(7.3 * rate))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """(folder, rows) of 30 patients and one broken recording of each kind."""
    folder = tmp_path_factory.mktemp("cohort")
    table = write_cohort(folder, num_patients=30, seed=1, population=Population(), num_broken=5)
    with table.open(encoding="utf-8") as file:
        return folder, list(csv.DictReader(file))


def test_a_cohort_is_the_same_for_the_same_seed_and_another_for_another(cohort, tmp_path):
    folder, rows = cohort
    again, other = tmp_path / "again", tmp_path / "other"
    write_cohort(again, num_patients=30, seed=1, population=Population(), num_broken=5)
    write_cohort(other, num_patients=3, seed=2, population=Population())
    names = ["table.csv", *(f"records/{p.name}" for p in (folder / "records").iterdir())]
    assert len(names) == 1 + 2 * (len(rows) - 1)
    assert filecmp.cmpfiles(folder, again, names, shallow=False)[1:] == ([], [])
    first = "records/r00001.dat"
    assert (other / first).read_bytes() != (folder / first).read_bytes()


def test_a_cohort_table_has_repeat_patients_and_missing_labels(cohort):
    _, rows = cohort
    assert list(rows[0]) == ["record", "file", "patient_id", "age", "sex", "af"]
    patients = [row["patient_id"] for row in rows]
    counts = [patients.count(p) for p in dict.fromkeys(patients)]
    assert len(counts) == 35
    assert (min(counts), max(counts)) == (1, 4)
    assert {row["af"] for row in rows} == {"", "0", "1"}
    assert len({row["record"] for row in rows}) == len(rows)


@pytest.mark.slow
def test_sound_records_of_a_cohort_can_be_used_and_broken_ones_say_why(cohort):
    folder, rows = cohort
    reasons = []
    for row in rows:
        try:
            recording = read_recording(find_recording(folder, row["file"]), ArrayLayout())
            assert prepare(recording, SignalSpec())[0].flags == ()
            reasons.append("")
        except RecordError as error:
            reasons.append(error.reason)
    assert set(reasons[:-5]) == {""}
    assert reasons[-5:] == ["unreadable", "flat lead", "NaN", "leads", "not found"]
