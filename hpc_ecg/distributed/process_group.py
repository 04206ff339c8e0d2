"""Join the process group, make the Accelerator, and leave both again.

The process group is made here, through the store of the rendezvous; Accelerate and DeepSpeed find
it. Both can silently fall back to single processes, so what they report is compared with what the
launch promised.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from torch.distributed import HashStore, Store

from hpc_ecg.distributed.deepspeed_backend import make_plugin
from hpc_ecg.distributed.deepspeed_compat import destroy_process_group
from hpc_ecg.distributed.ranks import MASTER_VARIABLES, RANK_VARIABLES, Ranks
from hpc_ecg.distributed.rendezvous import join_rendezvous
from hpc_ecg.distributed.settings import EngineConfig

FAILURE = "failed"
"""Key in the store: the mistake that one process met."""
GRACE_S = 2.0
"""Rank 0 holds the store: the others must notice the failure and read it before it exits."""
LONGER_THAN_WATCHDOG = timedelta(minutes=2)
"""torch's timeout comes later than the watchdog, whose stacks say more than torch's error."""


class PeerLost(RuntimeError):  # noqa: N818
    """The other processes or the network are gone; the run can go on from its checkpoint."""


def join_process_group(
    config: EngineConfig, rendezvous_dir: Path | None, on_cpu: bool, precision: str
) -> tuple[Accelerator, Ranks, Store | None]:
    """The Accelerator of this process, its ranks, and the store to hand to `leave_process_group`.

    Under Slurm the processes find each other through a file in `rendezvous_dir`.
    """
    _reset_accelerate()
    trackers = _check_trackers(config.trackers)
    stage = config.zero_stage
    plugin = make_plugin(stage, precision, on_cpu) if stage else None
    timeout = timedelta(minutes=config.timeout_min) + LONGER_THAN_WATCHDOG
    ranks, store = _init_process_group(
        rendezvous_dir, timeout, on_cpu, needs_group=config.parallel != "ddp"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
        if plugin is None:
            accelerator = Accelerator(
                cpu=on_cpu,
                # only for its loss scale: the engine does the autocast
                mixed_precision="fp16" if precision == "fp16" else "no",
                log_with=trackers or None,
                project_dir=rendezvous_dir,
            )
        else:
            # With cpu=True Accelerate drops DeepSpeed, and without a backend it sees one process.
            group = InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl")
            accelerator = Accelerator(
                deepspeed_plugin=plugin,
                kwargs_handlers=[group],
                log_with=trackers or None,
                project_dir=rendezvous_dir,
            )
    if accelerator.num_processes != ranks.world_size:
        raise RuntimeError(
            f"the launch promises {ranks.world_size} processes, but Accelerate runs with "
            f"{accelerator.num_processes} ({accelerator.distributed_type})"
        )
    return accelerator, ranks, store


@contextmanager
def share_failures(ranks: Ranks, store: Store | None) -> Iterator[None]:
    """Pass a mistake that one process meets on to the others, which would only see it exit.

    Raises PeerLost if a peer is gone without having said why.
    """
    if store is None and torch.distributed.is_initialized():  # under torchrun torch made the store
        store = torch.distributed.distributed_c10d._get_default_store()
    try:
        yield
    except (ValueError, OSError) as error:
        if store is not None and ranks.world_size > 1:
            store.set(FAILURE, f"process {ranks.rank}: {error}")
            if ranks.rank == 0:
                torch.distributed.destroy_process_group()
                time.sleep(GRACE_S)
        raise
    except RuntimeError as error:
        if ranks.world_size == 1 or not _is_network_error(error):
            raise
        failure = _failure_of_peer(store)
        if failure:
            raise ValueError(failure) from None
        first_line = str(error).partition("\n")[0]
        raise PeerLost(f"process {ranks.rank} has lost the others ({first_line})") from error


def _is_network_error(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or "gloo" in text or "NCCL" in text


def _failure_of_peer(store: Store | None) -> str:
    try:
        return store.get(FAILURE).decode() if store and store.check([FAILURE]) else ""
    except RuntimeError:  # the process that held the store is gone
        return ""


def leave_process_group(store: Store | None, uses_deepspeed: bool) -> None:
    """So that another engine can be made in this process."""
    if torch.distributed.is_initialized():
        if uses_deepspeed:
            destroy_process_group()
        else:
            torch.distributed.destroy_process_group()
    if store is not None:
        for name in (*RANK_VARIABLES, *MASTER_VARIABLES):
            os.environ.pop(name, None)
    _reset_accelerate()


def _check_trackers(names: list[str]) -> list[str]:
    """ValueError for a tracker that is not installed, which Accelerate would silently leave out."""
    available = [str(kind.value) for kind in get_available_trackers()]
    for name in names:
        if name not in available:
            raise ValueError(
                f"engine.trackers: {name!r} is not installed or not known; available are: "
                f"{', '.join(available) or 'none'}"
            )
    return names


def _init_process_group(
    rendezvous_dir: Path | None, timeout: timedelta, on_cpu: bool, needs_group: bool
) -> tuple[Ranks, Store | None]:
    """The ranks, and the store if it is ours. A single process makes a group only if it must."""
    store: Store | None
    ranks, store = join_rendezvous(os.environ, rendezvous_dir, timeout)
    if ranks.world_size == 1 and not needs_group:
        return ranks, None
    if ranks.world_size == 1:
        store = HashStore()
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
    rank, size = (-1, -1) if store is None else (ranks.rank, ranks.world_size)
    torch.distributed.init_process_group(
        backend, timeout=timeout, store=store, rank=rank, world_size=size
    )
    return ranks, store


def _reset_accelerate() -> None:
    """Accelerate keeps its state in classes; a second run in one process must start afresh."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
