"""Training steps against a bare PyTorch loop, and what else a run's time goes to, on this CPU.

Overhead: `finetune` itself, reading from shards, against a bare loop on tensors in memory, in
alternating blocks of steps; the median of the ratios. Twice: the published model at batch 8, and
one so small that a step takes about 10 ms. Accelerate alone, Hugging Face's Trainer (if it is
installed) and our run under DeepSpeed are held against the same bare loop.

The limit is a matrix product of the published sizes, measured between the steps:
`share_of_limit` = operations of a step / its seconds / operations per second of the product.

Weak scaling: the small model in 1 and in 2 processes, a thread each; `limit` is two runs that know
nothing of each other. `loss_difference_*`: the largest between our losses and the bare loop's.
"""

import argparse
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
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
from hpc_ecg.config import load_config
from hpc_ecg.model.architecture import Architecture, architecture_to_settings
from hpc_ecg.model.flops import training_flops
from hpc_ecg.model.transformer import build_model
from hpc_ecg.shards.job import Recordings
from hpc_ecg.shards.plan import ShardingPlan
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.training.checkpoint import (
    Progress,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from hpc_ecg.training.settings import FinetuneConfig

TARGETS = {
    "overhead_to_bare_loop_full": 1.03,
    "overhead_to_bare_loop_small": 1.10,
    "loss_difference_full": 1e-4,
    "loss_difference_small": 1e-4,
}
AT_LEAST: dict[str, float] = {}
FULL, BATCH, TOKENS, SAMPLES = Architecture(), 8, 156, 2500
SMALL = Architecture(
    encoder_layers=2,
    encoder_embed_dim=48,
    encoder_ffn_embed_dim=96,
    encoder_attention_heads=4,
    conv_feature_layers=((16, 2, 2),) * 4,
    conv_pos=8,
    conv_pos_groups=4,
)
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
        numbers |= _weak_scaling(folder, options.repeats)
        if options.full:
            numbers |= measured("full", FULL, 1, options.full)
            numbers |= _saving(folder, options.repeats)
    if find_spec("variants"):
        numbers |= importlib.import_module("variants").measure_variants()
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


def _words(folder: Path, name: str, architecture: Architecture, steps: int) -> list[str]:
    """Of a run that logs as by default, and validates and saves at its end alone."""
    sizes = architecture_to_settings(architecture).items()
    return [
        f"run_dir={folder / name}",
        f"data.shards={folder / 'shards'}",
        f"data.batch_size={BATCH}",
        *(f"model.{key}={value}" for key, value in sizes),
        "optim.schedule=constant",
        "optim.warmup_fraction=0",
        "train.best_metric=loss",
        f"train.max_steps={steps}",
        f"train.eval_every={steps}",
        "train.save_every_min=0",
        "engine.device=cpu",
    ]


# Overhead


def _overheads(
    folder: Path, threads: int, size: str, architecture: Architecture, block: int, num_pairs: int
) -> dict[str, float]:
    steps = host_steps(block, num_pairs)
    words = [*_words(folder, f"ours-{size}", architecture, steps), f"engine.cpu_threads={threads}"]
    config = load_config(FinetuneConfig, [], words)
    zero = ["engine.parallel=zero2", f"run_dir={folder}/zero-{size}"]
    under_deepspeed = load_config(FinetuneConfig, [], words + zero)
    batches = batches_of(config, steps + block)
    records, optim = AsRecords(batches), config.optim
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
        loop = bare_loop(fresh(), batches, optim)
        pairs = Pairs({"bare": lambda loop=loop, to=losses: to.append(float(next(loop)))}, block)
        if name == "ours" and architecture == FULL:
            pairs = Pairs(pairs.rivals | {"product": _product}, block)
        logged = host(pairs)
        ratio = median(pairs.ratios("bare"))
        numbers[f"{name}_{size}_ms"] = 1000 * pairs.seconds()
        if name != "ours":
            numbers[f"{name}_to_bare_loop_{size}"] = ratio
            continue
        numbers[f"bare_{size}_ms"] = 1000 * pairs.seconds("bare")
        numbers[f"overhead_to_bare_loop_{size}"] = ratio
        assert isinstance(logged, dict) and logged
        apart = [abs(loss - losses[step - 1]) for step, loss in logged.items()]
        numbers[f"loss_difference_{size}"] = max(apart)
        if architecture == FULL:
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
    # ratios: our step over the product's time
    share = [step_flops / flops / ratio for ratio in pairs.ratios("product")]
    attainable = flops / pairs.seconds("product")
    return {
        "product_gflops_per_s": attainable / 1e9,
        "limit_ecg_per_s": BATCH * attainable / step_flops,
        "ours_full_ecg_per_s": BATCH / pairs.seconds(),
        "share_of_limit": median(share),
    }


# Two processes


def _weak_scaling(folder: Path, repeats: int) -> dict[str, float]:
    rates: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    for repeat in range(repeats):
        rates["one"].append(sum(_rates(folder, f"one-{repeat}", [1])))
        rates["two"].append(sum(_rates(folder, f"two-{repeat}", [2])))
        rates["apart"].append(sum(_rates(folder, f"apart-{repeat}", [1, 1])))
    ratios = {
        name: median(r / one for r, one in zip(found, rates["one"], strict=True))
        for name, found in rates.items()
    }
    return {
        "one_process_ecg_per_s": median(rates["one"]),
        "two_processes_ecg_per_s": median(rates["two"]),
        "weak_scaling_1_to_2": ratios["two"],
        "weak_scaling_limit": ratios["apart"],
    }


def _rates(folder: Path, name: str, worlds: list[int]) -> list[float]:
    """ECG/s of runs at the same time, of so many processes each."""
    runs = [f"{name}-{number}" for number in range(len(worlds))]
    processes = []
    for run, world in zip(runs, worlds, strict=True):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        words = [*_words(folder, run, SMALL, 300), "engine.cpu_threads=1"]
        command = [sys.executable, "-m", "hpc_ecg", "finetune", *words]
        command.append(f"data.batch_size={BATCH * world}")
        for rank in range(world):
            place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(
                command, env=os.environ | place, stdout=quiet, stderr=subprocess.PIPE, text=True
            )
            processes.append(process)
    for process in processes:
        said = process.communicate()[1]
        if process.returncode:
            raise ValueError(f"a run in {folder} failed: {said.strip().splitlines()[-1]}")
    return [_rate(folder / run) for run in runs]


def _rate(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["ecg_per_s"] for line in lines if line["event"] == "step"]
    return median(rates[1:])


# Saving


def _saving(folder: Path, repeats: int) -> dict[str, float]:
    """Weights and both moments of the published model; loading includes the digests' check."""
    model = build_model(FULL, 1, load_config(FinetuneConfig, [], ["run_dir=r"]).model)
    moments = {
        f"{moment}/{name}": torch.zeros_like(parameter, requires_grad=False)
        for name, parameter in model.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    seconds: dict[str, list[float]] = {"save": [], "load": []}
    size = 0
    for repeat in range(repeats):
        began = time.perf_counter()
        save_checkpoint(folder / "saved", Progress(step=repeat), model, moments, keep=1)
        saved = time.perf_counter()
        found = newest_checkpoint(folder / "saved")
        assert found
        load_checkpoint(found[0], model)
        seconds["save"].append(saved - began)
        seconds["load"].append(time.perf_counter() - saved)
        size = sum(file.stat().st_size for file in found[0].iterdir())
    return {
        "save_seconds": median(seconds["save"]),
        "load_seconds": median(seconds["load"]),
        "checkpoint_mb": size / 1e6,
    }
