"""Seconds of a training step: products and memory traffic at a device's rates, or a step that was
measured on such a device, carried over to other batches by the same formula; and the all-reduce.

An all-reduce takes, by ring, 2 (n - 1) / n of its bytes through the slowest link and 2 (n - 1)
latencies; by double binary tree (Sanders, Speck and Träff 2009) twice its bytes and 2 log2 n
latencies; the faster one counts. DDP sends buckets while the backward pass goes on; the last one
starts when it ends.
"""

import math
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from hpc_ecg.hashing import check_kinds
from hpc_ecg.preflight.devices import KERNELS_PER_LAYER, LAUNCH_S, card_name
from hpc_ecg.preflight.footprint import Workload, part_parameters, traffic_bytes
from hpc_ecg.safe_reading import parse_json, read_json
from hpc_ecg.training.run_folder import RunFolder

ADAM_BYTES, WEIGHT_BYTES, HALF_BYTES = 36, 12, 18
"""For each weight, in AdamW: it and its moments are read and written, its gradient read, clipped,
zeroed. In each micro-batch: it is read twice and its gradient is written; in half precision it is
cast first, and its gradient last."""
BACKWARD, BUCKET_BYTES, LINK_SHARE = 2 / 3, 25 * 2**20, 0.8
"""Of a step's computation; of DDP; share of a link's rate that an all-reduce reaches."""
KINDS: dict[str, Any] = {"seconds": float | int, "records": int, "processes": int}
KINDS |= {"device": str, "precision": str, "flops_per_ecg": float | int}
"""A measured step as JSON; `records` are those of one process."""
STARTED, LOGGED = ("processes", "device", "precision"), ("step_s_p50", "tflops_per_s", "ecg_per_s")
"""What a plan takes from metrics.jsonl: of the run's start, and of a step."""


class Network(NamedTuple):
    """Gbit/s of a node in one direction, and GB/s between two devices of a node."""

    gbit: float
    gpus_per_node: int
    link_gb_s: float
    latency_us: float = 10


def compute_s(work: Workload, records: int) -> float:
    """Seconds of a step of one process over `records` records, without waiting for others."""
    device, trained = work.device, sum(part_parameters(work.sizes, work.num_labels)[work.lowest :])
    per_record = work.products_s() + traffic_bytes(work) / device.bytes_per_s
    micro_batches = -(-records // (work.engine.micro_batch_size or max(records, 1)))
    launches = micro_batches * KERNELS_PER_LAYER * (work.sizes.encoder_layers + 1)
    weight_bytes = ADAM_BYTES + micro_batches * (HALF_BYTES if work.is_half else WEIGHT_BYTES)
    weights = weight_bytes * trained / device.adam_bytes_per_s
    return max(records * per_record, launches * LAUNCH_S * device.is_gpu) + weights


def forward_s(work: Workload) -> float:
    """Seconds of a forward pass, per record."""
    moved = traffic_bytes(work, backward=False) / work.device.bytes_per_s
    return work.products_s(backward=False) + moved


def step_s(
    work: Workload, processes: int, records: int, network: Network, factor: float = 1
) -> float:
    """Seconds of a step with `records` records on each process. `factor`: see `factor_of`."""
    computed = factor * compute_s(work, records)
    sent = 4 * sum(part_parameters(work.sizes, work.num_labels)[work.lowest :])
    if work.engine.parallel in ("zero3", "fsdp2"):  # weights are gathered twice
        sent += sent // 2
    last = all_reduce_s(min(sent, BUCKET_BYTES), processes, network)
    return computed + max(last, all_reduce_s(sent, processes, network) - BACKWARD * computed)


def all_reduce_s(num_bytes: float, processes: int, network: Network) -> float:
    """Seconds of one all-reduce over all processes."""
    if processes == 1:
        return 0.0
    is_inside, latency = processes <= network.gpus_per_node, network.latency_us * 1e-6
    gb_s = network.link_gb_s if is_inside else min(network.link_gb_s, network.gbit / 8)
    once = num_bytes / (LINK_SHARE * gb_s * 1e9)
    ring = 2 * (processes - 1) * (once / processes + latency)
    return min(ring, 2 * once + 2 * math.log2(processes) * latency)


def factor_of(measured: dict[str, Any], work: Workload, network: Network) -> float:
    """Measured seconds by those of the formula. ValueError: of another device or model."""
    name, precision = card_name(measured["device"]), measured["precision"]
    if (name, precision) != work.device[:2]:
        ours = ", ".join(work.device[:2])
        raise ValueError(f"--measured: a step of {name}, {precision}, not {ours}")
    if abs(measured["flops_per_ecg"] / work.flops() - 1) > 0.01:
        raise ValueError("--measured: a step of another model, input or frozen part")
    seconds = step_s(work, measured["processes"], measured["records"], network)
    return float(measured["seconds"]) / seconds


def read_measured(name: str) -> dict[str, Any]:
    """The step that a finished run measured (its folder), or the object `step` of a JSON file, as
    doctor --json and tools/gpu_check.py write it. ValueError: neither, or damaged."""
    if (path := Path(name)).is_dir():
        return step_of_run(RunFolder(path))
    content = read_json(path) if path.is_file() else None
    if not isinstance(content, dict) or not isinstance(content.get("step"), dict):
        expected = "a run's folder, or what doctor --json or gpu-check wrote"
        raise ValueError(f"--measured {path}: no measured step there; give {expected}")
    step: dict[str, Any] = content["step"]
    _check_numbers(path, step, KINDS)
    return step


def _check_numbers(path: Path, values: Any, kinds: dict[str, Any]) -> None:
    """ValueError unless these fields have their kinds, and numbers could be those of a step."""
    check_kinds(path, {"line": values}, {"line": kinds})
    for name in (name for name in kinds if not isinstance(values[name], str)):
        if not 1e-9 <= values[name] <= 1e18:
            raise ValueError(f"{path} is damaged: {name} cannot be {values[name]}; restore it")


def step_of_run(folder: RunFolder) -> dict[str, Any]:
    """The median step that a finished run logged. ValueError: not finished, or none."""
    lines = folder.metrics.read_text().splitlines() if folder.is_finished() else []
    events = [parse_json(line) for line in lines]
    check_kinds(folder.metrics, {"lines": events}, {"lines": [{"event": str}]})
    steps = [event for event in events if event["event"] == "step" and event.get("tflops_per_s")]
    if not steps:
        raise ValueError(f"--measured {folder.path}: no finished run that logged a step")
    start = ([event for event in events if "processes" in event] or [{}])[-1]
    _check_numbers(folder.metrics, start, {name: KINDS[name] for name in STARTED})
    for step in steps:
        _check_numbers(folder.metrics, step, dict.fromkeys(LOGGED, float))
    records = -(-int(folder.read_settings()["data.batch_size"]) // start["processes"])
    seconds = median(step["step_s_p50"] for step in steps[1:] or steps)
    flops = 1e12 * steps[-1]["tflops_per_s"] / steps[-1]["ecg_per_s"]
    known = {"seconds": seconds, "records": records, "flops_per_ecg": flops}
    return known | {name: start[name] for name in STARTED}
