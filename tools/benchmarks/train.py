"""Training steps compared with a bare PyTorch loop, and other costs of a run, on this CPU.

Overhead: `finetune`, reading from shards, against a bare loop over tensors in memory, in
alternating blocks of steps; the median of the ratios. Measured for the published model at batch 8,
and for one so small that a step takes about 10 ms. Accelerate alone, Hugging Face's Trainer (if
installed) and `finetune` under DeepSpeed are compared with the same bare loop.

The limit is a matrix product of the published sizes, measured between the steps:
`share_of_limit` = operations of a step / its seconds / operations per second of the product.

Weak scaling: the small model in 1 and 2 processes with one thread each; `limit` is two independent
runs. `*_loss_difference_*`: largest difference between our losses and those of the bare loop.
`*_cpu`: in CPU time instead of wall time, for a machine that is shared.

Kernels: what engine.kernels=measure would time at batch 8 on this device, one line for each kernel,
and `kernel_*_ratio`: time of each candidate to that of the plain reference.
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
from _costs import BATCH, FULL, SMALL, saving, settings_for, weak_scaling
from _loops import (
    PairedTimer,
    RecordDataset,
    bare_loop,
    host_steps,
    make_batches,
    make_model,
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
from hpc_ecg.model.measure_kernels import KINDS, KernelLoad, measure_kernel
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.shards.sharding_plan import ShardingPlan
from hpc_ecg.training.choose_kernels import describe, device_kind
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
Host = Callable[[PairedTimer], object]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument(
        "--full", type=int, default=4, help="pairs of full-size steps; 0 = none (default 4)"
    )
    parser.add_argument(
        "--small", type=int, default=25, help=f"pairs of {BLOCK} small steps (default 25)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="repeats of scaling and saving (default 3)"
    )
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
    numbers |= _kernels(FULL if options.full else SMALL)
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
        split=SplitPlan(fractions=(0.8, 0.1, 0.1), seed=2),
    )
    shard_ecgs(plan)


def _kernels(architecture: Architecture) -> dict[str, float]:
    """Print a line for each kernel with all its candidates; their times to the reference's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    load = KernelLoad(num_records=BATCH, num_tokens=TOKENS, device=device, dtype=dtype)
    model, about = build_model(architecture, 1, ModelConfig()), {"device": device_kind(device)}
    numbers: dict[str, float] = {}
    for name in KINDS:
        found = measure_kernel(name, model, load)
        chosen, candidates = {name: found["chosen"]}, {name: found["candidates"]}
        print(*describe(about | {"chosen": chosen, "candidates": candidates}))
        for kind, timing in found["candidates"].items():
            numbers |= {f"kernel_{name}_{kind}_ratio": timing["ratio"]} if "ratio" in timing else {}
    return numbers


# Overhead


def _overheads(
    folder: Path, threads: int, size: str, architecture: Architecture, block: int, num_pairs: int
) -> dict[str, float]:
    steps = host_steps(block, num_pairs)
    settings = [
        *settings_for(folder, f"ours-{size}", architecture, steps),
        f"engine.cpu_threads={threads}",
    ]
    config = load_config(FinetuneConfig, [], settings)
    zero = ["engine.parallel=zero2", f"run_dir={folder}/zero-{size}"]
    under_deepspeed = load_config(FinetuneConfig, [], settings + zero)
    batches = make_batches(config, steps + block)
    records, optim = RecordDataset(batches[:steps]), config.optim
    new_model = partial(make_model, architecture, config)
    hosts: dict[str, Host] = {
        "ours": lambda timer: run_ours(config, timer.before_step),
        "accelerate": lambda timer: run_accelerate(
            new_model(), records, BATCH, optim, timer.before_step
        ),
        "trainer": lambda timer: run_trainer(
            new_model(), records, BATCH, optim, timer.before_step, folder / "hf"
        ),
        "deepspeed": lambda timer: run_ours(under_deepspeed, timer.before_step),
    }
    numbers: dict[str, float] = {}
    for name, host in hosts.items():
        needs = {"trainer": "transformers", "deepspeed": "deepspeed"}.get(name)
        if needs and not find_spec(needs):
            print(f"{needs} is not installed: skipped")
            continue
        losses: list[float] = []
        loop = map(losses.append, bare_loop(new_model(), batches, optim))
        peers: dict[str, Callable[[], object]] = {"bare": partial(next, loop)}
        if name == "ours" and architecture == FULL:
            peers["product"] = _product
        timer = PairedTimer(peers, block)
        logged = host(timer)
        if logged is False:  # the model broke, so its times mean nothing
            continue
        title = "overhead" if name == "ours" else name
        wall, cpu = timer.ratio("bare")
        numbers[f"{name}_{size}_ms"] = 1000 * float(timer.seconds()[0])
        numbers[f"{title}_to_bare_loop_{size}"] = float(wall)
        numbers[f"{title}_to_bare_loop_{size}_cpu"] = float(cpu)
        if isinstance(logged, dict):
            differences = [abs(loss - losses[step - 1]) for step, loss in logged.items()]
            numbers[f"{name}_loss_difference_{size}"] = max(differences)
        if "product" in peers:
            numbers |= _limit(timer)
    return numbers


# The limit

PRODUCTS = 8
LEFT = torch.ones(BATCH * TOKENS, FULL.encoder_embed_dim)
RIGHT = torch.ones(FULL.encoder_embed_dim, FULL.encoder_ffn_embed_dim)


def _product() -> None:
    """The matrix products of published sizes whose speed is the limit."""
    for _ in range(PRODUCTS):
        torch.mm(LEFT, RIGHT)


def _limit(timer: PairedTimer) -> dict[str, float]:
    flops = PRODUCTS * 2 * LEFT.numel() * RIGHT.shape[1]
    step_flops = BATCH * training_flops(FULL, SAMPLES)
    attainable = flops / float(timer.seconds("product")[0])
    share, share_cpu = step_flops / flops / timer.ratio("product")
    return {
        "product_gflops_per_s": attainable / 1e9,
        "limit_ecg_per_s": BATCH * attainable / step_flops,
        "ours_full_ecg_per_s": BATCH / float(timer.seconds()[0]),
        "share_of_limit": float(share),
        "share_of_limit_cpu": float(share_cpu),
    }
