"""`hpc-ecg doctor`: check that a run would work. Settings in, findings out; the run is not changed.

The doctor opens a run as `finetune` does, but reports each failure as a finding and continues.
"""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpc_ecg.config.load import to_yaml
from hpc_ecg.distributed.process_group import check_machine
from hpc_ecg.distributed.ranks import read_ranks
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.preflight.cluster_checks import Finding, attempt, exchange, raise_on_errors, reason
from hpc_ecg.preflight.disk_checks import nearest_folder
from hpc_ecg.preflight.plan import keep_plan
from hpc_ecg.preflight.training_checks import (
    HARDWARE,
    check_data,
    check_disk,
    check_node,
    run_checks,
)
from hpc_ecg.reporting.numbers import count
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.finetune import BeforeTraining
from hpc_ecg.training.prepare import PreparedRun, describe_weights, prepare_data, prepare_weights
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

ENGINE = "engine"
"""Name of the finding that each process reports for itself; all other findings are shared."""
TIMEOUT_MIN = 10.0
"""Shorter than a run's, since the user is waiting; but a step on a CPU may take minutes."""


def diagnose(config: FinetuneConfig) -> Iterator[Finding]:
    """Yield findings, the same on every process but for ENGINE; all processes must consume all."""
    ranks, host = read_ranks(os.environ), socket.gethostname()
    prepared, findings = _open(config)
    findings = [*check_node(config.engine), *findings]
    run_dir, began = Path(config.run_dir), time.monotonic()
    engine_config = replace(config.engine, timeout_min=min(config.engine.timeout_min, TIMEOUT_MIN))
    try:
        check_machine(engine_config)
    except ValueError as error:  # join all the same, so that the others need not wait
        findings.append(Finding("error", HARDWARE, reason(error)))
        engine_config = EngineConfig(device="cpu", timeout_min=engine_config.timeout_min)
    try:
        engine = Engine(engine_config, nearest_folder(run_dir))
    except Exception as error:
        yield from findings
        wrong = [f for f in findings if f.level == "error" and ranks.rank > 0]
        texts = [*(f"{f.name}: {f.text}" for f in wrong), reason(error)]
        yield from (Finding("error", ENGINE, f"on {host}: {text}") for text in texts)
        yield Finding("skipped", "the rest", "the processes must join each other first")
        return
    try:
        if engine.world_size > 1:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            seconds = max(exchange(time.monotonic() - began))
            text = f"{engine.world_size} processes joined at {address} in {seconds:.1f} s"
            yield Finding("ok", "rendezvous", text)
        with engine.share_failures():
            yield from run_checks(engine, run_dir, prepared, findings)
            exchange(None)  # srun ends all processes with the first: rank 0 must have printed
    except (ValueError, OSError, RuntimeError) as error:
        yield Finding("error", ENGINE, f"on {host}: {reason(error)}")
    finally:
        engine.close()


def doctor_before_training(config: FinetuneConfig) -> BeforeTraining:
    """For `finetune(config, before_training=…)`: keep what the plan says and, with train.doctor,
    run the doctor, which raises ValueError on errors."""

    def check(engine: Engine, prepared: PreparedRun) -> None:
        keep_plan(engine, prepared)
        if not config.train.doctor:
            return
        run_dir, ranks = Path(config.run_dir), read_ranks(os.environ)
        findings = [*check_node(engine.config), *check_data(prepared.data, ranks)]
        findings += check_disk(run_dir, prepared)
        raise_on_errors(run_checks(engine, run_dir, prepared, findings), engine.is_rank_zero)

    return check


def _open(config: FinetuneConfig) -> tuple[PreparedRun | None, list[Finding]]:
    """The opened data and weights, None if one cannot be opened, and findings about them."""
    findings = attempt("run_dir", _check_run_dir, config)
    try:
        data = prepare_data(config)
    except Exception as error:
        skipped = Finding("skipped", "weights", "the data that they must fit cannot be opened")
        return None, [*findings, Finding("error", "data", reason(error)), skipped]
    labels = ", ".join(data.train.label_names)
    text = f"{count(len(data.train), 'record')} to train and {len(data.valid)} to validate, "
    findings.append(Finding("ok", "data", f"{text}labels {labels}"))
    findings += check_data(data, read_ranks(os.environ))
    findings += [Finding("warning", "data", line) for line in data.left_out]
    try:
        prepared = prepare_weights(config, data)
    except Exception as error:
        return None, [*findings, Finding("error", "weights", reason(error))]
    findings.append(Finding("ok", "weights", describe_weights(prepared)))
    return prepared, [*findings, *check_disk(Path(config.run_dir), prepared)]


def _check_run_dir(config: FinetuneConfig) -> list[Finding]:
    folder = RunFolder(config.run_dir)
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        return [Finding("warning", "run_dir", f"{folder.path} is finished: nothing would be done")]
    state = "an existing run" if folder.config.exists() else "a new run"
    return [Finding("ok", "run_dir", f"{folder.path}: {state}")]
