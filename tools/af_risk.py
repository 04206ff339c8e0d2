"""Synthetic patients in sinus rhythm whose ECGs hold a known risk of AF within five years.

What tells is the left atrium: a P wave that is long, since the atria conduct slowly; a large force
to the back at its end, the deep end of P in V1; now and then an ectopic beat. Age and sex change
both these traits and the risk. A patient's label is drawn from the risk, so `true_risk` ranks as
well as anything can. Apart from the rare ectopic beat, rhythm and rate say nothing.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import waves
from scipy.special import expit
from synthetic import (
    COUNTS_PER_MV,
    Population,
    complete_with_noise,
    draw_patient,
    write_wfdb,
)

from hpc_ecg.ecg.signal import LEADS

# B beats, L leads, S samples, W waves of a beat, D dipole

RIGHT, LEFT, BACK = 0, 1, 2  # P waves of the two atria; the axis of the dipole that points back
P_MS, P_SD_MS = 112.0, 13.0
PR_MS, PR_SD_MS, PR_SEGMENT_MS = 165.0, 18.0, 8.0
QRS_BEGINS_S = -0.045  # from the R peak
P_IN_SD = 5.0  # from onset to end: each wave reaches 2 SD to both sides, and one lies 1 SD later
FORCE_MV = 0.048  # to the back at the end of P, for one SD of late_force
ECTOPIC_PATIENTS, ECTOPIC_ECGS, PREMATURE = 0.07, 0.5, 0.3
LOG_ODDS = {"decades": 0.25, "male": 0.3, "p_duration": 1.0, "late_force": 1.4, "ectopy": 1.0}
INTERCEPT = -2.1
TABLE = ("record", "file", "patient_id", "age", "sex", "af_5y")
MEASURED = ("p_duration", "late_force", "pr", "heart_rate")
TRUTH = ("record", "patient_id", "true_risk", "ectopy", *MEASURED)


@dataclass(frozen=True, kw_only=True)
class RiskPatient:
    """A patient, with the risk of AF within five years that the traits give."""

    age: int
    sex: str
    heart_rate_bpm: float
    p_duration_ms: float
    pr_ms: float
    late_force: float
    """Force to the back at the end of P, in standard deviations."""
    ectopy: bool
    """Half of this patient's ECGs have one atrial ectopic beat."""
    beat: waves.Beat

    @property
    def true_risk(self) -> float:
        traits = {
            "decades": (self.age - 62) / 10,
            "male": self.sex == "male",
            "p_duration": (self.p_duration_ms - P_MS) / P_SD_MS,
            "late_force": self.late_force,
            "ectopy": self.ectopy,
        }
        return float(expit(INTERCEPT + sum(LOG_ODDS[name] * x for name, x in traits.items())))


def draw_risk_patient(rng: np.random.Generator, population: Population) -> RiskPatient:
    """Age, sex, rate and the beat, but for its P wave, are those of `draw_patient`."""
    traits = draw_patient(rng, population)
    decades = (traits.age - 62) / 10
    usual_p_ms = P_MS + 3 * decades + 4 * (traits.sex == "male")
    p_ms = float(np.clip(rng.normal(usual_p_ms, P_SD_MS), 78, 165))
    pr_ms = float(np.clip(rng.normal(PR_MS + 4 * decades, PR_SD_MS), p_ms + PR_SEGMENT_MS, 240))
    late_force = float(np.clip(rng.normal(0.2 * decades, 1), -2.5, 2.5))
    return RiskPatient(
        age=traits.age,
        sex=traits.sex,
        heart_rate_bpm=traits.heart_rate_bpm,
        p_duration_ms=p_ms,
        pr_ms=pr_ms,
        late_force=late_force,
        ectopy=bool(rng.random() < ECTOPIC_PATIENTS),
        beat=_with_p(traits.beat, p_ms / 1000, pr_ms / 1000, late_force),
    )


