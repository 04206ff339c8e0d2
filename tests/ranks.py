"""Run the command as N processes that connect over gloo, as srun would start them.

The processes are forks of a server that has imported everything, which saves seconds over new
interpreters; those are for the tests of the launchers. Each harm is called in every process before
the command. It is pickled, so it must be a module-level function or a `partial` of one.
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path
from threading import Lock
from unittest import mock

from forks import free_port

from hpc_ecg.cli import main

PRELOADED = (
    *("hpc_ecg.cli", "hpc_ecg.training.finetune", "hpc_ecg.training.evaluate"),
    *("hpc_ecg.preflight.doctor", "hpc_ecg.comparison.results", "hpc_ecg.sweep.launch"),
    *("torch.distributed.fsdp", "torch._dynamo", "pyarrow.dataset", "numba"),
    *("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"),
)
SERVER, STARTING = forkserver.ForkServer(), Lock()
SERVER.set_forkserver_preload(list(PRELOADED))


class Fork(get_context("forkserver").Process):
    """A fork of SERVER. Python's one server may be that of a sweep which a test ran in this
    process: it has imported other modules and blocks signals."""

    def start(self) -> None:
        connect = mock.patch.object(
            forkserver, "connect_to_new_process", SERVER.connect_to_new_process
        )
        with STARTING, connect:
            super().start()


class Ended:
    """Exit codes (-9: SIGKILL) and output of all ranks."""

    def __init__(self, codes: list[int | None], logs: list[str]) -> None:
        self.codes, self.logs = codes, logs


def run_on_ranks(num_ranks: int, arguments: Sequence[str], timeout: float = 300) -> list[str]:
    """Run `hpc-ecg ARGUMENTS` on every rank; returns the output of each. Asserts exit code 0."""
    with tempfile.TemporaryDirectory() as folder:
        ended = end_on_ranks(Path(folder), [list(arguments)] * num_ranks, patience_s=timeout)
    assert ended.codes == [0] * num_ranks, "\n".join(ended.logs)
    return ended.logs


def end_on_ranks(
    folder: Path,
    arguments: Sequence[Sequence[str]],
    *harms: Callable[[], None],
    patience_s: float = 60,
) -> Ended:
    """Run `hpc-ecg ARGUMENTS[rank]` on each rank, with logs in `folder`. Asserts that all end
    within `patience_s`."""
    logs = [folder / f"rank-{rank}.log" for rank in range(len(arguments))]
    port, environment = free_port(), dict(os.environ)
    processes = [
        Fork(
            target=_run,
            args=(logs[rank], environment | variables_of(rank, len(arguments), port), own, harms),
        )
        for rank, own in enumerate(arguments)
    ]
    for log in logs:
        log.unlink(missing_ok=True)
    for process in processes:
        process.start()
    deadline = time.monotonic() + patience_s
    try:
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    ended = Ended(codes, [log.read_text() for log in logs])
    assert None not in codes, f"{codes}: some did not end:\n" + "\n".join(ended.logs)
    return ended


def variables_of(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """The environment variables of torchrun for a rank, with all ranks on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def become(log: Path, environment: dict[str, str]) -> None:
    """Give a fork its log and environment; the server's environment may be older than a test's."""
    missing = [name for name in PRELOADED if name not in sys.modules]
    assert not missing, f"the server ignored what it could not import: {missing}"
    gc.freeze()  # no collection walks through a million objects of imported modules
    file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)


def _run(log: Path, environment: dict[str, str], words: Sequence[str], harms: tuple) -> None:
    become(log, environment)
    for harm in harms:
        harm()
    sys.exit(main(words))
