"""Variants of the model in one training step (forward and backward), compared with the package's.

Variants take turns. Each time is divided by that of the package's model in the same round, and the
median counts: below 1 a variant is faster.

  fft          positional convolution by FFT instead of the direct one
  plain        attention without a fused kernel
  torch        dropout from torch's generator; `off`: no dropout
  checkpoint   layers recomputed in the backward pass
  compiled     torch.compile for both passes (compile time: `variant_compile_seconds`)
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hpc_ecg.model.flops import training_flops
from hpc_ecg.model.transformer import Architecture, ECGClassifier, ModelConfig, build_model

TARGETS: dict[str, float] = {}
SMALL = Architecture(
    encoder_layers=4,
    encoder_embed_dim=256,
    encoder_ffn_embed_dim=1024,
    encoder_attention_heads=4,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="steps of each variant (default 5)")
    parser.add_argument(
        "--small", action="store_true", help="4 layers of width 256, not the published model"
    )


def measure(options: argparse.Namespace) -> dict[str, float]:
    architecture = SMALL if options.small else Architecture()
    return measure_variants(architecture, options.batch_size, options.repeats)


def measure_variants(
    architecture: Architecture | None = None, batch_size: int = 8, repeats: int = 5
) -> dict[str, float]:
    """Times of the variants as ratios to the package's step, and the seconds of that step."""
    architecture = architecture or Architecture()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ecg_BCS = torch.randn(batch_size, architecture.in_d, 2500, device=device)
    seeds_B = torch.arange(batch_size, device=device)
    models = {
        name: build_model(architecture, 1, config).to(device)
        for name, config in {
            "own": ModelConfig(),
            "fft": ModelConfig(positional_conv="fft"),
            "plain": ModelConfig(attention="math"),
            "off": ModelConfig(activation_dropout=0.0),
        }.items()
    }
    baseline = models["own"]
    steps: dict[str, Callable[[], None]] = {
        "own": lambda: _step(baseline, ecg_BCS, seeds_B),
        "fft": lambda: _step(models["fft"], ecg_BCS, seeds_B),
        "plain": lambda: _step(models["plain"], ecg_BCS, seeds_B),
        "torch": lambda: _step(baseline, ecg_BCS, None),
        "off": lambda: _step(models["off"], ecg_BCS, seeds_B),
        "checkpoint": lambda: _step_with_checkpoints(baseline, ecg_BCS, seeds_B),
    }
    compiled = build_model(architecture, 1, ModelConfig()).to(device)
    compiled.compile()
    began = time.perf_counter()
    _step(compiled, ecg_BCS, seeds_B)
    compile_seconds = time.perf_counter() - began
    steps["compiled"] = lambda: _step(compiled, ecg_BCS, seeds_B)
    seconds = _times(steps, repeats, device)
    numbers = {
        f"variant_{name}_to_own": statistics.median(
            a / b for a, b in zip(seconds[name], seconds["own"], strict=True)
        )
        for name in steps
        if name != "own"
    }
    baseline_seconds = statistics.median(seconds["own"])
    flops = batch_size * training_flops(architecture, ecg_BCS.shape[-1])
    return {
        "variant_own_seconds": baseline_seconds,
        "variant_own_gigaflops_per_second": flops / baseline_seconds / 1e9,
        **numbers,
        "variant_compile_seconds": compile_seconds,
    }


def _times(
    steps: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat_number in range(repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _step(model: ECGClassifier, ecg_BCS: Tensor, seeds_B: Tensor | None) -> None:
    model.zero_grad()
    model(ecg_BCS, None, seeds_B).sum().backward()


def _step_with_checkpoints(model: ECGClassifier, ecg_BCS: Tensor, seeds_B: Tensor) -> None:
    model.backbone.encoder.checkpoint_layers = True
    try:
        _step(model, ecg_BCS, seeds_B)
    finally:
        model.backbone.encoder.checkpoint_layers = False
