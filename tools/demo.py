#!/usr/bin/env python3
"""`make demo`: the whole job on a synthetic cohort, in minutes on two cores, without a download.

The demo generates two populations and shards them. It trains the AF starting checkpoint on the
first, and finds out on the second which starting point is best. Every step is a command that works
the same on real data.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from original_files import SMALL, export_original
from synthetic import Population, write_cohort

from hpc_ecg.atomic_io import foreign_files
from hpc_ecg.cli import main as hpc_ecg
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.weights import load_model

OUT = Path("demo")
MARKER = "made-by-hpc-ecg-demo"
MADE = (MARKER, "source*", "target*", "base_ssl.pt", "wcr_afib_5y.pt", "sweep")
SOURCE = Population(af_prevalence=0.45, age=58)
TARGET = Population(
    af_prevalence=0.25, age=66, amplitude=0.8, fwave_mv=0.05, noise_mv=0.025, wander_mv=0.1
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.parse_args()
    began = time.monotonic()
    _clear(OUT)

    _announce(
        "1. Two synthetic populations: 12-lead ECGs in sinus rhythm and AF, some files broken"
    )
    source = write_cohort(OUT / "source", num_patients=220, seed=1, population=SOURCE)
    target = write_cohort(
        OUT / "target", num_patients=260, seed=2, population=TARGET, num_broken=10
    )

    _announce("2. Recordings to shards, split by patient")
    for table in (source, target):
        folder = table.parent
        run(
            f"data shard {table} --signals {folder} --out {folder}-shards --label af "
            "--patient patient_id --fractions 0.5,0.15,0.35 --workers 1"
        )

    _announce("3. Two starting checkpoints, in the original's layout")
    export_original(OUT / "base_ssl.pt", build_model(SMALL, 1, ModelConfig()), "base_ssl")
    print(f"{OUT}/base_ssl.pt: random weights in place of self-supervised ones")
    run(
        f"finetune run_dir={OUT}/source-run data.shards={OUT}/source-shards data.batch_size=32 "
        f"init.checkpoint={OUT}/base_ssl.pt train.freeze=none train.max_epochs=10 optim.lr=0.004 "
        "optim.warmup_fraction=0.2 model.activation_dropout=0"
    )
    trained = load_model(OUT / "source-run" / "best")
    export_original(OUT / "wcr_afib_5y.pt", trained)
    print(f"{OUT}/wcr_afib_5y.pt: the best weights of that run, including the head")

    _announce("4. Which starting point is best on the second population? Strategies x seeds")
    run("sweep configs/demo.yaml")

    _announce(f"5. The comparison, after {(time.monotonic() - began) / 60:.1f} minutes")
    run(f"report {OUT}/sweep")
    return 0


def run(command: str) -> None:
    """Print and run one command as a user would; exit if it fails."""
    print(f"$ hpc-ecg {command}", flush=True)
    code = hpc_ecg(command.split())
    if code:
        sys.exit(code)


def _announce(text: str) -> None:
    print(f"\n{text}", flush=True)


def _clear(folder: Path) -> None:
    """Replace the folder of an earlier demo; exit if the folder is anything else."""
    if folder.exists():
        if not (folder / MARKER).exists():
            sys.exit(f"{folder}/ exists but is not from a demo; move it away")
        if foreign := foreign_files(folder, *MADE):
            sys.exit(f"{folder}/ holds {foreign[0]}, which no demo made; move it away")
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / MARKER).touch()


if __name__ == "__main__":
    sys.exit(main())
