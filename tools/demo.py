#!/usr/bin/env python3
"""`make demo`: the whole job on synthetic patients, in minutes on two cores, without a download.

All ECGs show sinus rhythm; the question is who will have AF within five years. A network is
pre-trained on one population without outcomes, then trained on its outcomes; the sweep finds out on
a second population which start is best. Every step is a command that works the same on real data.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
from af_risk import write_risk_cohort
from original_files import export_original
from sklearn.metrics import roc_auc_score
from synthetic import Population

from hpc_ecg.atomic_io import foreign_files
from hpc_ecg.cli import main as hpc_ecg
from hpc_ecg.weights import load_model

OUT = Path("demo")
MARKER = "made-by-hpc-ecg-demo"
MADE = (
    *(MARKER, "source*", "target*", "inbox", "pretraining", "base_ssl.pt", "wcr_afib_5y.pt"),
    *("sweep", "risks.csv", "why.html", "af-model"),  # the last three as suggested at the end
)
SOURCE = Population(age=58, noise_mv=0.015)
TARGET = Population(age=64, amplitude=0.85, noise_mv=0.02, wander_mv=0.08)
CONTROL = "random"
NOTE = (
    "Synthetic ECGs, whose true risk is known: on these test patients it ranks with AUROC "
    "{ceiling:.3f}, and nothing can be expected to rank better. base_ssl.pt was pre-trained on "
    "measurements of synthetic P waves: nothing here says how the published checkpoints compare."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="another one: other patients")
    seed = parser.parse_args().seed
    began = time.monotonic()
    _clear(OUT)

    _announce("1. Two synthetic populations, all in sinus rhythm. Who will have AF within 5 years?")
    _write_cohorts(seed)

    _announce("2. Recordings to shards, split by patient")
    for name, fractions in (("source", "0.8,0.1,0.1"), ("target", "0.3,0.15,0.55")):
        run(
            f"data shard {OUT}/{name}/table.csv --signals {OUT}/{name} --out {OUT}/{name}-shards "
            f"--label af_5y --patient patient_id --fractions {fractions} --workers 1"
        )

    _announce("3. Two starting points from the first population, written in the original's layout")
    run(f"finetune configs/demo_pretraining.yaml seed={seed}")
    _export("pretraining", "base_ssl")
    run(
        f"finetune run_dir={OUT}/source-run data.shards={OUT}/source-shards data.batch_size=32 "
        f"init.checkpoint={OUT}/base_ssl.pt optim.lr=0.001 train.max_epochs=3 engine.cpu_threads=1"
    )
    _export("source-run", "wcr_afib_5y")

    _announce("4. Which start is best for the second population? Strategies x seeds")
    highest = ceiling(OUT)
    run(f"sweep configs/demo.yaml note={shlex.quote(NOTE.format(ceiling=highest))}")

    _announce(f"5. The comparison, after {(time.monotonic() - began) / 60:.1f} minutes")
    run(f"report {OUT}/sweep")
    auroc = strategies_by_auroc(OUT / "sweep")
    best = next(iter(auroc))
    print(
        f"\nThe truth: the true risk ranks these test patients with AUROC {highest:.3f}. {best} "
        f"reaches {auroc[best]:.3f}, the control ({CONTROL}) {auroc[CONTROL]:.3f}; chance is 0.5."
    )
    _suggest(best)
    return 0


def _write_cohorts(seed: int) -> None:
    """The two populations, and recordings of three more patients of the second without labels."""
    for name, number, population in (("source", 1500, SOURCE), ("target", 900, TARGET)):
        own_seed = 2 * seed + (name == "target")  # no cohort of another seed has these patients
        write_risk_cohort(OUT / name, num_patients=number, seed=own_seed, population=population)
        table = pd.read_csv(OUT / name / "table.csv")
        patients = table.drop_duplicates("patient_id")
        print(
            f"{OUT}/{name}: {len(table):,} ECGs of {len(patients):,} patients, "
            f"of whom {patients['af_5y'].sum():,} will have AF"
        )
    write_risk_cohort(OUT / "target-new", num_patients=3, seed=10**6 + seed, population=TARGET)
    shutil.move(OUT / "target-new" / "records", OUT / "inbox")
    shutil.rmtree(OUT / "target-new")


def run(command: str) -> None:
    """Print and run one command as a user would; exit if it fails."""
    print(f"$ hpc-ecg {command}", flush=True)
    code = hpc_ecg(shlex.split(command))
    if code:
        sys.exit(code)


def ceiling(folder: Path) -> float:
    """The AUROC of the true risk for the test patients of the second population."""
    index = pd.read_parquet(folder / "target-shards" / "index.parquet", columns=["record", "split"])
    tested = index.loc[index["split"] == "test", "record"]
    tables = [pd.read_csv(folder / "target" / f"{name}.csv") for name in ("table", "truth")]
    table = tables[0].merge(tables[1][["record", "true_risk"]], on="record")
    table = table[table["record"].isin(tested)]
    return float(roc_auc_score(table["af_5y"], table["true_risk"]))


def strategies_by_auroc(sweep: Path) -> dict[str, float]:
    """Each strategy's AUROC on the test patients, as the report has it; the highest comes first."""
    found = json.loads((sweep / "report" / "comparison.json").read_text(encoding="utf-8"))
    return {s["name"]: s["estimates"]["auroc"]["value"] for s in found["strategies"]}


def _export(name: str, file: str) -> None:
    """Write the best weights of a run as a published file is laid out."""
    layout = file if file == "base_ssl" else "classifier"
    export_original(OUT / f"{file}.pt", load_model(OUT / name / "best"), layout)
    print(f"{OUT}/{file}.pt: the best weights of {OUT}/{name}")


def _suggest(strategy: str) -> None:
    """Three things to try next, to be pasted as they are."""
    model = f"{OUT}/sweep --strategy {strategy}"
    activate = os.path.relpath(Path(sys.prefix) / "bin" / "activate")
    recording = sorted((OUT / "inbox").glob("*.hea"))[0]
    _announce("Try next: the risk of new patients, what drove one of them, a folder to hand over")
    for command in (
        f"source {activate}",
        f"hpc-ecg predict {model} {OUT}/inbox --out {OUT}/risks.csv",
        f"hpc-ecg explain {model} {recording} --out {OUT}/why.html",
        f"hpc-ecg bundle {model} {OUT}/af-model",
    ):
        print(command)
    print(f"\nThe report: {OUT}/sweep/report/index.html", flush=True)


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
