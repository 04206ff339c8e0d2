"""The doctor's checks of a run (its data, one real step, what all of it costs), and his rounds.

What is opened for a run comes in, findings go out one by one. All processes go round together. The
step is taken with a learning rate of 0, so the weights stay as they were.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hpc_ecg.data.augment import AugmentConfig
from hpc_ecg.data.batches import StepBatch
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.loader import prefetch
from hpc_ecg.data.node_cache import BLOCK
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model.losses import LossConfig, loss_sum, normalizer
from hpc_ecg.preflight import cluster_checks as cluster
from hpc_ecg.preflight import disk_checks as disks
from hpc_ecg.preflight.cluster_checks import Finding, attempt, exchange, merged, reason
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.shards.index import amplitude_of_cohort
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.inputs import TrainingTransform
from hpc_ecg.training.meter import memory_gb
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.stage_schedule import StageSchedule
from hpc_ecg.training.stages import Stage, trains_head_only
from hpc_ecg.weights.initialize import Initialized

FEWEST_SHARDS = 4
"""Of the sample that is digested; more where there are more processes."""
ABSURD = 10.0
"""An amplitude so many times the usual, or a part of it, is of no cohort in mV."""
MOST_STEPS, ENOUGH_S = 3, 20.0
FULL = 0.9
"""Share of the memory above which another batch may not fit."""
LESS_MEMORY = (
    "; lower engine.micro_batch_size, or take engine.activation_checkpointing=true or "
    "engine.parallel=fsdp2"
)
FORWARD = 1 / 3
"""Of the time of a step, which goes back, too."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was opened for a run."""

    seed: int
    augment: AugmentConfig
    loss: LossConfig
    train: Dataset
    valid: Dataset
    sampler: EpochSampler
    stages: list[Stage]
    start: Initialized


def check_digests(train: Dataset, rank: int) -> list[Finding]:
    """Of the world: shards all over the set, each read whole by one process."""
    about = train.shards.description["shards"]
    began, world = time.monotonic(), len(exchange(None))
    sample = min(len(about), max(FEWEST_SHARDS, world))
    chosen = np.linspace(0, len(about) - 1, sample).round().astype(int).tolist()
    wrong = merged([f for shard in chosen[rank::world] for f in _check_shard(train, shard)])
    rate = sum(about[shard]["bytes"] for shard in chosen) / (time.monotonic() - began)
    text = f"{sample} of {len(about)} shards are as written (read at {disks.size(rate)}/s)"
    return wrong or [Finding("ok", "digests", exchange(text)[0])]


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
    why = train.damage(shard, "its SHA-256 is not that of dataset.json")
    return [Finding("error", "digests", why)]


def check_amplitude(shards: ShardSet) -> list[Finding]:
    """Are the signals in mV, as the weights expect them?"""
    train = shards.index[shards.index["split"] == "train"]
    facts = amplitude_of_cohort(train, shards.signal)
    if "as expected" in facts.sentence:
        return [Finding("ok", "amplitude", facts.sentence)]
    level = "warning" if 1 / ABSURD < facts.ratio < ABSURD else "error"
    mend = "Write the shards again with the right unit (--unit, --amplitude-factor)."
    return [Finding(level, "amplitude", f"{facts.sentence} {mend}")]


def check_step(engine: Engine, setup: Setup) -> tuple[list[Finding], float | None]:
    """Of the world: the first batch, read, forward, backward and update; the seconds of a step.

    ValueError if it fails on one of several processes: the others cannot be told.
    """
    batches = prefetch(setup.train, range(1), setup.sampler, engine.share)
    batch, wrong = None, []
    try:
        batch = next(batches)
    except (ValueError, OSError) as error:
        wrong = [Finding("error", "step", reason(error))]
    wrong = merged(wrong)
    if wrong or batch is None:
        return wrong, None
    try:
        loss, seconds = _take_steps(engine, setup, batch)
    except (ValueError, RuntimeError) as error:
        is_memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        why = f"{reason(error)}{LESS_MEMORY if is_memory else ''}"
        if engine.world_size > 1:
            raise ValueError(f"step: {why}") from None
        return [Finding("error", "step", why)], None
    used, limit = _memory(engine)
    text = (
        f"{len(batch.positions)} records in {seconds:.2g} s, at most {used:.1f} of {limit:.0f} GB "
    )
    text += f"for a process, loss {loss:.4g}"
    if engine.first_bad_step() is not None:
        mend = "look at the weights, and at the amplitude of the data"
        return [Finding("error", "step", f"{text}: loss or gradient is not finite; {mend}")], None
    if used > FULL * limit:
        return [Finding("warning", "step", text + LESS_MEMORY)], seconds
    return [Finding("ok", "step", text)], seconds


