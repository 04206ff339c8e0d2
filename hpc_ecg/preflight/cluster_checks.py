"""The doctor's checks of a cluster: what each node has, and whether processes reach each other.

A check returns findings. Checks of one node differ between processes, and `merged` combines them;
collective checks exchange what each process saw, so that all processes return the same findings.
"""

import contextlib
import logging
import os
import platform
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.jobs.sbatch_environment import check_log_folder
from hpc_ecg.log import describe_error, first_line, logger, printable
from hpc_ecg.reporting.numbers import count
from hpc_ecg.version import __version__

LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}

MEASURED = ("space", "digests")
"""Findings with a number that each process measures."""
MANY_FLOATS = 1 << 24
SLOW_GB_S, FAR_BELOW = 0.12, 0.25
"""The throughput of a network of 1 Gb/s; share of an interface's speed that is suspicious."""
DRIVER = Path("/sys/module/nvidia/version")
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}
"""NVIDIA's oldest driver for each major version of CUDA (CUDA Compatibility, 2025)."""


class Finding(NamedTuple):
    level: str
    """ok, warning, error, or skipped (what the check needs is missing)."""
    name: str
    text: str
    step: dict[str, Any] | None = None
    """A step that was measured, as `step_time.KINDS` has it."""

    def __str__(self) -> str:
        return printable(f"{self.level:8}{self.name}: {self.text}").replace("\n", " ")


def attempt(
    name: str, check: Callable[..., list[Finding] | None], *arguments: Any
) -> list[Finding]:
    """Run a check; an exception of any kind becomes an error, and the other checks go on."""
    try:
        return check(*arguments) or []
    except Exception as error:
        return [Finding("error", name, reason(error))]


def reason(error: Exception) -> str:
    """The first line of an error, without the C++ frames that torch adds."""
    return describe_error(error) if isinstance(error, OSError) else first_line(error)


def exchange(value: Any) -> list[Any]:
    """The values of all processes, in the order of the ranks."""
    if not distributed.is_initialized():
        return [value]
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, value)
    return everyone


def merged(mine: Sequence[Finding]) -> list[Finding]:
    """Collective: the findings of all processes, each once, with the nodes that have it. Of those
    that are well and measured, which differ, that of the first process stands for all."""
    everyone = exchange((socket.gethostname(), mine))
    wrong = {f.name for _, findings in everyone for f in findings if f.level != "ok"}
    first = {f.name: f for f in reversed([f for _, findings in everyone for f in findings])}
    nodes: dict[Finding, dict[str, None]] = {}
    for host, findings in everyone:
        for finding in findings:
            is_measured = finding.level == "ok" and finding.name in MEASURED
            if not is_measured or finding.name not in wrong:
                nodes.setdefault(first[finding.name] if is_measured else finding, {})[host] = None
    total = len({host for host, _ in everyone})
    return [
        finding._replace(text=finding.text + _name_nodes(list(names), total))
        for finding, names in nodes.items()
    ]


def _name_nodes(names: list[str], total: int) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    listed = "" if len(names) == total else f": {shown}"
    return f" ({len(names)} of {total} nodes{listed})" if total > 1 else ""


def raise_on_errors(findings: Iterable[Finding], is_rank_zero: bool) -> None:
    """Log the findings on rank 0; raise ValueError on all ranks if one is an error."""
    errors = 0
    for finding in findings:
        errors += finding.level == "error"
        if is_rank_zero:
            logger.log(LEVELS.get(finding.level, logging.INFO), "%s", finding)
    if errors:
        raise ValueError(f"the doctor found {count(errors, 'error')} (see above); mend this first")


