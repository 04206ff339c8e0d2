"""Choose the hardware, join the process group, make the Accelerator, and leave both again.

The process group is initialized here, with the store of the rendezvous; Accelerate and DeepSpeed
use it. Both can silently fall back to single processes, so the size that they report is compared
with the size of the launch.
"""

import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from torch.distributed import HashStore, Store

from hpc_ecg.distributed.deepspeed_backend import destroy_process_group, make_plugin
from hpc_ecg.distributed.ranks import MASTER_VARIABLES, RANK_VARIABLES, Ranks
from hpc_ecg.distributed.rendezvous import join_rendezvous
from hpc_ecg.distributed.settings import EngineConfig

LONGER_THAN_WATCHDOG = timedelta(minutes=2)
"""How much later torch times out than the watchdog, whose stacks say more than torch's error."""


def choose_hardware(config: EngineConfig) -> tuple[bool, str]:
    """Whether to run on the CPU, and the precision, on this machine.

    ValueError if the machine cannot do what an explicit setting asks.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("engine.device=cuda, but torch sees no GPU here; use engine.device=cpu")
    on_cpu = config.device == "cpu" or not has_gpu
    if config.precision == "auto":
        has_bf16 = not on_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
        return on_cpu, "bf16" if has_bf16 else "fp32"
    if on_cpu and config.precision == "fp16":
        raise ValueError("engine.precision=fp16 needs a GPU; on a CPU use fp32 or bf16")
    return on_cpu, config.precision


def check_machine(config: EngineConfig) -> None:
    """Raise ValueError for hardware or a library that the settings need and this machine lacks."""
    on_cpu, precision = choose_hardware(config)
    _check_trackers(config.trackers)
    if config.zero_stage:
        make_plugin(config.zero_stage, precision, on_cpu)


def join_process_group(
    config: EngineConfig, rendezvous_dir: Path | None, on_cpu: bool, precision: str
) -> tuple[Accelerator, Ranks, Store | None]:
    """The Accelerator of this process, its ranks, and the store to pass to `leave_process_group`.

    Under Slurm the processes find each other through a file in `rendezvous_dir`. ValueError if they
    do not all join in time, or for a library or tracker that is not installed.
    """
    _reset_accelerate()
    _check_trackers(config.trackers)
    stage = config.zero_stage
    plugin = make_plugin(stage, precision, on_cpu) if stage else None
    timeout = timedelta(minutes=config.timeout_min) + LONGER_THAN_WATCHDOG
    ranks, store = _init_process_group(
        rendezvous_dir, timeout, on_cpu, needs_group=config.parallel != "ddp"
    )
    # Mixed precision is only for the loss scale: the engine does the autocast.
    kind: dict[str, Any] = {
        "cpu": on_cpu,
        "mixed_precision": "fp16" if precision == "fp16" else "no",
    }
    if plugin is not None:
        # With cpu=True Accelerate drops DeepSpeed, and without a backend it sees one process.
        group = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl")
        kind = {"deepspeed_plugin": plugin, "kwargs_handlers": [group]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
        accelerator = Accelerator(
            log_with=config.trackers or None, project_dir=rendezvous_dir, **kind
        )
    if accelerator.num_processes != ranks.world_size:
        raise RuntimeError(
            f"the launch promises {ranks.world_size} processes, but Accelerate runs with "
            f"{accelerator.num_processes} ({accelerator.distributed_type})"
        )
    return accelerator, ranks, store


def leave_process_group(store: Store | None, uses_deepspeed: bool) -> None:
    """Undo `join_process_group`, so that this process can join again."""
    if torch.distributed.is_initialized():
        if uses_deepspeed:
            destroy_process_group()
        else:
            torch.distributed.destroy_process_group()
    if store is not None:
        for name in (*RANK_VARIABLES, *MASTER_VARIABLES):
            os.environ.pop(name, None)
    _reset_accelerate()


def _check_trackers(names: list[str]) -> None:
    """ValueError for a tracker that is not installed, which Accelerate would silently skip."""
    available = [str(kind.value) for kind in get_available_trackers()]
    for name in names:
        if name not in available:
            raise ValueError(
                f"engine.trackers: {name!r} is not installed or not known; available are: "
                f"{', '.join(available) or 'none'}"
            )


def _init_process_group(
    rendezvous_dir: Path | None, timeout: timedelta, on_cpu: bool, needs_group: bool
) -> tuple[Ranks, Store | None]:
    """The ranks, and the store if we made it. A single process makes a group only if needed."""
    store: Store | None
    ranks, store = join_rendezvous(os.environ, rendezvous_dir, timeout)
    if ranks.world_size == 1 and not needs_group:
        return ranks, None
    if ranks.world_size == 1:
        store = HashStore()
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    elif not on_cpu:  # with --gpus-per-task=1 every task sees its GPU as number 0
        os.environ["LOCAL_RANK"] = str(ranks.local_rank % torch.cuda.device_count())
    backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
    rank, size = (-1, -1) if store is None else (ranks.rank, ranks.world_size)
    torch.distributed.init_process_group(
        backend, timeout=timeout, store=store, rank=rank, world_size=size
    )
    return ranks, store


def _reset_accelerate() -> None:
    """Accelerate keeps its state in classes; a second run in one process needs a fresh one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
