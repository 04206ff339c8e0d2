"""Synthetic patients, their 12-lead ECGs, and whole cohorts on disk, for tutorials and tests.

A patient has a few traits (axis, amplitude, timing, heart rate), so ECGs of one patient look alike.
A Population describes a cohort. Everything is a pure function of the random generator. There is
only sinus rhythm and atrial fibrillation, no other disease: this does not replace real data. The
demo's patients, in sinus rhythm with a risk of AF, are in af_risk.py.
"""

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import waves

from hpc_ecg.ecg.signal import LEADS

# L leads, S samples, W waves of a beat, D dipole

COUNTS_PER_MV = 1000
INVALID_COUNT = -(2**15)
COLUMNS = ("record", "file", "patient_id", "age", "sex", "af")
BROKEN = ("truncated", "flat lead", "invalid samples", "11 leads", "missing file")
PAROXYSMAL = 0.4  # share of AF patients whose ECGs show AF only half of the time
UNLABELLED_EVERY = 60  # every 60th ECG has no label


@dataclass(frozen=True, kw_only=True)
class Population:
    """Parameters that may differ between synthetic cohorts."""

    af_prevalence: float = 0.15
    """Share of ECGs that show AF."""
    heart_rate_bpm: float = 72.0
    """Mean in sinus rhythm; AF is 15/min faster."""
    age: float = 60.0
    """Mean age without AF; patients with AF are 10 years older."""
    amplitude: float = 1.0
    """Factor on the heart's signal; noise is not scaled."""
    fwave_mv: float = 0.07
    """Amplitude of f-waves in V1. At 0, AF shows only as irregular beats without P waves."""
    noise_mv: float = 0.008
    """RMS of the muscle noise."""
    wander_mv: float = 0.05
    """Amplitude of the baseline wander."""
    powerline_mv: float = 0.004
    powerline_hz: float = 50.0


@dataclass(frozen=True, kw_only=True)
class PatientTraits:
    """Traits shared by all ECGs of a patient."""

    age: int
    sex: str
    """female or male."""
    af_share: float
    """Chance that an ECG of this patient shows AF: 0, 0.5 (paroxysmal) or 1."""
    heart_rate_bpm: float
    fwave_mv: float
    beat: waves.Beat


def draw_patient(rng: np.random.Generator, population: Population) -> PatientTraits:
    has_af = rng.random() < population.af_prevalence / (1 - PAROXYSMAL / 2)
    is_paroxysmal = rng.random() < PAROXYSMAL
    is_female = bool(rng.random() < (0.45 if has_af else 0.5))
    age = int(np.clip(rng.normal(population.age + 10 * has_af, 10 if has_af else 15), 18, 98))
    size = population.amplitude * rng.lognormal(0, 0.2) * (0.9 if is_female else 1.0)
    return PatientTraits(
        age=age,
        sex="female" if is_female else "male",
        af_share=has_af * (0.5 if is_paroxysmal else 1.0),
        heart_rate_bpm=float(np.clip(rng.normal(population.heart_rate_bpm, 9), 45, 125)),
        fwave_mv=population.fwave_mv * population.amplitude * rng.lognormal(0, 0.3),
        beat=_draw_beat(rng, age, size),
    )


def synthesize(
    rng: np.random.Generator,
    *,
    af: bool,
    patient: PatientTraits,
    population: Population,
    seconds: float = 10.0,
    sample_rate_hz: int = 500,
) -> np.ndarray:
    """One ECG [12, samples] in mV, standard lead order, in AF or in sinus rhythm."""
    time_S = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    rate = patient.heart_rate_bpm * rng.normal(1, 0.06) + 15 * af
    draw_beats = waves.draw_af_beats if af else waves.draw_sinus_beats
    beat = _without_p(patient.beat) if af else patient.beat
    dipole_DS = waves.beats_to_dipole(time_S, draw_beats(rng, seconds, rate), beat)
    eight_LS = rng.normal(1, 0.03) * waves.LEADS_FROM_DIPOLE_LD @ dipole_DS
    if af:
        eight_LS += waves.draw_fwaves(rng, time_S, patient.fwave_mv)
    return complete_with_noise(rng, time_S, eight_LS, population)


def complete_with_noise(
    rng: np.random.Generator, time_S: np.ndarray, eight_LS: np.ndarray, population: Population
) -> np.ndarray:
    """Twelve leads from eight clean ones, with the population's noise, wander and mains."""
    noise_mv = population.noise_mv * rng.lognormal(0, 0.4)
    wander_mv = population.wander_mv * rng.lognormal(0, 0.4)
    noisy_LS = eight_LS + waves.draw_noise(rng, time_S, noise_mv=noise_mv, wander_mv=wander_mv)
    noisy_LS += waves.draw_mains(rng, time_S, population.powerline_mv, population.powerline_hz)
    return waves.complete_leads(noisy_LS)


