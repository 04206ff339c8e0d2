"""The `init` section, and the story from a checkpoint (or nothing) to a model ready to train.

Every parameter ends as loaded or fresh, trained or frozen, and every tensor of the file as loaded
or ignored for a stated reason; the report says which. A fresh head depends on the seed and on the
number of labels alone, so that strategies that differ only in their start are paired.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.architecture import Architecture, architecture_to_settings, resolve_architecture
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import (
    ECGClassifier,
    build_empty,
    randomize_backbone,
    randomize_head,
)
from hpc_ecg.weights.heads import plan_head
from hpc_ecg.weights.init_report import build_init_report, facts_of
from hpc_ecg.weights.reading import Checkpoint, read_checkpoint
from hpc_ecg.weights.settings import InitConfig

FREEZE = ("auto", "none", "stem", "backbone")


@dataclass(frozen=True, kw_only=True)
class Initialized:
    model: ECGClassifier
    architecture: Architecture
    signal: SignalSpec | None
    """What the weights saw; None = random weights, which saw nothing."""
    report: dict[str, Any]
    """Plain data for init_report.json."""


def initialize(
    init: InitConfig,
    model_config: ModelConfig,
    num_labels: int,
    labels: list[str],
    freeze: str,
    seed: int,
    freeze_layers: int = 0,
) -> Initialized:
    """A model on the CPU, in training mode, weights in place and frozen as asked. ValueError: the
    file cannot be read or does not fit, or a setting contradicts it."""
    assert len(labels) == num_labels
    # 1. Decide everything before memory is taken.
    checkpoint = read_checkpoint(init.checkpoint) if init.checkpoint else None
    architecture = resolve_architecture(
        model_config, checkpoint.architecture if checkpoint else None
    )
    head = plan_head(init.head, checkpoint, labels, init.labels)
    frozen_part = decide_freeze(freeze, checkpoint is not None)
    signal, signal_assumed = _signal_of(init, checkpoint, architecture)
    # 2. Build, fill, freeze.
    model = build_empty(architecture, num_labels, model_config)
    loaded = fill(model, checkpoint, head.rows, seed)
    model.freeze(frozen_part, freeze_layers)
    # 3. Say what happened.
    report = {
        "checkpoint": facts_of(checkpoint),
        "architecture": architecture_to_settings(architecture),
        "seed": seed,
        "head": {"asked": init.head, **asdict(head), "labels": labels},
        "freeze": {"asked": freeze, "taken": frozen_part, "layers": freeze_layers},
        "signal": {"assumed": signal_assumed, "spec": signal and asdict(signal)},
        **build_init_report(model, checkpoint, loaded, head),
    }
    return Initialized(
        model=model,
        architecture=architecture,
        signal=signal,
        report=report,
    )


def load_model(
    path: str | Path,
    num_labels: int | None = None,
    seed: int = 0,
    model_config: ModelConfig | None = None,
) -> ECGClassifier:
    """The model of a file, in eval mode: a fine-tuned `.pt`, our safetensors or a run's `best/`.

    A pre-trained file (base_ssl.pt) has no head: say `num_labels`, and a fresh one is made from
    `seed`. `model_config`: its attention and pooling count here. ValueError: unreadable, refused,
    no head, or another number of labels.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.num_labels is None and num_labels is None:
        raise ValueError(
            f"{checkpoint.path}: a pre-trained file without a head; "
            "load_model(path, num_labels=1) makes a fresh one"
        )
    if num_labels and checkpoint.num_labels not in (None, num_labels):
        raise ValueError(
            f"{checkpoint.path}: its head has {checkpoint.num_labels} labels, not {num_labels}"
        )
    rows = checkpoint.num_labels or num_labels
    assert rows
    model = build_empty(checkpoint.architecture, rows, model_config)
    has_head = checkpoint.num_labels is not None
    fill(model, checkpoint, [row if has_head else None for row in range(rows)], seed)
    return model.eval()


def fill(
    model: ECGClassifier, checkpoint: Checkpoint | None, rows: list[int | None], seed: int
) -> dict[str, str]:
    """Give every parameter its values; returns our name -> file key for those that were loaded.
    `rows`: for each label the row of the file's head, or None for a fresh one."""
    tensors = checkpoint.ours() if checkpoint else {}
    if checkpoint is None:
        randomize_backbone(model.backbone, seed)
    if None in rows:
        randomize_head(model.head, seed)
    mine = [k for k, row in enumerate(rows) if row is not None]
    theirs = [row for row in rows if row is not None]
    taken = {
        name: parameter.detach().numpy()
        for name, parameter in model.named_parameters()
        if checkpoint and (mine or not name.startswith("head."))
    }

    def take(name: str) -> None:
        values, array = taken[name], tensors[name].array()
        if name.startswith("head."):
            values[mine] = array[theirs]
        else:
            values[...] = array
        tensors[name].block.file.drop()  # in memory once: here

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        list(pool.map(take, taken))
    return {name: checkpoint.names.ours[name] for name in taken} if checkpoint else {}


def decide_freeze(asked: str, weights_loaded: bool) -> str:
    """none, stem or backbone; `auto` freezes the stem of loaded weights, as the original does, and
    nothing of random ones (there it would stay random)."""
    if asked not in FREEZE:
        raise ValueError(f"train.freeze must be one of {', '.join(FREEZE)}, got {asked!r}")
    if asked == "auto":
        return "stem" if weights_loaded else "none"
    return asked


def _signal_of(
    init: InitConfig, checkpoint: Checkpoint | None, architecture: Architecture
) -> tuple[SignalSpec | None, bool]:
    if checkpoint is None:
        return None, False
    signal = checkpoint.signal or init.signal
    if init.signal not in (signal, SignalSpec()):
        raise ValueError(
            f"init.signal contradicts {checkpoint.path}, which states its own signal; leave it out"
        )
    if len(signal.leads) != architecture.in_d:
        raise ValueError(
            f"init.signal.leads has {len(signal.leads)} leads, "
            f"the weights of {checkpoint.path} take {architecture.in_d}"
        )
    return signal, checkpoint.signal is None