def check_versions(config: EngineConfig) -> list[Finding]:
    """Each node: versions of Python, torch, Accelerate, CUDA and the driver."""
    names = ["torch", "accelerate", *(["deepspeed"] if config.zero_stage else [])]
    versions = [f"hpc_ecg {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in names]
    versions += [f"CUDA {torch.version.cuda}"] if torch.version.cuda else []
    driver = DRIVER.read_text().strip() if DRIVER.exists() else ""
    versions += [f"NVIDIA driver {driver}"] if driver else []
    found = [Finding("ok", "versions", ", ".join(versions))]
    return found + check_driver(driver, torch.version.cuda or "")


def check_driver(driver: str, cuda: str) -> list[Finding]:
    """An error if the NVIDIA `driver` is too old for torch's build for `cuda`; both may be ""."""
    number = re.search(r"\b(\d{3,})\.\d+", driver)
    needed = OLDEST_DRIVER.get(cuda.partition(".")[0], 0)
    if not number or int(number[1]) >= needed:
        return []
    works = max((c for c, oldest in OLDEST_DRIVER.items() if oldest <= int(number[1])), default="")
    remedy = f"torch for CUDA {works} (make install TORCH_INDEX=…) or " if works else ""
    text = f"driver {number[0]}, but torch's CUDA {cuda} needs {needed} or newer"
    return [Finding("error", "driver", f"{text}; install {remedy}a newer driver")]


def check_logs() -> list[Finding]:
    """A job that is submitted here with slurm/finetune.sh can open its log."""
    if Path("slurm/finetune.sh").is_file() and "SBATCH_OUTPUT" not in os.environ:
        try:
            check_log_folder(Path())
        except ValueError as error:
            text = f"{error}, or source slurm/site.sh (from site.example.sh) before sbatch"
            return [Finding("warning", "logs", f"{text}: the job would fail without a log")]
    return []


def check_gpus(config: EngineConfig) -> list[Finding]:
    """Each node: a GPU for each task, and no idle GPU."""
    tasks, seen = read_ranks(os.environ).local_world_size, torch.cuda.device_count()
    # with --gpus-per-task each task sees only one
    slurm = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    gpus = seen if seen >= tasks else max(seen, slurm)
    expected = config.device == "cuda" or gpus or DRIVER.exists()
    level, text = "ok", f"{count(tasks, 'task')} and {count(gpus, 'GPU')} on a node"
    if config.device == "cpu" and gpus:
        level, text = "warning", f"{text}, which idle: engine.device=cpu"
    elif config.device != "cpu" and expected and not seen:
        cause = "see nvidia-smi" if torch.version.cuda else f"torch {torch.__version__} has no CUDA"
        remedy = "ask Slurm for GPUs, install torch with CUDA, or set engine.device=cpu"
        level, text = "error", f"{text}, of which torch sees none ({cause}); {remedy}"
    elif not seen:
        text = f"{count(tasks, 'task')} on the CPU of a node"
    elif gpus < tasks:
        level, text = "error", f"{text}; each task needs its own: --ntasks-per-node={gpus}"
    elif gpus > tasks:
        level, text = "warning", f"{text}; some idle: --ntasks-per-node={gpus}"
    return [Finding(level, "gpus", text)]


def check_gpus_not_shared(device: torch.device) -> list[Finding]:
    """Collective: no two processes use one GPU."""
    is_gpu = device.type == "cuda"
    gpus = exchange(str(torch.cuda.get_device_properties(device).uuid) if is_gpu else None)
    ranks = [rank for rank, gpu in enumerate(gpus) if gpu and gpus.count(gpu) > 1]
    text = f"ranks {', '.join(map(str, ranks))} have a GPU in common; give each its own"
    return [Finding("error", "gpus", text)] if ranks else []


def check_ranks(device: torch.device) -> list[Finding]:
    """Collective: time an all-reduce of one number and of 64 MiB."""
    hosts = exchange(socket.gethostname())
    world = len(hosts)
    if world == 1:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if tasks == "1":
            return [Finding("ok", "ranks", "a single process")]
        text = f"a single process, though the job has {tasks} tasks; start it with srun"
        return [Finding("warning", "ranks", text)]
    numbers = torch.full((MANY_FLOATS,), float(distributed.get_rank()), device=device)
    distributed.all_reduce(numbers)  # warm up: NCCL connects
    small_s, large_s = _time_all_reduce(numbers[:1].clone(), 20), _time_all_reduce(numbers, 3)
    gb_s = 2 * (world - 1) / world * 4 * MANY_FLOATS / large_s / 1e9
    text = f"{world} on {count(len(set(hosts)), 'node')}; all-reduce of a number in "
    text += f"{1000 * small_s:.2g} ms, of 64 MiB at {gb_s:.2g} GB/s (bus)"
    is_slow = gb_s < SLOW_GB_S
    remedy = advise_interface(gb_s) if len(set(hosts)) > 1 else ""
    if is_slow and not remedy:
        remedy = "; is it the right network (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)?"
    text += ", as over 1 Gb/s" * is_slow + remedy
    return [Finding("warning" if remedy else "ok", "ranks", text)]


def advise_interface(gb_s: float, interfaces: Path = Path("/sys/class/net")) -> str:
    """What to set if an all-reduce between nodes is far slower than this node's fastest interface;
    '' if it is not, or no interface states its speed (in Mbit/s)."""
    speeds = {}
    for file in interfaces.glob("*/speed"):
        with contextlib.suppress(OSError, ValueError):  # one that is down cannot be read
            about = {path.name for path in file.parent.iterdir()}
            if about & {"device", "bonding"} and "master" not in about:  # no container's, no part
                speeds[file.parent.name] = int(file.read_text()) / 1000
    name = max(speeds, key=lambda name: speeds[name], default="")
    if not name or 8 * gb_s > FAR_BELOW * speeds[name]:
        return ""
    advice = f"NCCL_SOCKET_IFNAME={name} and GLOO_SOCKET_IFNAME={name}"
    return f", far below the {speeds[name]:g} Gbit/s of {name}: set {advice}"


def _time_all_reduce(numbers: torch.Tensor, times: int) -> float:
    """Seconds of one all-reduce, on the slowest process."""
    distributed.barrier()
    began = time.monotonic()
    for _ in range(times):
        distributed.all_reduce(numbers)
    float(numbers[0])  # waits for the device
    return max(exchange((time.monotonic() - began) / times))