def write_cohort(
    folder: Path, *, num_patients: int, seed: int, population: Population, num_broken: int = 0
) -> Path:
    """Write WFDB records (500 Hz, 10 s) to folder/records, and folder/table.csv.

    Returns the path of the table. A patient has 1 to 4 ECGs; a few have no label (empty `af`). A
    patient does not depend on `num_patients`. The last `num_broken` rows are broken recordings of
    separate patients, which cycle through the defects in BROKEN.
    """
    (folder / "records").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for patient_number in range(1, num_patients + num_broken + 1):
        rng = np.random.default_rng([seed, patient_number])
        patient = draw_patient(rng, population)
        broken_number = patient_number - num_patients - 1
        is_broken = broken_number >= 0
        for _ in range(1 if is_broken else rng.choice([1, 2, 3, 4], p=[0.3, 0.25, 0.25, 0.2])):
            af = bool(rng.random() < patient.af_share)
            row = _row(len(rows) + 1, patient_number, patient, af)
            rows.append(row)
            signal_LS = synthesize(rng, af=af, patient=patient, population=population)
            defect = BROKEN[broken_number % len(BROKEN)] if is_broken else ""
            _write_record(folder / str(row["file"]), signal_LS, defect)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def write_wfdb(path: Path, counts_LS: np.ndarray, leads: tuple[str, ...], rate_hz: int) -> None:
    """Write `path`.hea and .dat in format 16, 1000 counts per mV. 40 times faster than wrsamp."""
    path.with_suffix(".dat").write_bytes(counts_LS.T.astype("<i2").tobytes())
    lines = [f"{path.name} {len(leads)} {rate_hz} {counts_LS.shape[1]}"]
    for lead, counts_S in zip(leads, counts_LS.astype(int), strict=True):
        checksum = counts_S.sum() % 2**16
        fields = f"16 {COUNTS_PER_MV}(0)/mV 16 0 {counts_S[0]} {checksum} 0 {lead}"
        lines.append(f"{path.name}.dat {fields}")
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n", encoding="ascii")


def _draw_beat(rng: np.random.Generator, age: int, size: float) -> waves.Beat:
    """Draw a patient's beat: amplitude, axis, widths, PR and QT vary around the typical beat."""
    typical = waves.TYPICAL_BEAT
    tilt = np.radians(rng.normal(0.4 * (50 - age), 15))  # the frontal axis turns left with age
    turn = np.radians(rng.normal(0, 12))  # rotation of the heart about its long axis
    frontal = np.array(
        [[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]
    )
    turned = np.array(
        [[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]]
    )
    shape_W1 = rng.lognormal(0, 0.12, (len(typical.onset_W), 1))
    onset_W = typical.onset_W * rng.normal(1, 0.03)
    onset_W[: waves.NUM_P_WAVES] += rng.normal(0, 0.012)
    return waves.Beat(
        onset_W=onset_W,
        width_W=typical.width_W * rng.normal(1, 0.05),
        dipole_WD=size * shape_W1 * typical.dipole_WD @ frontal.T @ turned.T,
    )


def _without_p(beat: waves.Beat) -> waves.Beat:
    dipole_WD = beat.dipole_WD.copy()
    dipole_WD[: waves.NUM_P_WAVES] = 0
    return dataclasses.replace(beat, dipole_WD=dipole_WD)


def _row(number: int, patient_number: int, patient: PatientTraits, af: bool) -> dict[str, object]:
    record = f"r{number:05d}"
    label = "" if number % UNLABELLED_EVERY == UNLABELLED_EVERY // 2 else int(af)
    values = (
        record,
        f"records/{record}",
        f"p{patient_number:05d}",
        patient.age,
        patient.sex,
        label,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _write_record(path: Path, signal_LS: np.ndarray, defect: str) -> None:
    """Write one record, with a defect from BROKEN, or "" for none."""
    if defect == "missing file":
        return
    counts_LS = np.rint(signal_LS * COUNTS_PER_MV).clip(INVALID_COUNT + 1, -INVALID_COUNT - 1)
    leads: tuple[str, ...] = LEADS
    if defect == "flat lead":
        counts_LS[LEADS.index("V3")] = 0
    elif defect == "invalid samples":
        counts_LS[LEADS.index("II"), 1000:1500] = INVALID_COUNT
    elif defect == "11 leads":
        leads, counts_LS = LEADS[:-1], counts_LS[:-1]
    write_wfdb(path, counts_LS, leads, 500)
    if defect == "truncated":
        signal_path = path.with_suffix(".dat")
        signal_path.write_bytes(signal_path.read_bytes()[: counts_LS.size])  # half of the bytes
