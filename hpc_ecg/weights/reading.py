"""A path -> OpenFile, any harmless file of weights -> Checkpoint, one that a run can start from.

Takes the original's `.pt` (pre-trained `base_ssl`, fine-tuned `classifier`), our safetensors, and
a folder that holds `model.safetensors` (a run's `best/`). What is open is what was written, each
tensor on bytes of its own. A Checkpoint has been checked besides: its sizes are stated, its names
and shapes fit them exactly, its values are finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.model.architecture import Architecture, architecture_from_settings, show_value
from hpc_ecg.weights.archive import read_archive
from hpc_ecg.weights.facts import Facts, facts_of_texts, from_text
from hpc_ecg.weights.mapping import NameMap, check_fit, expected_shapes, kind_of_keys, map_names
from hpc_ecg.weights.safetensors_file import read_safetensors
from hpc_ecg.weights.stored import FLOATS, StoredTensor, check_bytes, refusing

OUR_FILE = "model.safetensors"
OUR_FORMAT = "hpc_ecg/1"

# What this model computes, against what else a file of this family could have been trained with.
FIXED = {
    "layer_norm_first": (False, "its layers normalize first, this model normalizes last"),
    "extractor_mode": ("default", "its conv stem normalizes every layer, this model the first"),
    "conv_bias": (False, "its conv stem has biases"),
    "normalize": (False, "it was trained on ECGs normalized per lead, this package feeds mV"),
    "filter": (False, "it was trained on ECGs filtered by the original's code"),
}


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    path: str
    """The file that was read (inside the folder, if a folder was given)."""
    kind: str
    """base_ssl | classifier | hpc_ecg | unknown."""
    content: Mapping[str, Any]
    """All of a `.pt`, the metadata of a safetensors file."""
    tensors: dict[str, StoredTensor]
    """Under the file's keys, where they lie in it."""
    names: NameMap
    """Our parameter names -> the file's keys, and the keys left out on purpose."""
    not_finite: list[str]
    """Keys of tensors that hold NaN, or what float32 cannot hold."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(OpenFile, Facts):
    num_labels: int | None
    """Rows of the head; None = the file has no head."""

    def ours(self) -> dict[str, StoredTensor]:
        """The tensors that the model takes, under our parameter names."""
        return {name: self.tensors[key] for name, key in self.names.ours.items()}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint. Nothing in the file is ever executed. ValueError, one line:
    no such file, damaged, refused, or weights of another model."""
    return check(open_file(path))


def open_file(path: str | Path) -> OpenFile:
    """Any harmless file of weights. ValueError, one line: no such file, damaged, refused, or
    without tensors."""
    with refusing(Path(path)):
        file = file_of(Path(path))
    with refusing(file):
        is_ours = file.suffix == ".safetensors"
        content: Mapping[str, Any]
        content, held = read_safetensors(file) if is_ours else _archive_of(file)
        tensors = {str(key): t for key, t in held.items() if isinstance(t, StoredTensor)}
        if not tensors:
            raise ValueError(
                "holds no tensors under `model` or at its top; expected the original's layout or "
                "our safetensors"
            )
        not_finite = check_bytes(tensors)
        kind = "hpc_ecg" if is_ours and content.get("format") == OUR_FORMAT else _kind_of(tensors)
        names = map_names(tensors, kind)
    return OpenFile(
        path=str(file),
        kind=kind,
        content=content,
        tensors=tensors,
        names=names,
        not_finite=not_finite,
    )


def file_of(path: Path) -> Path:
    folders = [path, path / "best"] if path.is_dir() else []
    file = next((f / OUR_FILE for f in folders if (f / OUR_FILE).is_file()), path)
    if file.is_dir():
        raise ValueError(f"{path}: a folder without {OUR_FILE}; give a file or a run's folder")
    if not file.is_file():
        raise ValueError(
            f"{path}: no such file; a checkpoint is base_ssl.pt, a fine-tuned .pt, "
            f"{OUR_FILE} or a run's best/"
        )
    return file


