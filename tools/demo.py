#!/usr/bin/env python3
"""`make demo`: the whole job on a synthetic cohort, in minutes on two cores, without a download.

It makes two populations, shards them, trains the AF starting point on the first, and asks on the
second which start is best. Every step is a command that works the same on real data.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from original_files import export_original
from synthetic import Population, write_cohort

from hpc_ecg.cli import main as hpc_ecg
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.weights import load_model

OUT = Path("demo")
MARK = "made-by-hpc-ecg-demo"
# As deep as the published model, so that the files have its 215 and 209 keys, but narrow.
SMALL = Architecture(
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=2,
    conv_feature_layers=((16, 2, 2), (16, 2, 2), (16, 2, 2), (16, 4, 4)),
    conv_pos=16,
    conv_pos_groups=4,
)
SOURCE = Population(af_prevalence=0.45, age=58)
TARGET = Population(
    af_prevalence=0.25, age=66, amplitude=0.8, fwave_mv=0.05, noise_mv=0.025, wander_mv=0.1
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.parse_args()
    began = time.monotonic()
    _clear(OUT)

    _say("1. Two synthetic populations: 12-lead ECGs in sinus rhythm and AF, some files broken")
    source = write_cohort(OUT / "source", num_patients=220, seed=1, population=SOURCE)
    target = write_cohort(
        OUT / "target", num_patients=260, seed=2, population=TARGET, num_broken=10
    )

    _say("2. Recordings to shards, split by patient")
    for table in (source, target):
        folder = table.parent
        run(
            f"data shard {table} --signals {folder} --out {folder}-shards --label af "
            "--patient patient_id --fractions 0.5,0.15,0.35 --workers 1"
        )

    _say("3. The two starting points, in the original's layout")
    export_original(OUT / "base_ssl.pt", build_model(SMALL, 1, ModelConfig()), "base_ssl")
    print(
        f"{OUT}/base_ssl.pt: random weights stand in for self-supervised ones: no pre-training here"
    )
    run(
        f"finetune run_dir={OUT}/source-run data.shards={OUT}/source-shards data.batch_size=32 "
        f"init.checkpoint={OUT}/base_ssl.pt train.freeze=none train.max_epochs=10 optim.lr=0.004 "
        "optim.warmup_fraction=0.2 model.activation_dropout=0"
    )
    trained = load_model(OUT / "source-run" / "best")
    export_original(OUT / "wcr_afib_5y.pt", trained)
    print(f"{OUT}/wcr_afib_5y.pt: the best weights of that run, with its head")

    _say("4. Which start is best on the second population? Strategies x seeds")
    run("sweep configs/demo.yaml")

    _say(f"5. The comparison, after {(time.monotonic() - began) / 60:.1f} minutes")
    run(f"report {OUT}/sweep")
    return 0


def run(words: str) -> None:
    """Run one command as a user would, and show it."""
    print(f"$ hpc-ecg {words}", flush=True)
    code = hpc_ecg(words.split())
    if code:
        sys.exit(code)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _clear(folder: Path) -> None:
    """A demo of before is replaced; any other folder of that name is left alone."""
    if folder.exists():
        if not (folder / MARK).exists():
            sys.exit(f"{folder}/ exists and is not a demo's; move it away")
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / MARK).touch()


if __name__ == "__main__":
    sys.exit(main())
