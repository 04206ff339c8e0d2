"""The engine's way into the world of processes and out of it: process group and Accelerator.

The process group is made here, through the store of the rendezvous; Accelerate and DeepSpeed find
it made. What they report is compared with what the launch promised: they can fall back to single
processes without a word.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers

from hpc_ecg.distributed.deepspeed_backend import destroy_group, make_plugin
from hpc_ecg.distributed.ranks import MASTER_VARIABLES, RANK_VARIABLES, Ranks
from hpc_ecg.distributed.rendezvous import join_world
from hpc_ecg.distributed.settings import EngineConfig

FAILED = "failed"
LISTEN_S = 2.0
MORE_PATIENCE = timedelta(minutes=2)
"""Of torch than of the watchdog, whose stacks say more than torch's error."""


class PeerLost(RuntimeError):  # noqa: N818
    """The other processes are gone, or the network is; the run can go on from its checkpoint."""


def enter_world(
    config: EngineConfig, rendezvous_dir: Path | None, on_cpu: bool, precision: str
) -> tuple[Accelerator, Ranks, Any]:
    """Meet the other processes (under Slurm through a file in `meeting`); the store is to be given
    to `leave_world`."""
    _forget_earlier_engine()
    stage = config.zero_stage
    plugin = make_plugin(stage, precision, on_cpu) if stage else None
    tracking = {"log_with": _trackers(config) or None, "project_dir": rendezvous_dir}
    timeout = timedelta(minutes=config.timeout_min) + MORE_PATIENCE
    ranks, store = _join(rendezvous_dir, timeout, on_cpu, config.parallel != "ddp")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
        if plugin is None:
            mixed = (
                "fp16" if precision == "fp16" else "no"
            )  # for its scaler; autocast is the engine's
            accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, **tracking)
        else:
            # With cpu=True Accelerate drops DeepSpeed, and without a backend it sees one process.
            group = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl")
            accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[group], **tracking)
    if accelerator.num_processes != ranks.world_size:
        raise RuntimeError(
            f"the launch promises {ranks.world_size} processes, but Accelerate runs with "
            f"{accelerator.num_processes} ({accelerator.distributed_type})"
        )
    return accelerator, ranks, store


@contextmanager
def share_failures(ranks: Ranks, store: Any) -> Iterator[None]:
    """A mistake that one process meets is told to the others, which would else only see it gone.
    Raises Lost where nobody said why."""
    if store is None and torch.distributed.is_initialized():  # torchrun's way: torch made one
        store = torch.distributed.distributed_c10d._get_default_store()
    try:
        yield
    except (ValueError, OSError) as error:
        if store is not None and ranks.world_size > 1:
            store.set(FAILED, f"process {ranks.rank}: {error}")
            if ranks.rank == 0:  # the store is here: first the others must notice, then ask
                torch.distributed.destroy_process_group()
                time.sleep(LISTEN_S)
        raise
    except RuntimeError as error:
        if ranks.world_size == 1 or not _is_of_network(error):
            raise
        reason = _told(store)
        if reason:
            raise ValueError(reason) from None
        first_line = str(error).partition("\n")[0]
        raise PeerLost(f"process {ranks.rank} has lost the others ({first_line})") from error


def _is_of_network(error: RuntimeError) -> bool:
    said = str(error)
    return isinstance(error, torch.distributed.DistError) or "gloo" in said or "NCCL" in said


def _told(store: Any) -> str:
    try:
        return store.get(FAILED).decode() if store and store.check([FAILED]) else ""
    except RuntimeError:  # the process that had the store is gone
        return ""


def leave_world(store: Any, is_zero: bool) -> None:
    """So that another engine can be made in this process."""
    if torch.distributed.is_initialized():
        (destroy_group if is_zero else torch.distributed.destroy_process_group)()
    if store is not None:
        for name in (*RANK_VARIABLES, *MASTER_VARIABLES):
            os.environ.pop(name, None)
    _forget_earlier_engine()


def _trackers(config: EngineConfig) -> list[str]:
    """ValueError for one that is not installed: Accelerate would leave it out."""
    available = [str(kind.value) for kind in get_available_trackers()]
    for name in config.trackers:
        if name not in available:
            raise ValueError(
                f"engine.trackers: {name!r} is not installed or not known; there are: "
                f"{', '.join(available) or 'none'}"
            )
    return config.trackers


def _join(
    rendezvous_dir: Path | None, timeout: timedelta, on_cpu: bool, needs_group: bool
) -> tuple[Ranks, Any]:
    """Make the process group; a single process has one only for libraries that insist. Returns the
    store, too, if we made it."""
    ranks, made = join_world(os.environ, rendezvous_dir, timeout)
    if ranks.world_size == 1 and not needs_group:
        return ranks, None
    store: Any = made
    if ranks.world_size == 1:
        store = torch.distributed.HashStore()
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
    rank, size = (-1, -1) if store is None else (ranks.rank, ranks.world_size)
    torch.distributed.init_process_group(
        backend, timeout=timeout, store=store, rank=rank, world_size=size
    )
    return ranks, store


def _forget_earlier_engine() -> None:
    """Accelerate keeps its state in the classes; a second run in one process must start afresh."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
