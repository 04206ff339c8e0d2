"""Training steps against a bare PyTorch loop, and what else a run's time goes to, on this CPU.

Overhead: `finetune` itself, reading from shards, against a bare loop on tensors in memory, in
alternating blocks of steps; the median of the ratios. Twice: the published model at batch 8, and
one so small that a step takes about 10 ms. Accelerate alone, Hugging Face's Trainer (if it is
installed) and our run under DeepSpeed are held against the same bare loop.

The limit is a matrix product of the published sizes, measured between the steps:
`share_of_limit` = operations of a step / its seconds / operations per second of the product.

Weak scaling: the small model in 1 and in 2 processes, a thread each; `limit` is two runs that know
nothing of each other. `*_loss_difference_*`: the largest between our losses and the bare loop's.
`*_cpu`: by seconds of processors, not of the wall, for a machine that others use, too.
"""

import argparse
import importlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from _costs import BATCH, FULL, SMALL, saving, weak_scaling, words_of
from _loops import (
    AsRecords,
    Pairs,
    bare_loop,
    batches_of,
    host_steps,
    model_of,
    run_accelerate,
    run_ours,
    run_trainer,
)
from synthetic import Population, write_cohort

from hpc_ecg.cohort.splits import SplitPlan
from hpc_ecg.cohort.table import Columns
from hpc_ecg.config.load import load_config
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.flops import training_flops
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.shards.sharding_plan import ShardingPlan
from hpc_ecg.training.settings import FinetuneConfig

TARGETS = {
    "overhead_to_bare_loop_full": 1.03,
    "overhead_to_bare_loop_small": 1.10,
    "ours_loss_difference_full": 1e-4,
    "ours_loss_difference_small": 1e-4,
}
AT_LEAST: dict[str, float] = {}
TOKENS, SAMPLES = 156, 2500
BLOCK = 10  # steps of the small model in a row
Host = Callable[[Pairs], object]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument(
        "--full", type=int, default=4, help="pairs of full-size steps; 0 = none (default 4)"
    )
    parser.add_argument(
        "--small", type=int, default=25, help=f"pairs of {BLOCK} small steps (default 25)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of scaling, saving (default 3)")
    parser.add_argument("--folder", type=Path, help="disk for shards and checkpoints")


def measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    numbers = {"load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        _make_shards(folder)
        measured = partial(_overheads, folder, options.threads)
        numbers |= measured("small", SMALL, BLOCK, options.small)
        numbers |= weak_scaling(folder, options.repeats)
        if options.full:
            numbers |= measured("full", FULL, 1, options.full)
            numbers |= saving(folder, options.repeats)
    if find_spec("variants"):
        numbers |= importlib.import_module("variants").measure_variants(
            FULL if options.full else SMALL, BATCH, options.repeats
        )
    return numbers | {"load_after": os.getloadavg()[0]}


def _make_shards(folder: Path) -> None:
    table = write_cohort(
        folder / "ecgs", num_patients=100, seed=1, population=Population(af_prevalence=0.5)
    )
    plan = ShardingPlan(
        table=table,
        out=folder / "shards",
        columns=Columns(labels=["af"], patient="patient_id"),
        recordings=Recordings(signals=table.parent),
        split=SplitPlan(fractions=(0.9, 0.06, 0.04), seed=2),
    )
    shard_ecgs(plan)


# Overhead


def _overheads(
    folder: Path, threads: int, size: str, architecture: Architecture, block: int, num_pairs: int
) -> dict[str, float]:
    steps = host_steps(block, num_pairs)
    words = [
        *words_of(folder, f"ours-{size}", architecture, steps),
        f"engine.cpu_threads={threads}",
    ]
    config = load_config(FinetuneConfig, [], words)
    zero = ["engine.parallel=zero2", f"run_dir={folder}/zero-{size}"]
    under_deepspeed = load_config(FinetuneConfig, [], words + zero)
    batches = batches_of(config, steps + block)
    records, optim = AsRecords(batches[:steps]), config.optim
    fresh = partial(model_of, architecture, config)
    hosts: dict[str, Host] = {
        "ours": lambda pairs: run_ours(config, pairs.turn),
        "accelerate": lambda p: run_accelerate(fresh(), records, BATCH, optim, p.turn),
        "trainer": lambda p: run_trainer(fresh(), records, BATCH, optim, p.turn, folder / "hf"),
        "deepspeed": lambda pairs: run_ours(under_deepspeed, pairs.turn),
    }
    numbers: dict[str, float] = {}
    for name, host in hosts.items():
        needs = {"trainer": "transformers", "deepspeed": "deepspeed"}.get(name)
        if needs and not find_spec(needs):
            print(f"{needs} is not installed: nothing measured with it")
            continue
        losses: list[float] = []
        loop = map(losses.append, bare_loop(fresh(), batches, optim))
        peers: dict[str, Callable[[], object]] = {"bare": partial(next, loop)}
        if name == "ours" and architecture == FULL:
            peers["product"] = _product
        pairs = Pairs(peers, block)
        logged = host(pairs)
        if logged is False:  # its numbers would be those of a model that computes nothing
            continue
        title = "overhead" if name == "ours" else name
        wall, cpu = pairs.ratio("bare")
        numbers[f"{name}_{size}_ms"] = 1000 * float(pairs.seconds()[0])
        numbers[f"{title}_to_bare_loop_{size}"] = float(wall)
        numbers[f"{title}_to_bare_loop_{size}_cpu"] = float(cpu)
        if isinstance(logged, dict):
            apart = [abs(loss - losses[step - 1]) for step, loss in logged.items()]
            numbers[f"{name}_loss_difference_{size}"] = max(apart)
        if "product" in peers:
            numbers |= _limit(pairs)
    return numbers


# What can be attained at most

PRODUCTS = 8
LEFT = torch.ones(BATCH * TOKENS, FULL.encoder_embed_dim)
RIGHT = torch.ones(FULL.encoder_embed_dim, FULL.encoder_ffn_embed_dim)


def _product() -> None:
    for _ in range(PRODUCTS):
        torch.mm(LEFT, RIGHT)


def _limit(pairs: Pairs) -> dict[str, float]:
    flops = PRODUCTS * 2 * LEFT.numel() * RIGHT.shape[1]
    step_flops = BATCH * training_flops(FULL, SAMPLES)
    attainable = flops / float(pairs.seconds("product")[0])
    share, share_cpu = step_flops / flops / pairs.ratio("product")
    return {
        "product_gflops_per_s": attainable / 1e9,
        "limit_ecg_per_s": BATCH * attainable / step_flops,
        "ours_full_ecg_per_s": BATCH / float(pairs.seconds()[0]),
        "share_of_limit": float(share),
        "share_of_limit_cpu": float(share_cpu),
    }
