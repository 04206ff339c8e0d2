"""From a checkpoint, or random weights, to a model ready to train.

Every parameter ends as loaded or fresh, trained or frozen, and every tensor of the file as loaded
or ignored for a reason; the report lists them all. A fresh head depends only on the seed and the
number of labels, so that strategies that differ only in their start are paired.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.architecture import Architecture, architecture_to_settings, resolve_architecture
from hpc_ecg.model.layers import randomize_backbone, randomize_head
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import ECGClassifier, build_empty
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights.heads import HeadPlan, plan_head
from hpc_ecg.weights.reading import Checkpoint, read_checkpoint
from hpc_ecg.weights.settings import ANY, RANDOM, InitConfig, decide_freeze


@dataclass(frozen=True, kw_only=True)
class Initialized:
    model: ECGClassifier
    architecture: Architecture
    signal: SignalSpec | None
    """The signals that the weights were trained on; None = random weights."""
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
    """A model on the CPU in training mode, with its weights in place and frozen as asked.
    ValueError: the file cannot be read or does not fit, or a setting contradicts it."""
    assert len(labels) == num_labels
    # 1. Decide everything before allocating memory.
    checkpoint, head = open_start(init, labels)
    architecture = resolve_architecture(
        model_config, checkpoint.architecture if checkpoint else None
    )
    frozen_part = decide_freeze(freeze, checkpoint is not None)
    signal, signal_assumed = _choose_signal(init, checkpoint, architecture)
    # 2. Build, fill, freeze.
    model = build_empty(architecture, num_labels, model_config)
    loaded = _fill_parameters(model, checkpoint, head.rows, seed)
    model.freeze(frozen_part, freeze_layers)
    # 3. Report what happened.
    report = {
        "checkpoint": _describe_checkpoint(checkpoint),
        "architecture": architecture_to_settings(architecture),
        "seed": seed,
        "head": {"asked": init.head, **asdict(head), "labels": labels},
        "freeze": {"asked": freeze, "taken": frozen_part, "layers": freeze_layers},
        "signal": {"assumed": signal_assumed, "spec": signal and asdict(signal)},
        **_account_for(model, checkpoint, loaded, head),
    }
    return Initialized(model=model, architecture=architecture, signal=signal, report=report)


def open_start(init: InitConfig, labels: Sequence[str]) -> tuple[Checkpoint | None, HeadPlan]:
    """The file to start from, None = random weights, and the plan for the head. ValueError: none is
    given, it cannot be read, or it is not of the kind that the settings ask for."""
    checkpoint = read_checkpoint(init.path) if init.path else None
    if checkpoint:
        checkpoint.check_expected(init.expects)
    elif init.expects != ANY:
        raise ValueError(f"init.expects={init.expects}, but init.checkpoint={RANDOM}: give a file")
    return checkpoint, plan_head(init.head, checkpoint, labels, init.labels)


def load_model(
    path: str | Path,
    num_labels: int | None = None,
    seed: int = 0,
    model_config: ModelConfig | None = None,
) -> ECGClassifier:
    """Load a model in eval mode from a fine-tuned `.pt`, our safetensors or a run's `best/`.

    A pre-trained file (base_ssl.pt) has no head: give `num_labels` to get a fresh one, made from
    `seed`. Of `model_config` only attention and pooling matter in eval mode. ValueError:
    unreadable, refused, no head, or another number of labels.
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
    file_rows = list(range(rows)) if checkpoint.num_labels else [None] * rows
    _fill_parameters(model, checkpoint, file_rows, seed)
    return model.eval()


def _fill_parameters(
    model: ECGClassifier, checkpoint: Checkpoint | None, rows: Sequence[int | None], seed: int
) -> dict[str, str]:
    """Set every parameter; returns our name -> the file's key of those that were loaded.

    `rows`: per label the row of the file's head, or None for a fresh one made from `seed`.
    """
    if None in rows:
        randomize_head(model.head, seed)
    if checkpoint is None:
        randomize_backbone(model.backbone, seed)
        return {}
    tensors = checkpoint.parameters()
    to_rows = [k for k, row in enumerate(rows) if row is not None]
    from_rows = [row for row in rows if row is not None]
    parameters = {
        name: parameter.detach().numpy()
        for name, parameter in model.named_parameters()
        if to_rows or not name.startswith("head.")
    }

    def load(name: str) -> None:
        values = tensors[name].array()
        if name.startswith("head."):
            parameters[name][to_rows] = values[from_rows]
        else:
            parameters[name][...] = values
        tensors[name].drop_pages()

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        list(pool.map(load, parameters))
    return {name: checkpoint.names[name] for name in parameters}


def _choose_signal(
    init: InitConfig, checkpoint: Checkpoint | None, architecture: Architecture
) -> tuple[SignalSpec | None, bool]:
    """The signals that the weights were trained on, and whether this is assumed."""
    if checkpoint is None:
        return None, False
    signal = checkpoint.signal or init.signal
    if init.signal not in (signal, SignalSpec()):
        raise ValueError(
            f"init.signal contradicts {checkpoint.path}, which states its own signal; "
            "leave init.signal unset"
        )
    if len(signal.leads) != architecture.in_d:
        raise ValueError(
            f"init.signal.leads has {len(signal.leads)} leads, "
            f"the weights of {checkpoint.path} take {architecture.in_d}"
        )
    return signal, checkpoint.signal is None


def _describe_checkpoint(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    return {
        "path": checkpoint.path,
        "sha256": sha256_of(checkpoint.path),
        "kind": checkpoint.kind,
        "num_labels": checkpoint.num_labels,
        "labels": checkpoint.labels,
        "num_tensors": len(checkpoint.tensors),
        "provenance": checkpoint.provenance,
    }


def _account_for(
    model: ECGClassifier, checkpoint: Checkpoint | None, loaded: dict[str, str], head: HeadPlan
) -> dict[str, Any]:
    """What became of every parameter of the model and tensor of the file, and the counts. `loaded`:
    our parameter name -> the file's key."""
    parameters = {
        name: {
            "origin": _origin_of(name, loaded, head),
            "file_key": loaded.get(name),
            "trained": parameter.requires_grad,
            "shape": list(parameter.shape),
        }
        for name, parameter in model.named_parameters()
    }
    ignored: dict[str, str] = {}
    if checkpoint:
        ignored = checkpoint.ignored()
        unused = [name for name in checkpoint.parameters() if name not in loaded]
        ignored |= {checkpoint.names[name]: "the head is new" for name in unused}
    trained = [p for p in model.parameters() if p.requires_grad]
    counts = {
        "tensors_loaded": len(loaded),
        "tensors_fresh": len(parameters) - len(loaded),
        "tensors_ignored": len(ignored),
        "tensors_frozen": len(parameters) - len(trained),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in trained),
    }
    return {"counts": counts, "parameters": parameters, "ignored": ignored}


def _origin_of(name: str, loaded: dict[str, str], head: HeadPlan) -> str:
    if name not in loaded:
        return "fresh"
    in_part = name.startswith("head.") and head.taken == "by_label"
    return "loaded in part" if in_part else "loaded"