def _archive_of(file: Path) -> tuple[dict[str, Any], dict[Any, Any]]:
    """All of a `.pt`, and the part of it that its tensors are looked for in."""
    content = read_archive(file)
    model = content.get("model")
    return content, model if isinstance(model, dict) else content


def _kind_of(tensors: Mapping[str, StoredTensor]) -> str:
    try:
        return kind_of_keys(tensors, "")
    except ValueError:
        is_ours = any(key.startswith("backbone.") for key in tensors)
        return "hpc_ecg" if is_ours else "unknown"


def check(file: OpenFile) -> Checkpoint:
    """ValueError says why no run can start from the file."""
    with refusing(Path(file.path)):
        is_ours = file.path.endswith(".safetensors")
        facts = _facts_of_ours(file.content) if is_ours else _facts_of_original(file.content)
        for key, tensor in file.tensors.items():
            if tensor.dtype not in FLOATS:
                raise ValueError(f"{key} must be a float tensor, got {tensor.dtype}")
            if not tensor.numel:
                raise ValueError(f"{key} holds no values (shape {tensor.shape})")
        num_labels = _check_shapes(file, facts.architecture)
        if facts.labels is not None and len(facts.labels) != num_labels:
            raise ValueError(f"{len(facts.labels)} label names for a head of {num_labels} labels")
        for key in file.not_finite:
            raise ValueError(
                f"{key} holds NaN or infinite values (in float32); the run that wrote it diverged"
            )
    return Checkpoint(**vars(file), **vars(facts), num_labels=num_labels)


def _facts_of_original(content: Mapping[str, Any]) -> Facts:
    """Sizes as the file's cfg states them (the number of heads leaves no trace in the tensors), and
    what this package wrote into it; a foreign file says no more."""
    tensors, cfg = content.get("model"), content.get("cfg")
    settings = cfg.get("model") if isinstance(cfg, dict) else None
    if not isinstance(tensors, dict) or not isinstance(settings, dict):
        raise ValueError(
            "expected the original's layout with `model` (tensors) and `cfg.model` "
            f"(sizes), got {', '.join(key for key in content if isinstance(key, str))[:120]}"
        )
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise ValueError(f"`model` has a key that is {type(key).__name__}, not a name; refused")
        if not isinstance(tensor, StoredTensor):
            raise ValueError(f"{key} must be a tensor, got {type(tensor).__name__}")
    kind_of_keys(tensors, "")
    for name, (needed, reason) in FIXED.items():
        value = settings.get(name, needed)
        if value != needed:
            raise ValueError(
                f"cfg.model.{name} must be {needed!r}, got {show_value(value)}: {reason}"
            )
    state = content.get("extra_state")
    stated = state.get("hpc_ecg") if isinstance(state, dict) else None
    return facts_of_texts(
        architecture_from_settings(settings, "cfg.model."),
        stated if isinstance(stated, dict) else {},
    )


def _facts_of_ours(metadata: Mapping[str, str]) -> Facts:
    if metadata.get("format") != OUR_FORMAT:
        raise ValueError(
            f"not written by hpc_ecg (its metadata says format="
            f"{metadata.get('format')!r}, expected {OUR_FORMAT!r})"
        )
    sizes = from_text(metadata, "architecture")
    return facts_of_texts(architecture_from_settings(sizes, "architecture."), metadata)


def _check_shapes(file: OpenFile, architecture: Architecture) -> int | None:
    """ValueError unless names and shapes are those of the model; returns the number of labels."""
    ours = {name: file.tensors[key] for name, key in file.names.ours.items()}
    layers = [name.split(".")[3] for name in ours if name.startswith("backbone.encoder.layers.")]
    found = len(set(layers))
    if found != architecture.encoder_layers:
        raise ValueError(
            f"encoder_layers={architecture.encoder_layers}, but the weights do not fit: "
            f"they have {found} layers"
        )
    num_labels = None
    # base_ssl never has a head; one of our files may do without (made of a base_ssl)
    if file.kind == "classifier" or any(name.startswith("head.") for name in ours):
        head = ours.get("head.weight")
        num_labels = max(head.shape[0], 1) if head is not None and head.shape else 1
    check_fit(ours, expected_shapes(architecture, num_labels), file.path)
    return num_labels
