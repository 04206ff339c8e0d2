"""Functions as processes of this machine: some at a time, each with its own GPU and log.

A fork server imports the functions' modules once, and every job is a fork of it: a job does not pay
the seconds that torch takes to import. The server itself must never touch CUDA, which a fork could
not use.
"""

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from hpc_ecg.atomic_io import write_text
from hpc_ecg.distributed.ranks import without_ranks
from hpc_ecg.jobs.job import Job, JobOutcome
from hpc_ecg.jobs.job_log import OFTEN_MEMORY, last_words
from hpc_ecg.log import describe_error, printable

POLL_S, STOP_S = 0.2, 1.0
SAVE_S = 30.0
"""A job gets SIGUSR2 this long before its time limit, so that it can save."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
FORKS = get_context("forkserver")


def run_locally(
    jobs: Sequence[Job],
    folder: Path,
    at_once: int,
    timeout_min: float,
    gpus: Sequence[int],
    must_stop: Callable[[], bool] = lambda: False,
    preload: Sequence[str] = (),
    on_start: Callable[[str, Path], object] = lambda *_: None,
) -> Iterator[JobOutcome]:
    """Run the jobs as processes of this machine, `at_once` at a time; yields each as it ends.

    A job gets one of `gpus` while it runs. Once `must_stop` returns True, no other starts, and
    those that run get SIGTERM until they end. When the caller stops early, they are stopped at
    once. `preload`: modules to import once, beside those of the jobs' functions; `on_start` is
    called with the name and the log of each job.
    """
    assert not gpus or len(gpus) >= at_once
    modules = sorted({job.function.__module__ for job in jobs} | set(preload))
    waiting, free_slots = list(jobs), list(range(at_once))
    running: dict[int, _LocalJob] = {}
    try:
        while running or (waiting and not must_stop()):
            stopping = must_stop()
            while waiting and free_slots and not stopping:
                slot = free_slots.pop(0)
                _start_fork_server(folder.with_suffix(".log"), modules)
                gpu = str(gpus[slot]) if gpus else ""
                running[slot] = _LocalJob(waiting.pop(0), folder, gpu, timeout_min)
                on_start(running[slot].name, running[slot].log)
            for slot, job in list(running.items()):
                if job.process.exitcode is not None:
                    del running[slot]
                    free_slots.append(slot)
                    yield job.outcome()
                elif stopping:  # repeated: a job that is still starting does not listen yet
                    job.send(signal.SIGTERM)
            time.sleep(STOP_S if stopping else POLL_S)
    finally:
        for job in running.values():  # as Ctrl-C does
            job.send(signal.SIGINT)
        deadline = time.monotonic() + STOP_S
        for job in running.values():
            job.end(deadline)


def job_log(folder: Path, job_name: str, pid: int) -> Path:
    """Where a local job writes its standard error."""
    name = job_name.replace("/", "-")
    return folder.absolute() / name / f"{name}-{pid}_0_log.err"


class _LocalJob:
    """A job that was started, as its parent sees it."""

    def __init__(self, job: Job, folder: Path, gpu: str, timeout_min: float) -> None:
        self.name, self._timeout_min = job.name, timeout_min
        # a job is a run of its own, not a rank of the process that starts it
        environment = without_ranks(os.environ) | {"CUDA_VISIBLE_DEVICES": gpu}
        limit_s = 60 * timeout_min
        arguments = (job, folder, environment, limit_s, limit_s - SAVE_S)
        self.process: ForkServerProcess = FORKS.Process(target=_run, args=arguments)
        self.process.start()
        assert self.process.pid is not None
        self.log = job_log(folder, job.name, self.process.pid)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def outcome(self) -> JobOutcome:
        code, error = self.process.exitcode, self._take_traceback()
        assert code is not None
        if code == -signal.SIGALRM:
            error = f"out of time: it did not end within {self._timeout_min:g} minutes"
        elif code < 0:
            often = f", {OFTEN_MEMORY}" if code == -signal.SIGKILL else ""
            error = f"killed by signal {-code} ({signal.Signals(-code).name}){often}"
            with self.log.open("a") as file:
                file.write(f"{error}\n")
        elif code and error is None:
            error = f"ended with exit code {code}: {last_words(self.log) or 'no reason is logged'}"
        return JobOutcome(name=self.name, error=error, log=self.log)

    def end(self, deadline: float) -> None:
        """Wait until the deadline, then kill it."""
        self.process.join(max(deadline - time.monotonic(), 0))
        self.process.kill()
        self.process.join()
        self._take_traceback()

    def _take_traceback(self) -> str | None:
        file = _error_file(self.log)
        if not file.exists():
            return None
        text = file.read_text().strip()
        file.unlink()
        return text


def _start_fork_server(log: Path, modules: list[str]) -> None:
    """Start it unless it runs. `log` gets its output, which is not for the user's terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    FORKS.set_forkserver_preload(modules)
    resource_tracker.ensure_running()  # it would change the mask below
    # the server inherits the mask: a signal that goes to all processes must not end it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    stdout, stderr = os.dup(1), os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        forkserver.ensure_running()
    finally:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.close(stdout)
        os.close(stderr)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _run(
    job: Job, folder: Path, environment: dict[str, str], limit_s: float, save_after_s: float
) -> None:
    """Run the job in its process, a fork of the server."""
    gc.freeze()  # collections then skip the thousands of modules that the server imported
    log = job_log(folder, job.name, os.getpid())
    _error_file(log).unlink(missing_ok=True)  # of an earlier process with the same number
    _redirect_output(log)
    os.environ.clear()
    os.environ.update(environment)
    _set_signals(limit_s, save_after_s)
    devices = environment["CUDA_VISIBLE_DEVICES"]
    sys.stderr.write(f"{job.name}: process {os.getpid()}, CUDA_VISIBLE_DEVICES={devices}\n")
    try:
        job.function(*job.arguments)
    except BaseException as error:
        text = printable(traceback.format_exc())
        if isinstance(error, OSError):  # the last line is the reason
            text += f"{describe_error(error)}\n"
        sys.stderr.write(text)
        write_text(_error_file(log), text)
        raise SystemExit(1) from None


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout, sys.stderr = (
        path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        for path in (log.with_suffix(".out"), log)
    )
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)


def _set_signals(limit_s: float, save_after_s: float) -> None:
    # a job ignores these until it handles them; programs that it starts would inherit SIG_IGN
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup and &
    save = threading.Timer(save_after_s, os.kill, (os.getpid(), signal.SIGUSR2))
    save.daemon = True
    save.start()
    # at the limit the log gets the stacks of all threads, and SIGALRM ends the process
    faulthandler.dump_traceback_later(limit_s)
    signal.setitimer(signal.ITIMER_REAL, limit_s + STOP_S)


def _error_file(log: Path) -> Path:
    """Holds a traceback until the parent has read it."""
    return log.with_suffix(".error")
