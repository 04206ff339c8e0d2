"""One file of weights in, another out: in another format, with a fresh head, or the mean of several
runs. Each notes in the file what was done (`provenance`) and returns what to tell the user.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hpc_ecg
from hpc_ecg.atomic_io import sha256_of, write_atomically
from hpc_ecg.model.randomize import randomize_head
from hpc_ecg.weights import original
from hpc_ecg.weights.facts import Facts
from hpc_ecg.weights.formats import check_target, write_as
from hpc_ecg.weights.reading import Checkpoint, read_checkpoint


def convert(
    source: str | Path,
    target: Path,
    *,
    strip: bool = False,
    labels: list[str] | None = None,
    force: bool = False,
) -> list[str]:
    """Write the weights of `source` as `target`. `strip` leaves tensors, sizes, labels and signal.
    A `.pt` of the original as `.pt` is copied as it is, training state included.

    ValueError: a source that cannot be read, a target that exists (without `force`), labels that
    do not fit.
    """
    check_target(target, [source], force)
    checkpoint = read_checkpoint(source)
    if target.suffix == ".pt" and checkpoint.kind in original.LAYOUTS and not strip and not labels:
        write_atomically(target, lambda aside: shutil.copyfile(checkpoint.path, aside))
        people = sum(original.scores_of_people(checkpoint.content).values())
        holds = f", with {people} scores and labels of people inside; --strip leaves them out"
        return [f"written: {target}, a copy{holds if people else ''}"]
    facts = _facts(checkpoint, labels or checkpoint.labels, source, action="convert")
    tensors = {name: _taken(checkpoint, name) for name in checkpoint.names.all}
    return write_as(target, tensors, facts, checkpoint, strip=strip)


def reset_head(
    source: str | Path,
    target: Path,
    *,
    seed: int,
    labels: list[str] | None = None,
    num_labels: int | None = None,
    force: bool = False,
) -> list[str]:
    """The same weights under a fresh head: the one that `init.head=new` makes with this seed.
    A pre-trained file gets its first one, and needs `labels` or `num_labels`."""
    check_target(target, [source], force)
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be between 0 and 2^63 - 1, got {seed}")
    if num_labels is not None and not 1 <= num_labels <= 2**20:
        raise ValueError(f"--num-labels must be between 1 and {2**20}, got {num_labels}")
    checkpoint = read_checkpoint(source)
    rows = len(labels) if labels else num_labels or checkpoint.num_labels
    if not rows:
        raise ValueError(f"{checkpoint.path} has no head; say --labels or --num-labels of one")
    if labels is None and rows == checkpoint.num_labels:
        labels = checkpoint.labels
    head = nn.Linear(checkpoint.architecture.encoder_embed_dim, rows)
    randomize_head(head, seed)
    backbone = [name for name in checkpoint.names.ours if name.startswith("backbone.")]
    tensors = {name: _taken(checkpoint, name) for name in backbone}
    tensors |= {f"head.{name}": tensor.detach() for name, tensor in head.named_parameters()}
    facts = _facts(checkpoint, labels, source, action="reset-head", seed=seed)
    return write_as(target, tensors, facts, checkpoint, new_head=True)


def soup(sources: Sequence[str | Path], target: Path, *, force: bool = False) -> list[str]:
    """The mean of the weights of several files or run folders. ValueError: fewer than two, or they
    differ in sizes, labels, signal or tensors."""
    if len(sources) < 2:
        raise ValueError(f"a soup needs at least two files or run folders, got {len(sources)}")
    check_target(target, sources, force)
    checkpoints = [read_checkpoint(source) for source in sources]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        _check_alike(first, other)
    parts: list[dict[str, Any]] = [
        {**_named(source, checkpoint), "provenance": checkpoint.provenance}
        for source, checkpoint in zip(sources, checkpoints, strict=True)
    ]
    if len({part["sha256"] for part in parts}) < len(parts):
        raise ValueError("a soup of one file twice: each file must be another one")
    note = {"action": "soup", "sources": parts, "version": hpc_ecg.__version__}
    facts = Facts(
        architecture=first.architecture,
        labels=first.labels,
        signal=first.signal,
        provenance=[note],
    )
    tensors = {name: _mean(name, checkpoints) for name in first.names.all}
    fitted = any(Path(c.path).with_name("operating_point.json").exists() for c in checkpoints)
    lost = ["left out: thresholds of the runs; fit them anew for the mean"] if fitted else []
    return [*lost, *write_as(target, tensors, facts)]


def _check_alike(first: Checkpoint, other: Checkpoint) -> None:
    sides = {
        "sizes": (first.architecture, other.architecture),
        "number of labels": (first.num_labels, other.num_labels),
        "labels": (first.labels, other.labels),
        "signal": (first.signal, other.signal),
        "the file that they started from": (_start_of(first), _start_of(other)),
        "names of tensors": (first.names.all.keys(), other.names.all.keys()),
    }
    for what, (ours, theirs) in sides.items():
        if ours != theirs:
            shown = f": {ours} and {theirs}" if "label" in what else ""
            raise ValueError(
                f"{first.path} and {other.path} cannot be averaged, they differ in {what}"
                f"{shown[:200]}"
            )


def _start_of(checkpoint: Checkpoint) -> Any:
    """SHA-256 of what a run of ours was fine-tuned from; None where nothing says so."""
    runs = [step for step in checkpoint.provenance if step.get("action") == "finetune"]
    return runs[-1].get("sha256") if runs else None


def _mean(name: str, checkpoints: Sequence[Checkpoint]) -> Tensor:
    """Summed in float64, in the type of the first: one tensor of one file at a time."""
    stored = [c.tensors[c.names.all[name]] for c in checkpoints]
    total = np.zeros(stored[0].shape)
    for tensor in stored:
        total += tensor.array()
        tensor.block.file.drop()
    return torch.from_numpy(total / len(stored)).to(getattr(torch, stored[0].dtype))


def _taken(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor by our name, in memory once: here."""
    stored = checkpoint.tensors[checkpoint.names.all[name]]
    tensor = stored.to_torch()
    stored.block.file.drop()
    return tensor


def _facts(
    checkpoint: Checkpoint, labels: list[str] | None, source: str | Path, **done: Any
) -> Facts:
    """What is known of the file, with a note of what is done to it."""
    note = {**_named(source, checkpoint), **done, "version": hpc_ecg.__version__}
    return Facts(
        architecture=checkpoint.architecture,
        labels=labels,
        signal=checkpoint.signal,
        provenance=[*checkpoint.provenance, note],
    )


def _named(source: str | Path, checkpoint: Checkpoint) -> dict[str, str]:
    """For the provenance; folders of this machine stay out of it."""
    name = Path(source).name if Path(source).is_absolute() else str(source)
    return {"source": name, "sha256": sha256_of(checkpoint.path)}
