"""What a run costs beside its arithmetic: the loop, reading, dropout, saving, starting."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from _loops import Batch, PairedTimer, host_steps, make_batches, make_model, run_ours

from gpu.bench import Bench, make_bench
from gpu.parts import Clock, Emit
from gpu.verdicts import UNKNOWN
from hpc_ecg.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.settings import FinetuneConfig

ROW_S = 8.0
"""What a row is expected to take at most, on a GPU."""


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    with make_bench(options) as bench:
        for row, figures_of in ROWS.items():
            enough = clock.has(ROW_S if bench.on_gpu else 1.0)
            emit(row, figures_of(bench) if enough else {UNKNOWN: "out of time"})


def bare_steps(bench: Bench, config: FinetuneConfig, batches: list[Batch]) -> Iterator[None]:
    """A loop that only trains, its batches on the device; nothing waits for the device."""
    model = make_model(bench.architecture, config).to(bench.device)
    optimizer = build_optimizer(model, config.optim, bench.device)
    is_half = config.engine.precision == "bf16"
    for inputs, targets_BK in cycle(batches):
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=is_half):
            logits_BK = model(*inputs)
        F.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        yield


def batches_on(bench: Bench, config: FinetuneConfig) -> list[Batch]:
    found = []
    for inputs, targets_BK in make_batches(config, 4):
        moved = tuple(x if x is None else x.to(bench.device) for x in inputs)
        found.append((moved, targets_BK.to(bench.device)))
    return found


def _overhead(bench: Bench) -> dict[str, Any]:
    """A run, reading from shards and logging, against the bare loop, in blocks that alternate."""
    steps = host_steps(bench.block, bench.pairs)
    config = bench.config("overhead", steps)
    loop = bare_steps(bench, config, batches_on(bench, config))
    timer = PairedTimer({"bare": lambda: next(loop)}, bench.block, bench.wait)
    ours = run_ours(config, timer.before_step)
    wall, cpu = timer.ratio("bare")
    figures = {"share": float(wall) - 1, "share_of_cpu_time": float(cpu) - 1}
    figures |= {"seconds": float(timer.seconds()[0]), "bare": float(timer.seconds("bare")[0])}
    return figures | {"last_loss": ours[max(ours)], "steps": steps}


def _data_wait(bench: Bench) -> dict[str, Any]:
    """A run fed from shards by its one reading thread."""
    steps = 60 if bench.on_gpu else 8
    run = finetune(bench.config("data", steps, f"train.log_every={steps // 4}"))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    of_steps = [line for line in lines if line["event"] == "step"][1:]  # the first warms up
    names = ("ecg_per_s", "data_wait", "step_s_p50", "step_s_p95", "memory_gb")
    figures = {name: median(line[name] for line in of_steps) for name in names}
    return figures | {"share": figures["data_wait"], "steps": steps}


def _dropout(bench: Bench) -> dict[str, Any]:
    """Steps with record dropout against steps without, in blocks that alternate."""
    configs = {p: bench.config("never", 1, f"model.activation_dropout={p}") for p in ("0.1", "0")}
    batches = batches_on(bench, configs["0.1"])
    with_it, without = (bare_steps(bench, config, batches) for config in configs.values())
    timer = PairedTimer({"without": lambda: next(without)}, bench.block, bench.wait)
    for _ in range(host_steps(bench.block, bench.pairs)):
        timer.before_step()
        next(with_it)
    seconds = {"with": timer.seconds()[0], "without": timer.seconds("without")[0]}
    share = 1 - 1 / timer.ratio("without")[0]
    return {"share": float(share), **{name: float(value) for name, value in seconds.items()}}


def _checkpoint(bench: Bench) -> dict[str, Any]:
    """Weights and moments from the device to the disk, with digests, and back."""
    folder = bench.folder / "saved"
    with bench.prepared() as (engine, run):
        optim, model = run.config.optim, run.start.model

        def prepare(moments: Mapping[str, torch.Tensor] | None = None) -> Any:
            build = lambda m: build_optimizer(m, optim, engine.device)  # noqa: E731
            return engine.prepare_training(model, build, optim.clip_norm, moments)

        backend = prepare()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        backend.step()
        bench.wait()
        began = time.perf_counter()
        save_checkpoint(folder, Progress(step=1), model, backend.moments(), keep=1)
        saved = time.perf_counter()
        (path,) = folder.glob("step-*")
        prepare(load_checkpoint(path, model)[0])
        bench.wait()
        loaded = time.perf_counter()
    size = sum(file.stat().st_size for file in path.iterdir())
    return {"save_seconds": saved - began, "load_seconds": loaded - saved, "mb": size / 1e6}


def _first_step(bench: Bench) -> dict[str, Any]:
    """From the call of a run, with all modules imported, to the end of its first step."""
    began, seconds = time.perf_counter(), []

    def before_step() -> None:
        bench.wait()
        seconds.append(time.perf_counter() - began)

    run_ours(bench.config("first", 2), before_step)
    return {"seconds": seconds[1], "until_it_begins": seconds[0]}


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "overhead": _overhead,
    "data wait": _data_wait,
    "dropout": _dropout,
    "checkpoint": _checkpoint,
    "first step": _first_step,
}
