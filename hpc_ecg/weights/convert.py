"""Turn files of weights into another: change the format, reset the head, or average several runs.

The ending of the target decides: `.pt` the original's layout, `.safetensors` ours, `.onnx` ONNX.
Tensors keep their bits and their type (ONNX: float32). A `.pt` made from a `.pt` keeps its cfg; any
other `.pt` gets the neutral one of `original_layout.json`. Each function records what it did in the
file's provenance, and returns lines for the user about what was written and what was left out.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpc_ecg.atomic_io import check_may_write, write_atomically
from hpc_ecg.model.layers import randomize_head
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.version import __version__
from hpc_ecg.weights import original
from hpc_ecg.weights.export import write_weights
from hpc_ecg.weights.mapping import LAYOUTS, PRETRAINING
from hpc_ecg.weights.metadata import Metadata
from hpc_ecg.weights.onnx_export import check_installed
from hpc_ecg.weights.reading import Checkpoint, read_checkpoint, resolve_file

ENDINGS = (".pt", ".safetensors", ".onnx")
THRESHOLDS = "operating_point.json"


def convert(
    source: str | Path,
    target: Path,
    *,
    strip: bool = False,
    labels: list[str] | None = None,
    force: bool = False,
) -> list[str]:
    """Write the weights of `source` as `target`. `strip` keeps only tensors, sizes, labels and
    signal. A `.pt` of the original that stays a `.pt` is copied, training state included.

    ValueError: a source that cannot be read, a target that exists (without `force`), labels that
    do not fit.
    """
    _check_target(target, [source], force)
    checkpoint = read_checkpoint(source)
    if target.suffix == ".pt" and checkpoint.kind in LAYOUTS and not strip and not labels:
        write_atomically(target, lambda partial: shutil.copyfile(checkpoint.path, partial))
        num_values = sum(original.patient_values(checkpoint.content).values())
        warning = f", with {num_values} scores and labels of people inside; --strip leaves them out"
        return [f"written: {target}, a copy{warning if num_values else ''}"]
    metadata = _metadata(checkpoint, labels or checkpoint.labels, source, action="convert")
    metadata = replace(metadata, provenance=[]) if strip else metadata
    tensors = {name: _load(checkpoint, name) for name in checkpoint.names}
    lines = write_weights(target, tensors, metadata, checkpoint, strip)
    left_out = list(_left_out(checkpoint, tensors, target.suffix, strip))
    if (thresholds := Path(checkpoint.path).with_name(THRESHOLDS)).exists():
        left_out.append(f"thresholds and calibration; take {thresholds} along")
    return _report(target, lines, left_out)


def reset_head(
    source: str | Path,
    target: Path,
    *,
    seed: int,
    labels: list[str] | None = None,
    num_labels: int | None = None,
    force: bool = False,
) -> list[str]:
    """Write the same weights under a fresh head: the one that `init.head=new` makes from this seed.
    A pre-trained file gets its first head, and needs `labels` or `num_labels`."""
    _check_target(target, [source], force)
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be between 0 and 2^63 - 1, got {seed}")
    if num_labels is not None and not 1 <= num_labels <= 2**20:
        raise ValueError(f"--num-labels must be between 1 and {2**20}, got {num_labels}")
    checkpoint = read_checkpoint(source)
    rows = len(labels) if labels else num_labels or checkpoint.num_labels
    if not rows:
        raise ValueError(f"{checkpoint.path} has no head; give --labels or --num-labels")
    if labels is None and rows == checkpoint.num_labels:
        labels = checkpoint.labels
    head = nn.Linear(checkpoint.architecture.encoder_embed_dim, rows)
    randomize_head(head, seed)
    backbone = [name for name in checkpoint.names if name.startswith("backbone.")]
    tensors = {name: _load(checkpoint, name) for name in backbone}
    tensors |= {f"head.{name}": tensor.detach() for name, tensor in head.named_parameters()}
    metadata = _metadata(checkpoint, labels, source, action="reset-head", seed=seed)
    lines = write_weights(target, tensors, metadata, checkpoint)
    return _report(target, lines, _left_out(checkpoint, tensors, target.suffix))


def soup(sources: Sequence[str | Path], target: Path, *, force: bool = False) -> list[str]:
    """Write the mean of the weights of several files or run folders. ValueError: fewer than two, or
    they differ in sizes, labels, signal or tensors."""
    if len(sources) < 2:
        raise ValueError(f"a soup needs at least two files or run folders, got {len(sources)}")
    _check_target(target, sources, force)
    checkpoints = [read_checkpoint(source) for source in sources]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        _check_alike(first, other)
    parts: list[dict[str, Any]] = [
        {**_identify(source, checkpoint), "provenance": checkpoint.provenance}
        for source, checkpoint in zip(sources, checkpoints, strict=True)
    ]
    if len({part["sha256"] for part in parts}) < len(parts):
        raise ValueError("the same file is given twice; a soup needs different files")
    step = {"action": "soup", "sources": parts, "version": __version__}
    metadata = Metadata(
        architecture=first.architecture, labels=first.labels, signal=first.signal, provenance=[step]
    )
    tensors = {name: _mean(name, checkpoints) for name in first.names}
    lines = write_weights(target, tensors, metadata)
    if any(Path(c.path).with_name(THRESHOLDS).exists() for c in checkpoints):
        lines.insert(0, "left out: thresholds of the runs; fit them anew for the mean")
    return _report(target, lines)


def _check_target(target: Path, sources: Sequence[str | Path], force: bool) -> None:
    """Raise before any work: an unknown ending, or a file that must not be overwritten."""
    if target.suffix not in ENDINGS:
        raise ValueError(f"{target}: its ending must be one of {', '.join(ENDINGS)}")
    if target.suffix == ".onnx":
        check_installed()
    for source in sources:
        if str(source).endswith(".onnx"):
            raise ValueError(
                f"{source}: an ONNX file can be written, not read: its weights are merged"
            )
        if target.exists() and target.samefile(resolve_file(Path(source))):
            raise ValueError(f"{target} is also the source; choose another name")
    check_may_write(target, force, "OUT")


def _check_alike(first: Checkpoint, other: Checkpoint) -> None:
    pairs = {
        "sizes": (first.architecture, other.architecture),
        "number of labels": (first.num_labels, other.num_labels),
        "labels": (first.labels, other.labels),
        "signal": (first.signal, other.signal),
        "the file that they started from": (_start_of(first), _start_of(other)),
        "names of tensors": (first.names.keys(), other.names.keys()),
    }
    for what, (a, b) in pairs.items():
        if a != b:
            values = f": {a} and {b}" if "label" in what else ""
            raise ValueError(
                f"{first.path} and {other.path} cannot be averaged, they differ in {what}"
                f"{values[:200]}"
            )


def _start_of(checkpoint: Checkpoint) -> Any:
    """SHA-256 of the file that our run was fine-tuned from; None where it is not stated."""
    runs = [step for step in checkpoint.provenance if step.get("action") == "finetune"]
    return runs[-1].get("sha256") if runs else None


def _mean(name: str, checkpoints: Sequence[Checkpoint]) -> Tensor:
    """The mean of one tensor, summed in float64, in the type of the first file's."""
    stored = [c.tensors[c.names[name]] for c in checkpoints]
    total = np.zeros(stored[0].shape)
    for tensor in stored:
        total += tensor.array()
        tensor.drop_pages()
    return torch.from_numpy(total / len(stored)).to(getattr(torch, stored[0].dtype))


