"""Steps as `hpc-ecg plan` computes them, by steps measured on this CPU at other sizes.

The formula's ratios for CPUs come from one size (width 384, 2 layers, batch 8, fp32), which is not
among these. Each round measures a product and then a step of each size; the ratio of computed to
measured seconds is their median. One thread, and CPU time, since wall time of a machine that others
use says little. `published`: the one speed of this model that is published (410 to 505 ECG/s, one
RTX A6000, fp16, batch 128, by the original's program), by its middle.
"""

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.preflight.devices import cpu_device, device_of, measure_product, with_convolution
from hpc_ecg.preflight.footprint import Workload
from hpc_ecg.preflight.step_time import compute_s
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.settings import OptimConfig

CPU = torch.device("cpu")
PUBLISHED = 410, 505
# Width, layers, batch, samples, precision, what is frozen, activation checkpointing.
SIZES = {
    "wide": (768, 2, 4, 2500, "fp32", "none", False),
    "narrow": (128, 4, 12, 2500, "fp32", "none", False),
    "deep": (256, 8, 6, 2500, "fp32", "none", False),
    "long": (512, 2, 3, 5000, "fp32", "none", False),
    "short": (512, 3, 12, 1250, "fp32", "none", False),
    "frozen_stem": (512, 3, 6, 2500, "fp32", "stem", False),
    "checkpointed": (512, 3, 6, 2500, "fp32", "none", True),
    "half": (512, 3, 6, 2500, "bf16", "none", False),
    "batch_1": (512, 3, 1, 2500, "fp32", "none", False),
    "batch_24": (256, 3, 24, 2500, "fp32", "none", False),
    "one_of_wide": (640, 2, 1, 2500, "fp32", "none", False),
    "one_of_deep": (384, 6, 1, 2500, "fp32", "none", False),
    "half_wide": (768, 2, 3, 2500, "bf16", "none", False),
    "half_narrow": (256, 4, 16, 2500, "bf16", "none", False),
    "half_one": (512, 4, 1, 2500, "bf16", "stem", False),
    "half_long": (384, 3, 4, 5000, "bf16", "none", False),
    "half_few": (640, 3, 2, 2500, "bf16", "none", False),
    "half_many": (384, 4, 20, 2500, "bf16", "none", False),
    "half_again": (768, 4, 4, 1250, "bf16", "stem", True),
    "published_sizes": (768, 12, 4, 2500, "fp32", "stem", False),
}
TARGETS = {f"{name}_error_percent": 20.0 for name in [*SIZES, "published"]}
AT_LEAST: dict[str, float] = {}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--only", choices=list(SIZES), nargs="*", help="some sizes")


def measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(1)
    numbers = {}
    for name in options.only or SIZES:
        work, step = _prepare(*SIZES[name])
        step()
        ratios, measured = [], []
        for _ in range(options.rounds):
            rate, plain = measure_product(work.device.precision), measure_product("fp32")
            began = time.process_time()
            step()
            measured.append(time.process_time() - began)
            device = with_convolution(cpu_device(work.device.precision, rate, plain), work.sizes)
            ratios.append(compute_s(work._replace(device=device), SIZES[name][2]) / measured[-1])
        numbers[f"{name}_ms"] = 1000 * median(measured)
        numbers[f"{name}_computed_by_measured"] = median(ratios)
        numbers[f"{name}_error_percent"] = 100 * abs(median(ratios) - 1)
        del step
        gc.collect()
    return numbers | _published()


def _prepare(
    width: int, layers: int, batch: int, samples: int, precision: str, freeze: str, again: bool
) -> tuple[Workload, Callable[[], object]]:
    sizes = Architecture(
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=width // 64,
    )
    config, engine = ModelConfig(), EngineConfig(activation_checkpointing=again)
    model = build_model(sizes, 1, config).train()
    model.freeze(freeze)
    model.backbone.encoder.checkpoint_layers = again
    optimizer = build_optimizer(model, OptimConfig(), CPU)
    inputs = torch.randn(batch, 12, samples), None, torch.arange(batch)
    targets_BK = torch.zeros(batch, 1)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits_BK = model(*inputs)
        F.binary_cross_entropy_with_logits(logits_BK, targets_BK).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    device = cpu_device(precision, 1.0, 1.0)
    return Workload(sizes, samples, 1, config, engine, device, freeze), step


def _published() -> dict[str, float]:
    """With plain attention, as the original has it."""
    model, device = ModelConfig(attention="math"), device_of("a6000", "fp16")
    work = Workload(Architecture(), 2500, 1, model, EngineConfig(), device, "stem")
    speed = 128 / compute_s(work, 128)
    return {
        "published_ecg_per_s": speed,
        "published_error_percent": 100 * abs(speed / (sum(PUBLISHED) / 2) - 1),
        "published_above_its_range_percent": 100 * max(0.0, speed / PUBLISHED[1] - 1),
    }
