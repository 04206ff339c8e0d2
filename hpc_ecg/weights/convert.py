"""One file of weights in, another out: in another format, with a fresh head, or the mean of several
runs. Each notes in the file what was done (`provenance`) and returns what to tell the user.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hpc_ecg
from hpc_ecg.model.transformer import randomize_head
from hpc_ecg.weights import original
from hpc_ecg.weights.drafts import Draft, check_target, name_source, read_draft, write_draft
from hpc_ecg.weights.export import Facts
from hpc_ecg.weights.mapping import all_names
from hpc_ecg.weights.reading import Checkpoint, read_checkpoint
from hpc_ecg.writing import write_whole


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
    draft = read_draft(source, "convert")
    if target.suffix == ".pt" and draft.keeps_cfg and not strip and not labels:
        return _copy(draft, target)
    if labels:
        draft = replace(draft, facts=replace(draft.facts, labels=labels))
    return write_draft(draft, target, strip=strip)


def _copy(draft: Draft, target: Path) -> list[str]:
    """The file is in that layout already: nothing is to convert, and nothing is lost."""
    assert draft.source
    path = draft.source.path

    def write(aside: Path) -> None:
        shutil.copyfile(path, aside)

    write_whole(target, write)
    people = sum(original.scores_of_people(draft.content).values())
    holds = f", with {people} scores and labels of people inside; --strip leaves them out"
    return [f"written: {target}, a copy{holds if people else ''}"]


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
    draft = read_draft(source, "reset-head", seed=seed)
    assert draft.source
    rows = len(labels) if labels else num_labels or draft.source.num_labels
    if not rows:
        raise ValueError(f"{draft.source.path} has no head; say --labels or --num-labels of one")
    if labels is None and rows == draft.source.num_labels:
        labels = draft.source.labels
    head = nn.Linear(draft.facts.architecture.encoder_embed_dim, rows)
    randomize_head(head, seed)
    tensors = {name: t for name, t in draft.tensors.items() if name.startswith("backbone.")}
    tensors |= {f"head.{name}": tensor.detach() for name, tensor in head.named_parameters()}
    facts = replace(draft.facts, labels=labels)
    return write_draft(replace(draft, tensors=tensors, facts=facts), target)


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
        {**name_source(source, checkpoint), "provenance": checkpoint.provenance}
        for source, checkpoint in zip(sources, checkpoints, strict=True)
    ]
    note = {"action": "soup", "sources": parts, "version": hpc_ecg.__version__}
    facts = Facts(
        architecture=first.architecture,
        labels=first.labels,
        signal=first.signal,
        provenance=[note],
    )
    tensors = {name: _mean(name, checkpoints) for name in all_names(first.names)}
    return write_draft(Draft(tensors=tensors, facts=facts), target)


def _check_alike(first: Checkpoint, other: Checkpoint) -> None:
    sides = {
        "sizes": (first.architecture, other.architecture),
        "number of labels": (first.num_labels, other.num_labels),
        "labels": (first.labels, other.labels),
        "signal": (first.signal, other.signal),
        "names of tensors": (all_names(first.names).keys(), all_names(other.names).keys()),
    }
    for what, (ours, theirs) in sides.items():
        if ours != theirs:
            shown = f": {ours} and {theirs}" if "label" in what else ""
            raise ValueError(
                f"{first.path} and {other.path} cannot be averaged, they differ in {what}"
                f"{shown[:200]}"
            )


def _mean(name: str, checkpoints: Sequence[Checkpoint]) -> Tensor:
    """Summed in float64, in the type of the first: one tensor of one file at a time."""
    stored = [c.tensors[all_names(c.names)[name]] for c in checkpoints]
    total = np.zeros(stored[0].shape)
    for tensor in stored:
        total += tensor.array()
        tensor.block.file.drop()
    return torch.from_numpy(total / len(stored)).to(getattr(torch, stored[0].dtype))