def _with_p(beat: waves.Beat, p_s: float, pr_s: float, late_force: float) -> waves.Beat:
    """The beat with a P wave of this duration, PR interval and late force."""
    onset_W, width_W, dipole_WD = beat.onset_W.copy(), beat.width_W.copy(), beat.dipole_WD.copy()
    begins, sd = QRS_BEGINS_S - pr_s, p_s / P_IN_SD
    onset_W[[RIGHT, LEFT]] = begins + 2 * sd, begins + p_s - 2 * sd
    width_W[[RIGHT, LEFT]] = sd
    typical = np.linalg.norm(waves.TYPICAL_BEAT.dipole_WD[LEFT])
    dipole_WD[LEFT, BACK] += FORCE_MV * late_force * np.linalg.norm(dipole_WD[LEFT]) / typical
    return waves.Beat(onset_W=onset_W, width_W=width_W, dipole_WD=dipole_WD)


def synthesize_sinus(
    rng: np.random.Generator, patient: RiskPatient, population: Population, heart_rate_bpm: float
) -> np.ndarray:
    """One ECG [12, 5000] in mV, standard lead order: 10 s at 500 Hz, in sinus rhythm. An ectopic
    beat comes early, with an inverted P wave (from the lower atrium)."""
    time_S = np.arange(5000) / 500
    peaks_B = waves.draw_sinus_beats(rng, 10.0, heart_rate_bpm)
    ectopic = rng.choice(np.flatnonzero((peaks_B > 2) & (peaks_B < 8)))
    is_ectopic = patient.ectopy and rng.random() < ECTOPIC_ECGS
    if is_ectopic:
        peaks_B[ectopic] -= PREMATURE * (peaks_B[ectopic] - peaks_B[ectopic - 1])
    dipole_DS = waves.beats_to_dipole(time_S, peaks_B, patient.beat)
    if is_ectopic:
        dipole_DS -= 2 * waves.p_waves(time_S - peaks_B[ectopic], patient.beat)
    eight_LS = rng.normal(1, 0.03) * waves.LEADS_FROM_DIPOLE_LD @ dipole_DS
    return complete_with_noise(rng, time_S, eight_LS, population)


def write_risk_cohort(
    folder: Path, *, num_patients: int, seed: int, population: Population
) -> Path:
    """Write WFDB records (500 Hz, 10 s; one or two a patient) to folder/records, and three tables.

    table.csv is what a hospital has. measurements.csv holds what an ECG machine measures of the P
    wave and the rate, here exact, and standardized. truth.csv holds what only the generator knows.
    Returns the path of table.csv.
    """
    (folder / "records").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for number in range(1, num_patients + 1):
        rng = np.random.default_rng([seed, number])
        patient = draw_risk_patient(rng, population)
        has_af = int(rng.random() < patient.true_risk)
        for _ in range(rng.choice([1, 2], p=[0.6, 0.4])):
            rate = patient.heart_rate_bpm * rng.normal(1, 0.06)
            signal_LS = synthesize_sinus(rng, patient, population, rate)
            rows.append(_row(len(rows) + 1, number, patient, has_af, rate))
            counts_LS = np.rint(signal_LS * COUNTS_PER_MV)
            write_wfdb(folder / str(rows[-1]["file"]), counts_LS, LEADS, 500)
    _write_table(folder / "measurements.csv", ("record", *MEASURED), rows)
    _write_table(folder / "truth.csv", TRUTH, rows)
    return _write_table(folder / "table.csv", TABLE, rows)


def _row(
    number: int, patient_number: int, patient: RiskPatient, has_af: int, rate: float
) -> dict[str, object]:
    return {
        "record": f"r{number:05d}",
        "file": f"records/r{number:05d}",
        "patient_id": f"p{patient_number:05d}",
        "age": patient.age,
        "sex": patient.sex,
        "af_5y": has_af,
        "true_risk": round(patient.true_risk, 6),
        "ectopy": int(patient.ectopy),
        "p_duration": round((patient.p_duration_ms - P_MS) / P_SD_MS, 4),
        "late_force": round(patient.late_force, 4),
        "pr": round((patient.pr_ms - PR_MS) / PR_SD_MS, 4),
        "heart_rate": round((rate - 72) / 10, 4),
    }


def _write_table(path: Path, columns: Iterable[str], rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