def _load(checkpoint: Checkpoint, name: str) -> Tensor:
    stored = checkpoint.tensors[checkpoint.names[name]]
    tensor = stored.to_torch()
    stored.drop_pages()
    return tensor


def _metadata(
    checkpoint: Checkpoint, labels: list[str] | None, source: str | Path, **step: Any
) -> Metadata:
    """The metadata of a file, with one more step of provenance."""
    step = {**_identify(source, checkpoint), **step, "version": __version__}
    return Metadata(
        architecture=checkpoint.architecture,
        labels=labels,
        signal=checkpoint.signal,
        provenance=[*checkpoint.provenance, step],
    )


def _identify(source: str | Path, checkpoint: Checkpoint) -> dict[str, str]:
    """The file, for the provenance; absolute folders are private and left out."""
    name = Path(source).name if Path(source).is_absolute() else str(source)
    return {"source": name, "sha256": sha256_of(checkpoint.path)}


def _left_out(
    source: Checkpoint, tensors: Mapping[str, Tensor], ending: str, strip: bool = False
) -> Iterator[str]:
    """What `source` holds and the written file does not."""
    content = {} if source.is_safetensors else source.content
    if original.OPTIMIZER in content:
        count = original.count_tensors(content[original.OPTIMIZER])
        yield f"the optimizer's state ({count} tensors)"
    if counts := original.patient_values(content):
        yield f"{sum(counts.values())} scores and labels of people (in {next(iter(counts))} …)"
    state = content.get("extra_state")
    if isinstance(state, dict) and state.get("metrics"):
        yield "meters, counters and history of the training (extra_state, optimizer_history)"
    known = {original.OPTIMIZER, *original.build_content("classifier", {}, {})}
    if others := sorted(str(key)[:40] for key in content.keys() - known):
        yield f"other parts of the file ({', '.join(others)[:120]})"
    keeps_cfg = ending == ".pt" and source.kind == original.layout_of(tensors)
    if content and not keeps_cfg:
        yield "the settings of the training (cfg); the sizes are kept"
    elif content and strip and (paths := original.machine_paths(content["cfg"])):
        yield f"{len(paths)} paths of the training's machine ({', '.join(paths)[:120]})"
    keeps_pretraining = ending != ".onnx" and PRETRAINING.keys() & tensors.keys()
    if source.ignored() and not keeps_pretraining:
        yield f"{len(source.ignored())} tensors that only pre-training uses"
    if ending == ".onnx" and any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        yield "the type of the tensors; ONNX has float32"
    if strip and source.provenance:
        yield "the provenance"


def _report(target: Path, lines: list[str], left_out: Iterable[str] = ()) -> list[str]:
    size = f"{target.stat().st_size:,} bytes, SHA-256 {sha256_of(target)}"
    return [*lines, *(f"left out: {item}" for item in left_out), f"written: {target} ({size})"]
