"""A linear probe on cached features, compared with running the backbone in every epoch.

5 seeds × 50 epochs of `train.freeze=backbone` on a synthetic cohort, through `finetune`. The cached
way runs in full, including the computation of features. The uncached way would take hours: it runs
for one epoch and for three, and the time for 5 × 50 epochs is extrapolated. Runs of both ways with
the same settings are compared.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
from original_files import export_original
from synthetic import Population, write_cohort

from hpc_ecg.cohort.splits import SplitPlan
from hpc_ecg.cohort.table import Columns
from hpc_ecg.config.load import load_config
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.shards.sharding_plan import ShardingPlan
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

TARGETS = {"largest_difference": 1e-5}
SMALL = Architecture(
    encoder_layers=4,
    encoder_embed_dim=256,
    encoder_ffn_embed_dim=1024,
    encoder_attention_heads=4,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patients", type=int, default=40, help="about 2.2 ECGs each (default 40)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument(
        "--small", action="store_true", help="4 layers of width 256, not the published model"
    )


def measure(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_cohort(
            folder / "ecgs",
            num_patients=options.patients,
            seed=1,
            population=Population(af_prevalence=0.4),
        )
        plan = ShardingPlan(
            table=table,
            out=folder / "shards",
            columns=Columns(labels=["af"], patient="patient_id"),
            recordings=Recordings(signals=table.parent),
            split=SplitPlan(fractions=(0.6, 0.2, 0.2)),
        )
        records = shard_ecgs(plan)["records"]
        architecture = SMALL if options.small else Architecture()
        model = build_model(architecture, 1, ModelConfig())
        export_original(folder / "base.pt", model, "base_ssl")
        del model
        return {
            "train_ecgs": records["train"],
            "valid_ecgs": records["valid"],
            **_compare(folder, options.seeds, options.epochs),
        }


def _compare(folder: Path, seeds: int, epochs: int) -> dict[str, float]:
    one, three = (_run(folder, f"uncached-{n}", n, 0, cached=False) for n in (1, 3))
    per_epoch = (three.seconds - one.seconds) / 2
    uncached = seeds * (one.seconds + (epochs - 1) * per_epoch)
    began = time.perf_counter()
    for seed in range(seeds):
        _run(folder, f"cached-{seed}", epochs, seed, cached=True)
    cached = time.perf_counter() - began
    again = _run(folder, "cached-short", 3, 0, cached=True)
    differences = [abs(a - b) for a, b in zip(three.losses, again.losses, strict=True)]
    differences.append(float((three.logits - again.logits).abs().max()))
    return {
        "uncached_seconds_per_epoch": per_epoch,
        "uncached_seconds_extrapolated": uncached,
        "cached_seconds": cached,
        "ratio_to_uncached": uncached / cached,
        "largest_difference": max(differences),
    }


class _Outcome:
    """Seconds, losses and validation logits of a run."""

    def __init__(self, run: RunFolder, seconds: float) -> None:
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        self.seconds = seconds
        self.losses = [line["loss"] for line in lines if line["event"] in ("step", "eval")]
        self.logits = pd.read_parquet(run.predictions / "valid.parquet")["af.logit"]


def _run(folder: Path, name: str, epochs: int, seed: int, *, cached: bool) -> _Outcome:
    settings = [
        f"run_dir={folder / name}",
        f"seed={seed}",
        f"data.shards={folder / 'shards'}",
        "data.batch_size=16",
        f"init.checkpoint={folder / 'base.pt'}",
        "train.freeze=backbone",
        f"train.max_epochs={epochs}",
        "train.patience=null",
        "train.log_every=1",
        "optim.lr=0.001",
        "optim.schedule=constant",
        "optim.warmup_fraction=0",
        f"train.feature_cache={'auto' if cached else 'null'}",
    ]
    began = time.perf_counter()
    run = finetune(load_config(FinetuneConfig, [], settings))
    return _Outcome(run, time.perf_counter() - began)
