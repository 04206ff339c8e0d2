"""Harm for a run, done from inside at an exact step, and the processes to do it to.

The processes are forks of a server that has imported everything: seconds less than interpreters of
their own. A harm is called in each of them before the command; it is pickled, so it is a function
of this file, or a `partial` of one.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from ranks import _variables

from hpc_ecg import signals, watchdog
from hpc_ecg.cli import main
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.sweep import there
from hpc_ecg.training import engine
from hpc_ecg.training.engine import Engine

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("hpc_ecg.cli", "hpc_ecg.training.finetune", "torch.distributed.fsdp", "torch._dynamo"),
        "hpc_ecg.sweep.launch",
    ]
)


class Ended:
    """Of all ranks: exit codes (-9: SIGKILL), and what each of them said."""

    def __init__(self, codes: list[int | None], logs: list[str]) -> None:
        self.codes, self.logs = codes, logs


def finetune_on_ranks(
    folder: Path, words: Sequence[Sequence[str]], *harms: Callable[[], None], patience_s: float = 60
) -> Ended:
    """`hpc-ecg finetune WORDS[rank]` on each rank; `folder` takes the logs. Asserts that all end
    in time."""
    logs = [folder / f"rank-{rank}.log" for rank in range(len(words))]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        FORKS.Process(
            target=_run, args=(logs[rank], _variables(rank, len(words), port), own, harms)
        )
        for rank, own in enumerate(words)
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


def sweep_in_a_fork(log: Path, words: Sequence[str]) -> Any:
    """`hpc-ecg sweep WORDS` as a process that has started; it looks at the queue often."""
    arguments = log, dict(os.environ), words
    process = FORKS.Process(target=_sweep, args=arguments, daemon=True)
    process.start()
    return process


def _sweep(log: Path, environment: dict[str, str], words: Sequence[str]) -> None:
    _say_to(log)
    os.environ.clear()  # that of the server may be older than the test cluster
    os.environ.update(environment)
    there.POLL_S, there.POLL_AT_MOST_S, there.LOST_AFTER_S = 0.5, 2.0, 3.0
    sys.exit(main(["sweep", *words]))


def _run(log: Path, variables: dict[str, str], words: Sequence[str], harms: tuple) -> None:
    _say_to(log)
    os.environ.update(variables)
    for harm in harms:
        harm()
    sys.exit(main(["finetune", *words]))


def _say_to(log: Path) -> None:
    file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)


def at_step(step: int, rank: int, action: Callable[[], object]) -> None:
    """Before the step (counted from 0), on this rank."""
    real = Engine.take_step

    def take_step(self, batch, *arguments, **named):
        if (batch.step, self.rank) == (step, rank):
            action()
        return real(self, batch, *arguments, **named)

    Engine.take_step = take_step


def get(number: int) -> None:
    """As if somebody had sent it."""
    os.kill(os.getpid(), number)
    signal.sigpending()  # Python runs its handler here at the latest


def fill_disk(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def look_often() -> None:
    """For files that ask for something."""
    signals.LOOK_EVERY_S = 0.0


def hang_in_reading(rank: int) -> None:
    watchdog.LAST_WORDS_S = 2
    real = Dataset.read

    def read(self, positions, out=None):
        if os.environ["RANK"] == str(rank) and torch.distributed.is_initialized():
            time.sleep(1000)
        return real(self, positions, out)

    Dataset.read = read


def wait_for_what_never_comes() -> None:
    watchdog.LAST_WORDS_S = 2
    torch.distributed.recv(torch.zeros(1), src=0, tag=77)


def spoil_inputs(steps: Sequence[int], rank: int) -> None:
    """What the model sees in these steps is not a number, on this rank alone."""
    real = engine.model_inputs

    def model_inputs(micro, device, millivolts_per_count, change=None):
        ecg, *rest = real(micro, device, millivolts_per_count, change)
        if change and change.step in steps and os.environ["RANK"] == str(rank):
            ecg = ecg * float("nan")
        return ecg, *rest

    engine.model_inputs = model_inputs


def jump_a_day_back_and_forth() -> None:
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + 86400 * (calls[0] % 3 - 1)

    time.time = jumping
