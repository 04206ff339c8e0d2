"""Weak scaling as `hpc-ecg plan` computes it, by 2 and 4 gloo processes on this machine.

Each process measures, in alternating rounds: a step with the all-reduce of DDP (`together`), the
same step without (`alone`: DDP's no_sync), and all-reduces of 64 KiB, 32 MiB, the gradient and that
of the published model. Latency and bandwidth come from the first two; with them the other two and
the step are computed. Wall time, medians of the rounds: run it on a machine that nobody else uses.
Where there are more processes than cores, `alone` already holds the waiting for a core, and gloo
computes on cores that the backward pass needs, so little of it overlaps.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from forks import fork, free_port, wait_for
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.preflight.footprint import part_parameters
from hpc_ecg.preflight.step_time import BACKWARD, BUCKET_BYTES, LINK_SHARE, Network, all_reduce_s

SIZES = Architecture(
    encoder_layers=3,
    encoder_embed_dim=512,
    encoder_ffn_embed_dim=2048,
    encoder_attention_heads=8,
)
BATCH, SMALL, LARGE = 2, 1 << 14, 1 << 23
TARGETS: dict[str, float] = {}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--world-sizes", default="2,4", help="numbers of processes (default 2,4)")


def measure(options: argparse.Namespace) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for world in map(int, options.world_sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder, port = Path(name), free_port()
            run = partial(_rank, world=world, port=port, folder=folder, rounds=options.rounds)
            pids = [fork(partial(run, rank), folder / "log") for rank in range(world)]
            if any(wait_for(pids)):
                raise ValueError((folder / "log").read_text().strip().splitlines()[-1])
            seconds = json.loads((folder / "seconds.json").read_text())
        numbers |= {f"{key}_{world}": value for key, value in _compare(world, seconds).items()}
    return numbers


def _compare(world: int, seconds: dict[str, float]) -> dict[str, float]:
    """Computed and measured, in ms, and the error in per cent."""
    latency_us = 1e6 * seconds["small"] / (2 * (world - 1))
    rest_s = seconds["large"] - seconds["small"]
    gb_s = 2 * (world - 1) / world * 4 * (LARGE - SMALL) / rest_s / 1e9
    network = Network(8 * gb_s / LINK_SHARE, world, gb_s / LINK_SHARE, latency_us)
    sent = 4 * sum(part_parameters(SIZES))
    reduced, last = (all_reduce_s(size, world, network) for size in (sent, BUCKET_BYTES))
    alone, together = seconds["alone"], seconds["together"]
    overlapped = alone + max(last, reduced - BACKWARD * alone)
    published = 4 * sum(part_parameters(Architecture()))
    published_s = all_reduce_s(published, world, network)
    return {
        "published_mb": published / 1e6,
        "published_ms": 1000 * seconds["published"],
        "published_computed_ms": 1000 * published_s,
        "published_error_percent": 100 * (published_s / seconds["published"] - 1),
        "gradient_mb": sent / 1e6,
        "gb_per_s": gb_s,
        "all_reduce_ms": 1000 * seconds["gradient"],
        "all_reduce_computed_ms": 1000 * reduced,
        "all_reduce_error_percent": 100 * (reduced / seconds["gradient"] - 1),
        "alone_ms": 1000 * alone,
        "together_ms": 1000 * together,
        "together_computed_ms": 1000 * overlapped,
        "together_error_percent": 100 * (overlapped / together - 1),
        "without_overlap_error_percent": 100 * ((alone + reduced) / together - 1),
    }


def _rank(rank: int, world: int, port: int, folder: Path, rounds: int) -> int:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    model = DistributedDataParallel(build_model(SIZES, 1, ModelConfig()).train())
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(BATCH, 12, 2500), None, torch.arange(BATCH)
    targets_BK = torch.zeros(BATCH, 1)
    arrays = {"small": SMALL, "large": LARGE, "gradient": sum(part_parameters(SIZES))}
    arrays["published"] = sum(part_parameters(Architecture()))
    buffers = {name: torch.zeros(size) for name, size in arrays.items()}

    def backward() -> None:
        F.binary_cross_entropy_with_logits(model(*inputs), targets_BK).backward()

    def step(is_synced: bool) -> None:
        if is_synced:
            backward()
        else:
            with model.no_sync():
                backward()
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        actions: dict[str, Callable[[], object]]
        actions = {"alone": partial(step, False), "together": partial(step, True)}
        actions |= {n: partial(distributed.all_reduce, b) for n, b in buffers.items()}
        for name, action in actions.items():
            distributed.barrier()
            began = time.perf_counter()
            action()
            times.setdefault(name, []).append(time.perf_counter() - began)
    slowest = torch.tensor([median(values[1:]) for values in times.values()])
    distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
    if rank == 0:
        result = dict(zip(times, slowest.tolist(), strict=True))
        (folder / "seconds.json").write_text(json.dumps(result))
    distributed.destroy_process_group()
    return 0
