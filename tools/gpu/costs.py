"""What a run costs beside its arithmetic: the loop, reading, dropout, saving, starting."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from _loops import PairedTimer, host_steps, make_batches, make_model, run_ours

from gpu.bench import Bench, reason_of, start_training
from gpu.parts import Clock, Emit
from gpu.verdicts import UNKNOWN
from hpc_ecg.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.settings import FinetuneConfig


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    bench = Bench(options, "costs")
    for row, figures_of in ROWS.items():
        is_late = clock.left_s < 2 * bench.row_s
        try:
            emit(row, {UNKNOWN: "out of time"} if is_late else figures_of(bench))
        except (ValueError, RuntimeError) as error:  # such as too little memory; the others go on
            emit(row, {UNKNOWN: reason_of(error)})


def bare_steps(bench: Bench, config: FinetuneConfig) -> Iterator[None]:
    """A loop that only trains, its batches on the device; nothing waits for the device."""
    model = make_model(bench.architecture, config).to(bench.device)
    optimizer = build_optimizer(model, config.optim, bench.device)
    batches = [
        ([x if x is None else x.to(bench.device) for x in inputs], targets_BK.to(bench.device))
        for inputs, targets_BK in make_batches(config, 4)
    ]
    for inputs, targets_BK in cycle(batches):
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.on_gpu):
            logits_BK = model(*inputs)
        F.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        yield


def _overhead(bench: Bench) -> dict[str, Any]:
    """A run, reading from shards and logging, against the bare loop, in blocks that alternate; and
    the time from its call, with all modules imported, to its first step."""
    config = bench.config("overhead", host_steps(bench.block, bench.pairs))
    bare = bare_steps(bench, config)
    timer = PairedTimer({"bare": lambda: next(bare)}, bench.block, bench.wait)
    began, starts = time.perf_counter(), list[float]()

    def before_step() -> None:
        starts.append(time.perf_counter() - began)
        timer.before_step()

    run_ours(config, before_step)
    seconds = {"seconds": timer.seconds()[0], "bare_seconds": timer.seconds("bare")[0]}
    return {"share": timer.ratio("bare")[0] - 1, "start_seconds": starts[0], **seconds}


def _data_wait(bench: Bench) -> dict[str, Any]:
    """A run fed from shards by its one reading thread."""
    steps = 60 if bench.on_gpu else 8
    run = finetune(bench.config("data", steps, f"train.log_every={steps // 4}"))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    of_steps = [line for line in lines if line["event"] == "step"][1:]  # the first warms up
    names = ("ecg_per_s", "data_wait", "step_s_p50", "step_s_p95")
    figures = {name: median(line[name] for line in of_steps) for name in names}
    return figures | {"share": figures["data_wait"]}


def _dropout(bench: Bench) -> dict[str, Any]:
    """Steps with record dropout against steps without, in blocks that alternate."""
    with_it, without = (
        bare_steps(bench, bench.config("never", 1, f"model.activation_dropout={p}"))
        for p in (0.1, 0)
    )
    timer = PairedTimer({"without": lambda: next(without)}, bench.block, bench.wait)
    for _ in range(host_steps(bench.block, bench.pairs)):
        timer.before_step()
        next(with_it)
    return {"share": float(1 - 1 / timer.ratio("without")[0]), "seconds": timer.seconds()[0]}


def _checkpoint(bench: Bench) -> dict[str, Any]:
    """Weights and moments from the device to the disk, with digests, and back."""
    folder = bench.folder / "saved"
    with bench.prepared() as (engine, run):
        backend, model = start_training(engine, run), run.start.model
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        backend.step()
        bench.wait()
        began = time.perf_counter()
        save_checkpoint(folder, Progress(step=1), model, backend.moments(), keep=1)
        saved = time.perf_counter()
        (path,) = folder.glob("step-*")
        start_training(engine, run, load_checkpoint(path, model)[0])
        bench.wait()
        loaded = time.perf_counter()
    size = sum(file.stat().st_size for file in path.iterdir())
    return {"save_seconds": saved - began, "load_seconds": loaded - saved, "mb": size / 1e6}


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "overhead": _overhead,
    "data wait": _data_wait,
    "dropout": _dropout,
    "checkpoint": _checkpoint,
}
