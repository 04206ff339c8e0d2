"""The doctor's checks of a run: its data, real steps, and the time of the whole run.

All processes run the checks together. Steps have a learning rate of 0, so the weights do not
change.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.loader import StepBatch, prefetch
from hpc_ecg.data.node_cache import BLOCK
from hpc_ecg.distributed.failures import is_network_error
from hpc_ecg.distributed.ranks import Ranks, read_ranks
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model.flops import training_flops
from hpc_ecg.preflight import cluster_checks as cluster
from hpc_ecg.preflight import disk_checks as disks
from hpc_ecg.preflight.cluster_checks import Finding, attempt, exchange, merged, reason
from hpc_ecg.reporting.numbers import count
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.shards.index import amplitude_of_cohort
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.loop import train_step
from hpc_ecg.training.meter import memory_gb
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.prepare import PreparedData, PreparedRun
from hpc_ecg.training.stages import Stage, num_steps, run_seconds
from hpc_ecg.training.try_kernels import try_kernels_of_run

HARDWARE = "hardware"
MIN_SHARDS = 4
"""Least number of shards whose digests are checked; at least one for each process."""
ABSURD_FACTOR = 10.0
"""No cohort in mV has an amplitude larger or smaller than usual by this factor."""
MAX_STEPS, ENOUGH_S = 3, 20.0
FULL = 0.9
"""Share of the memory in use above which another batch may not fit."""
LESS_MEMORY = (
    "; lower engine.micro_batch_size, or take engine.activation_checkpointing=true or "
    "engine.parallel=fsdp2"
)
FORWARD_SHARE = 1 / 3
"""Time of a forward pass as a share of a training step."""


def check_digests(train: Dataset, ranks: Ranks) -> list[Finding]:
    """This process's part of a sample of shards across the set, each read in full."""
    about, began = train.shards.description["shards"], time.monotonic()
    sample = min(len(about), max(MIN_SHARDS, ranks.world_size))
    chosen = np.linspace(0, len(about) - 1, sample).round().astype(int).tolist()
    mine = chosen[ranks.rank :: ranks.world_size]
    errors = [finding for shard in mine for finding in _check_shard(train, shard)]
    rate = sum(about[shard]["bytes"] for shard in mine) / (time.monotonic() - began)
    text = f"{sample} of {count(len(about), 'shard')} as written (read at {disks.size(rate)}/s)"
    return errors or [Finding("ok", "digests", text)]


def _check_shard(train: Dataset, shard: int) -> list[Finding]:
    digest = hashlib.sha256()
    try:
        with train.source.open(shard) as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except (ValueError, OSError) as error:
        return [Finding("error", "digests", reason(error))]
    if digest.hexdigest() == train.shards.description["shards"][shard]["sha256"]:
        return []
    text = train.damage(shard, "its SHA-256 is not that of dataset.json")
    return [Finding("error", "digests", text)]


def check_amplitude(shards: ShardSet) -> list[Finding]:
    """The signals are in mV, as the weights expect."""
    train = shards.index[shards.index["split"] == "train"]
    facts = amplitude_of_cohort(train, shards.signal)
    if facts.is_normal:
        return [Finding("ok", "amplitude", facts.sentence)]
    level = "warning" if 1 / ABSURD_FACTOR < facts.ratio < ABSURD_FACTOR else "error"
    remedy = "Write the shards again with the right unit (--unit, --amplitude-factor)."
    return [Finding(level, "amplitude", f"{facts.sentence} {remedy}")]


def check_step(engine: Engine, prepared: PreparedRun) -> tuple[list[Finding], float | None]:
    """Collective: read the first batch and take steps; the findings and the seconds of a step.

    ValueError if a step fails on one of several processes, since the others would wait for it.
    """
    data = prepared.data
    batches = prefetch(data.train, range(1), data.sampler, engine.rank_slice)
    batch, errors = None, []
    try:
        batch = next(batches)
    except (ValueError, OSError) as error:
        errors = [Finding("error", "step", reason(error))]
    errors = merged(errors)
    if errors or batch is None:
        return errors, None
    try:
        loss, seconds = _take_steps(engine, prepared, batch)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_network_error(error):
            raise  # the process that failed says why
        is_memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        text = f"{reason(error)}{LESS_MEMORY if is_memory else ''}"
        if engine.world_size > 1:
            raise ValueError(f"step: {text}") from None
        return [Finding("error", "step", text)], None
    used, limit = _memory(engine)
    text = f"{count(len(batch.positions), 'record')} in {seconds:.2g} s, at most {used:.1f} of "
    text += f"{limit:.0f} GB for a process, loss {loss:.4g}"
    if engine.first_bad_step() is not None:
        remedy = "look at the weights, and at the amplitude of the data"
        return [Finding("error", "step", f"{text}: loss or gradient is not finite; {remedy}")], None
    level, more = ("warning", LESS_MEMORY) if used > FULL * limit else ("ok", "")
    finding = Finding(level, "step", text + more, _measured(engine, prepared, batch, seconds))
    return [finding], seconds


