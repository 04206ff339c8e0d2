#!/usr/bin/env python3
"""Write a small synthetic cohort for the tutorials: recordings, tables, and starting weights.

    python tools/practice.py practice

writes practice/table.csv (a row per ECG), practice/records/ (WFDB), practice/ecgs.csv and
practice/diagnoses.csv (for labels from events), practice/inbox/ (three patients, no labels) and
practice/base_ssl.pt, which has random weights in a model small enough for a laptop. The signals
show sinus rhythm or AF, so a model learns them in seconds; results say nothing about patients.
"""

import argparse
import shutil
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from original_files import SMALL, export_original
from synthetic import Population, write_cohort

from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model

NUM_PATIENTS, NUM_BROKEN, NUM_INBOX = 160, 5, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, default=5, help="another one: another cohort")
    options = parser.parse_args()
    folder = options.folder
    if folder.exists():
        sys.exit(f"{folder} exists; choose a new folder")
    population = Population(af_prevalence=0.35)
    table = write_cohort(
        folder,
        num_patients=NUM_PATIENTS,
        seed=options.seed,
        population=population,
        num_broken=NUM_BROKEN,
    )
    write_events(pd.read_csv(table, dtype=str), folder)
    inbox = write_cohort(folder / "new", num_patients=NUM_INBOX, seed=6, population=population)
    shutil.move(inbox.parent / "records", folder / "inbox")
    shutil.rmtree(inbox.parent)
    export_original(folder / "base_ssl.pt", build_model(SMALL, 1, ModelConfig()), "base_ssl")
    print(f"{folder}: {NUM_PATIENTS + NUM_BROKEN} patients, {len(pd.read_csv(table))} ECGs")
    return 0


def write_events(table: pd.DataFrame, folder: Path) -> None:
    """ECGs with a date and the last contact, and a diagnosis of AF (I48.0) for some patients."""
    rng = np.random.default_rng(7)
    ecgs, events = [], []
    for patient, rows in table.groupby("patient_id", sort=True):
        first = date(2012, 1, 1) + timedelta(days=int(rng.integers(0, 1500)))
        contact = first + timedelta(days=int(rng.integers(400, 4000)))
        for number, row in enumerate(rows.itertuples()):
            taken = first + timedelta(days=90 * number)
            ecgs.append((row.record, row.file, patient, row.age, row.sex, taken, contact))
        onset = first + timedelta(days=int(rng.integers(-200, 3000)))
        if (rows["af"] == "1").any() and onset <= contact:
            events.append((patient, onset, "I48.0"))
        events.append((patient, first, "I10"))
    columns = ["record", "file", "patient", "age", "sex", "time", "last_contact"]
    pd.DataFrame(ecgs, columns=columns).to_csv(folder / "ecgs.csv", index=False)
    names = ["patient", "time", "code"]
    pd.DataFrame(events, columns=names).to_csv(folder / "diagnoses.csv", index=False)


if __name__ == "__main__":
    sys.exit(main())
