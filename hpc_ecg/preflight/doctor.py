"""`hpc-ecg doctor`: would this run work here? Settings in, findings out; nothing of a run changes.

A run is opened as `finetune` opens it, but what fails becomes a finding, and the rest goes on.
"""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpc_ecg.config.load import to_yaml
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.data.source import ShardSource
from hpc_ecg.preflight.cluster_checks import Finding, attempt, exchange, reason
from hpc_ecg.preflight.disk_checks import nearest_folder
from hpc_ecg.preflight.run_checks import Setup, look_at_node, run_checks
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.outcome import BestTracker, check_start
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import describe_stages, stages_of
from hpc_ecg.weights.initialize import initialize

ALONE = "engine"
"""Name of what each process finds for itself; everything else is found by all of them."""
PATIENCE_MIN = 10.0
"""Who asks a doctor wants an answer; but on a CPU a step may take minutes."""


def diagnose(config: FinetuneConfig) -> Iterator[Finding]:
    """Findings as they come, the same on every process; all of them must ask for all."""
    setup, found = _open(config)
    found = [*look_at_node(config.engine), *found]
    run_dir, began = Path(config.run_dir), time.monotonic()
    patience = replace(config.engine, timeout_min=min(config.engine.timeout_min, PATIENCE_MIN))
    try:
        engine = Engine(patience, nearest_folder(run_dir))
    except Exception as error:
        yield from found
        yield Finding("error", ALONE, f"on {socket.gethostname()}: {reason(error)}")
        yield Finding("skipped", "the rest", "the processes must meet first")
        return
    try:
        if engine.world_size > 1:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            seconds = max(exchange(time.monotonic() - began))
            text = f"{engine.world_size} processes met at {place} in {seconds:.1f} s"
            yield Finding("ok", "meeting", text)
        yield from run_checks(engine, run_dir, setup, found)
    except RuntimeError as error:
        why = f"{socket.gethostname()} has lost the others: {reason(error)}"
        yield Finding("error", ALONE, why)
    finally:
        engine.close()


def _open(config: FinetuneConfig) -> tuple[Setup | None, list[Finding]]:
    """What is opened for the run; None where something of it is wrong."""
    found = attempt("run_dir", _check_run, config)
    try:
        shards, labels = open_shards(config.data)
        source = ShardSource(shards, config.data)
        train, valid = (open_split(shards, split, labels, source) for split in ("train", "valid"))
        sampler = EpochSampler.of(train, config.data, config.seed)
        BestTracker(valid, config.data.task, config.train.best_metric, config.loss)
    except Exception as error:
        skipped = Finding("skipped", "weights", "they must fit the data, which must be read first")
        return None, [*found, Finding("error", "data", reason(error)), skipped]
    text = f"{len(train)} records train and {len(valid)} validate, labels {', '.join(labels)}"
    found.append(Finding("ok", "data", text))
    try:
        stages = stages_of(config.train, config.optim, config.init.checkpoint is not None)
        start = initialize(
            *(config.init, config.model, len(labels), labels),
            *(stages[0].train.freeze, config.seed, stages[0].train.freeze_layers),
        )
        check_start(start, shards, config.init.checkpoint)
        describe_stages(start, stages)
    except Exception as error:
        return None, [*found, Finding("error", "weights", reason(error))]
    counts, head = start.report["counts"], start.report["head"]
    text = f"{counts['tensors_loaded']} tensors loaded, {counts['tensors_fresh']} new, "
    text += (
        f"{counts['tensors_ignored']} of the file ignored; head: {head['taken']} ({head['reason']})"
    )
    found.append(Finding("ok", "weights", text))
    setup = Setup(
        seed=config.seed,
        augment=config.augment,
        loss=config.loss,
        train=train,
        valid=valid,
        sampler=sampler,
        stages=stages,
        start=start,
    )
    return setup, found


def _check_run(config: FinetuneConfig) -> list[Finding]:
    folder = RunFolder(config.run_dir)
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        return [Finding("warning", "run_dir", f"{folder.path} is finished: nothing would be done")]
    what = "a run goes on there" if folder.config.exists() else "a new run"
    return [Finding("ok", "run_dir", f"{folder.path}: {what}")]