def _measured(
    engine: Engine, prepared: PreparedRun, batch: StepBatch, seconds: float
) -> dict[str, Any]:
    """As `step_time.KINDS` has it."""
    stage = _stage_of_most(prepared)
    sizes = prepared.start.architecture, prepared.data.shards.signal.num_samples
    return {
        "seconds": seconds,
        "records": -(-len(batch.positions) // engine.world_size),
        "processes": engine.world_size,
        "device": engine.device_name,
        "precision": engine.precision,
        "flops_per_ecg": training_flops(*sizes, stage.freeze, stage.train.freeze_layers),
    }


def _stage_of_most(prepared: PreparedRun) -> Stage:
    trained = prepared.start.report["stages"]
    return max(prepared.stages, key=lambda stage: trained[stage.name]["tensors_trained"])


def _take_steps(engine: Engine, prepared: PreparedRun, batch: StepBatch) -> tuple[float, float]:
    """The loss and seconds of the last step."""
    data, start, stage = prepared.data, prepared.start, _stage_of_most(prepared)
    start.model.freeze(stage.freeze, stage.train.freeze_layers)
    build = partial(build_optimizer, config=stage.optim, device=engine.device)
    backend = engine.prepare_training(start.model, build, stage.optim.clip_norm)
    for group in backend.optimizer.param_groups:
        group["lr"] = 0.0
    seconds: list[float] = []
    compiles = engine.kernels and engine.kernels.kernels["compile"] == "compiled"
    least = 2 if compiles or engine.device.type == "cuda" else 1  # the first one warms up
    while len(seconds) < least or (len(seconds) < MAX_STEPS and sum(seconds) < ENOUGH_S):
        began = time.monotonic()
        result = train_step(engine, prepared, data.train, batch)
        loss = float(result.loss)
        seconds.append(max(exchange(time.monotonic() - began)))
    return loss, seconds[-1]


def _memory(engine: Engine) -> tuple[float, float]:
    """GiB used by the process that used most, and GiB available to one process."""
    used = max(exchange(memory_gb()))
    if engine.device.type == "cuda":
        return used, torch.cuda.get_device_properties(engine.device).total_memory / 2**30
    gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return used, gb / read_ranks(os.environ).local_world_size


def check_time(prepared: PreparedRun, step_s: float) -> list[Finding]:
    """Steps and time of the whole run, which should not outlast the job."""
    sampler = prepared.data.sampler
    epoch, batch_size = sampler.steps_per_epoch, sampler.config.batch_size
    forward_s, steps_s = FORWARD_SHARE * step_s / batch_size, [step_s] * len(prepared.stages)
    records = len(prepared.data.train), len(prepared.data.valid)
    seconds = run_seconds(prepared.stages, epoch, records, steps_s, forward_s)
    steps = num_steps(prepared.stages, epoch)
    hours = timedelta(seconds=round(seconds))
    text = f"{count(steps, 'step')} ({epoch} an epoch) with validations in about {hours} h"
    left_s = float(os.environ.get("SLURM_JOB_END_TIME", "inf")) - time.time()
    if seconds > left_s:
        text += (
            f"; this job ends in {timedelta(seconds=round(left_s))} h: another job can resume it"
        )
        return [Finding("warning", "time", f"{text}, or give more time or processes")]
    return [Finding("ok", "time", f"{text}, unless train.patience ends them sooner")]


def check_node(config: EngineConfig) -> list[Finding]:
    """Each process by itself: versions, GPUs and where jobs are submitted."""
    versions = attempt("versions", cluster.check_versions, config)
    return [*versions, *attempt("gpus", cluster.check_gpus, config), *cluster.check_logs()]


def check_data(data: PreparedData, ranks: Ranks) -> list[Finding]:
    """Each process by itself: the shards, and whether they suit this number of processes."""
    findings = attempt("data", data.sampler.check_world_size, ranks.world_size)
    findings += attempt("stage", disks.check_stage_dir, data.sampler.config, data.shards)
    findings += attempt("amplitude", check_amplitude, data.shards)
    return findings + attempt("digests", check_digests, data.train, ranks)


def check_disk(run_dir: Path, prepared: PreparedRun) -> list[Finding]:
    """Each process by itself: space for what the run will save."""
    config, counts = prepared.stages[0].train, prepared.start.report["counts"]
    return attempt("space", disks.check_space, run_dir, config, 4 * counts["parameters"])


def run_checks(
    engine: Engine, run_dir: Path, prepared: PreparedRun | None, own_findings: Sequence[Finding]
) -> Iterator[Finding]:
    """Report what the processes found by themselves, and check what needs all of them."""
    findings = merged(own_findings)
    wrong = {finding.name for finding in findings if finding.level == "error"}
    yield from findings
    if sum(finding[:2] == ("ok", "versions") for finding in findings) > 1:
        yield Finding("error", "versions", "they differ: let all nodes use one environment")
    yield from disks.check_folder(run_dir, engine.rank)
    yield from disks.check_clocks(run_dir, engine.rank)
    if HARDWARE in wrong:
        yield Finding("skipped", "the rest", "some processes lack the hardware")
        return
    yield from cluster.check_gpus_not_shared(engine.device)
    yield from cluster.check_ranks(engine.device)
    is_open = all(exchange(prepared is not None))
    if prepared is None or not is_open:
        yield Finding("skipped", "the rest", "data and weights must be opened first")
        return
    try_all = partial(try_kernels_of_run, engine, prepared)
    kernels = attempt("kernels", lambda: [Finding("ok", "kernels", line) for line in try_all()])
    yield from kernels
    if wrong & {"data", "digests"}:
        yield Finding("skipped", "step", "the data must be repaired first")
    elif kernels[0].level == "error":
        yield Finding("skipped", "step", "the kernels must be right first")
    else:
        step_findings, seconds = check_step(engine, prepared)
        yield from step_findings
        if seconds is not None:
            every = engine.config.verify_every
            yield from check_time(prepared, seconds + (seconds / every if every else 0))