def _take_steps(engine: Engine, setup: Setup, batch: StepBatch) -> tuple[float, float]:
    """The loss, and the seconds of the last step (the first one warms up), of the stage that trains
    most."""
    trained = {
        name: about["tensors_trained"] for name, about in setup.start.report["stages"].items()
    }
    stage = max(setup.stages, key=lambda stage: trained[stage.name])
    setup.start.model.freeze(stage.freeze, stage.train.freeze_layers)
    build = partial(build_optimizer, config=stage.optim, device=engine.device)
    engine.prepare(setup.start.model, build, stage.optim.clip_norm)
    for group in engine.ties.optimizer.param_groups:
        group["lr"] = 0.0
    divide_by = normalizer(torch.from_numpy(batch.global_labels_BK), setup.loss)
    change = TrainingTransform(
        dataset=setup.train, augment=setup.augment, seed=setup.seed, step=batch.step
    )
    loss_of, per_count = partial(loss_sum, config=setup.loss), setup.train.millivolts_per_count
    seconds: list[float] = []
    while len(seconds) < MOST_STEPS and sum(seconds) < ENOUGH_S:
        began = time.monotonic()
        loss = float(engine.take_step(batch, loss_of, divide_by, per_count, change).loss)
        seconds.append(max(exchange(time.monotonic() - began)))
    return loss, seconds[-1]


def _memory(engine: Engine) -> tuple[float, float]:
    """GB that the fullest process has used, and GB that there are for one."""
    used = max(exchange(memory_gb()))
    if engine.device.type == "cuda":
        return used, torch.cuda.get_device_properties(engine.device).total_memory / 2**30
    gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return used, gb / read_ranks(os.environ).local_world_size


def project(setup: Setup, step_s: float) -> list[Finding]:
    """Steps and time of the whole run; does the job last so long?"""
    epoch, batch_size = setup.sampler.steps_per_epoch, setup.sampler.config.batch_size
    validation_s = FORWARD * step_s * len(setup.valid) / batch_size
    steps, seconds = 0, validation_s
    for stage in setup.stages:
        schedule = StageSchedule.of(stage.train, epoch)
        steps += schedule.steps
        if trains_head_only(setup.stages, stage):  # features are computed once
            seconds += FORWARD * step_s * len(setup.train) / batch_size
        else:
            seconds += schedule.steps * (step_s + validation_s / schedule.eval_every)
    hours = timedelta(seconds=round(seconds))
    text = f"{steps} steps ({epoch} an epoch) with validations in about {hours} h"
    left_s = float(os.environ.get("SLURM_JOB_END_TIME", "inf")) - time.time()
    if seconds > left_s:
        mend = "it goes on in another, or give more time or processes"
        left = timedelta(seconds=round(left_s))
        return [Finding("warning", "time", f"{text}; this job ends in {left} h: {mend}")]
    return [Finding("ok", "time", f"{text}, if no patience ends them sooner")]


def look_at_node(config: EngineConfig) -> list[Finding]:
    """What a process can find before it meets the others."""
    versions = attempt("versions", cluster.check_versions, config)
    return [*versions, *attempt("gpus", cluster.check_gpus, config)]


def run_checks(
    engine: Engine, run_dir: Path, setup: Setup | None, of_node: Sequence[Finding]
) -> Iterator[Finding]:
    """All that there is to look at. `of_node`: what this process found before it met the others."""
    found = merged(of_node)
    yield from found
    if sum(finding[:2] == ("ok", "versions") for finding in found) > 1:
        yield Finding("error", "versions", "they differ: let all nodes use one environment")
    yield from cluster.check_own_gpus(engine.device)
    yield from cluster.check_ranks(engine.device)
    yield from disks.check_folder(run_dir, engine.rank)
    yield from disks.check_clocks(run_dir, engine.rank)
    is_open = all(exchange(setup is not None))
    if setup is None or not is_open:
        yield Finding("skipped", "the rest", "data and weights must be opened first")
    else:
        yield from _examine_run(engine, run_dir, setup)


def _examine_run(engine: Engine, run_dir: Path, setup: Setup) -> Iterator[Finding]:
    shards, config = setup.train.shards, setup.stages[0].train
    weight_bytes = 4 * setup.start.report["counts"]["parameters"]
    yield from exchange(attempt("space", disks.check_space, run_dir, config, weight_bytes))[0]
    yield from merged(attempt("stage", disks.check_stage, setup.sampler.config, shards))
    yield from attempt("amplitude", check_amplitude, shards)
    data = attempt("data", setup.sampler.check_world, engine.world_size)
    data += check_digests(setup.train, engine.rank)
    yield from data
    if any(finding.level == "error" for finding in data):
        yield Finding("skipped", "step", "the data must be mended first")
        return
    step, seconds = check_step(engine, setup)
    yield from step
    if seconds is not None:
        yield from project(setup, seconds)
