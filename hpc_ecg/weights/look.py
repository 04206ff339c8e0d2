"""Open any harmless file of weights, also one that no run can start from, and say why not.

No torch here: a tensor stays in its file until it is asked for. Hostile and damaged files are
refused, as everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.weights.archive import read_archive
from hpc_ecg.weights.mapping import all_names, kind_of_keys, map_names
from hpc_ecg.weights.reading import Checkpoint, file_of, read_checkpoint, read_safetensors
from hpc_ecg.weights.stored import CHANGED, StoredTensor, check_apart

CHUNK = 1 << 20  # values that are looked at in one go


@dataclass(frozen=True, kw_only=True)
class Look:
    path: Path
    kind: str
    """base_ssl | classifier | hpc_ecg | unknown."""
    content: Mapping[str, Any]
    """All of a `.pt`, the metadata of a safetensors file."""
    tensors: dict[str, StoredTensor]
    """Under the file's keys."""
    names: dict[str, str]
    """Our name (pretraining.<name> for what a model leaves out) -> the file's key."""
    checkpoint: Checkpoint | None
    problem: str | None
    """Why no run can start from it; None = one can."""


def look(path: str | Path) -> Look:
    """Open a file. ValueError: it is hostile or damaged, or holds no tensors."""
    file = file_of(Path(path))
    is_ours = file.suffix == ".safetensors"
    content: Mapping[str, Any]
    if is_ours:
        content, held = read_safetensors(file)
    else:
        content = read_archive(file)
        model = content.get("model")
        held = model if isinstance(model, dict) else dict(content)
    tensors = {str(key): t for key, t in held.items() if isinstance(t, StoredTensor)}
    if not tensors:
        raise ValueError(f"{file}: holds no tensors, neither under `model` nor at its top")
    try:
        checkpoint, problem = read_checkpoint(file), None
    except ValueError as error:
        checkpoint, problem = None, str(error).removeprefix(f"{file}: ")
        _check_sound(tensors, file)
    kind = checkpoint.kind if checkpoint else _kind_of(tensors, file)
    names = all_names(map_names(tensors, kind))
    return Look(
        path=file,
        kind=kind,
        content=content,
        tensors=tensors,
        names=names,
        checkpoint=checkpoint,
        problem=problem,
    )


def _kind_of(tensors: Mapping[str, StoredTensor], file: Path) -> str:
    if any(key.startswith("backbone.") for key in tensors):
        return "hpc_ecg"
    try:
        return kind_of_keys(tensors, str(file))
    except ValueError:
        return "unknown"


def _check_sound(tensors: dict[str, StoredTensor], file: Path) -> None:
    """What `read_checkpoint` would have refused had it come so far."""
    for name, tensor in tensors.items():
        if tensor.overlaps_itself():
            raise ValueError(f"{file}: {name} counts places of the file twice; refused")
        if not tensor.block.is_intact():
            raise ValueError(f"{file}: {name} is {CHANGED}")
        tensor.block.file.drop()
    check_apart(tensors, str(file))
