"""A path -> Checkpoint: tensors under the file's keys, and all that is known about them.

Takes the original's `.pt` (pre-trained `base_ssl`, fine-tuned `classifier`), our safetensors, and
a folder that holds `model.safetensors` (a run's `best/`). A Checkpoint has been checked: its sizes
are stated, its names and shapes fit them exactly, its values are finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.ecg.signal import SignalSpec, spec_from_dict
from hpc_ecg.model.architecture import Architecture, architecture_from_settings, show_value
from hpc_ecg.weights.archive import read_archive
from hpc_ecg.weights.mapping import NameMap, check_fit, expected_shapes, kind_of_keys, map_names
from hpc_ecg.weights.safetensors_file import from_json, read_safetensors
from hpc_ecg.weights.stored import (
    StoredTensor,
    check_apart,
    check_values,
    check_weight,
    refusing,
)

OUR_FILE = "model.safetensors"
OUR_FORMAT = "hpc_ecg/1"
FACTS: dict[str, tuple[Any, type]] = {
    "architecture": (dict, str),
    "labels": (list, str),
    "signal": (dict, str),
    "provenance": (list, dict),
}

# What this model computes, against what else a file of this family could have been trained with.
FIXED = {
    "layer_norm_first": (False, "its layers normalize first, this model normalizes last"),
    "extractor_mode": ("default", "its conv stem normalizes every layer, this model the first"),
    "conv_bias": (False, "its conv stem has biases"),
    "normalize": (False, "it was trained on ECGs normalized per lead, this package feeds mV"),
    "filter": (False, "it was trained on ECGs filtered by the original's code"),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    path: str
    """The file that was read (inside the folder, if a folder was given)."""
    kind: str
    """base_ssl | classifier | hpc_ecg."""
    tensors: dict[str, StoredTensor]
    """Under the file's keys, where they lie in it."""
    names: NameMap
    """Our parameter names -> the file's keys, and the keys left out on purpose."""
    architecture: Architecture
    num_labels: int | None
    """Rows of the head; None = the file has no head."""
    labels: list[str] | None
    """Names of the labels; only our files carry them, and not all."""
    signal: SignalSpec | None
    """What the ECGs meant; only our files carry it, and not all."""
    provenance: list[dict[str, Any]]
    """What this package did to make the file, oldest first; empty where it says nothing."""

    def ours(self) -> dict[str, StoredTensor]:
        """The tensors that the model takes, under our parameter names."""
        return {name: self.tensors[key] for name, key in self.names.ours.items()}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint. Nothing in the file is ever executed. ValueError, one line:
    no such file, damaged, refused, or weights of another model."""
    with refusing(Path(path)):
        file = file_of(Path(path))
    with refusing(file):
        return _read_ours(file) if file.suffix == ".safetensors" else _read_original(file)


def file_of(path: Path) -> Path:
    file = path / OUR_FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise ValueError(f"{path}: a folder without {OUR_FILE}; give a file or a run's best/")
    if not file.is_file():
        raise ValueError(
            f"{path}: no such file; a checkpoint is base_ssl.pt, a fine-tuned .pt, "
            f"{OUR_FILE} or a run's best/"
        )
    return file


def _read_original(path: Path) -> Checkpoint:
    content = read_archive(path)
    tensors, cfg = content.get("model"), content.get("cfg")
    settings = cfg.get("model") if isinstance(cfg, dict) else None
    if not isinstance(tensors, dict) or not isinstance(settings, dict):
        raise ValueError(
            f"{path}: expected the original's layout with `model` (tensors) and `cfg.model` "
            f"(sizes), got {', '.join(key for key in content if isinstance(key, str))[:120]}"
        )
    odd = {type(key).__name__ for key in tensors if not isinstance(key, str)}
    if odd:
        raise ValueError(f"{path}: `model` has a key that is {odd.pop()}, not a name; refused")
    kind = kind_of_keys(tensors, str(path))
    facts = _facts_of(content, path)
    return _checked(path, kind, tensors, _sizes_of(settings, path), *facts)


def _facts_of(
    content: Mapping[str, Any], path: Path
) -> tuple[list[str] | None, SignalSpec | None, list[dict[str, Any]]]:
    """Labels, signal and provenance that this package wrote into a `.pt`, as texts like those in
    our own files; a foreign one has none."""
    state = content.get("extra_state")
    texts = state.get("hpc_ecg") if isinstance(state, dict) else None
    known = texts if isinstance(texts, dict) else {}
    texts = {name: text for name, text in known.items() if isinstance(text, str)}
    labels, signal, provenance = (_from_json(texts, name, path) for name in list(FACTS)[1:])
    return labels, _signal_of(signal, path), provenance or []


def _sizes_of(settings: Mapping[str, Any], path: Path) -> Architecture:
    """Sizes as the file's cfg states them. The number of heads leaves no trace in the tensors;
    the rest is held against them by `check_fit`."""
    for name, (needed, reason) in FIXED.items():
        value = settings.get(name, needed)
        if value != needed:
            raise ValueError(
                f"{path}: cfg.model.{name} must be {needed!r}, got {show_value(value)}: {reason}"
            )
    return architecture_from_settings(settings, f"{path}: cfg.model.")


def _read_ours(path: Path) -> Checkpoint:
    metadata, tensors = read_safetensors(path)
    if metadata.get("format") != OUR_FORMAT:
        raise ValueError(
            f"{path}: not written by hpc_ecg (its metadata says format="
            f"{metadata.get('format')!r}, expected {OUR_FORMAT!r})"
        )
    facts = {name: _from_json(metadata, name, path) for name in FACTS}
    architecture = architecture_from_settings(facts["architecture"], f"{path}: architecture.")
    signal, provenance = _signal_of(facts["signal"], path), facts["provenance"] or []
    return _checked(path, "hpc_ecg", tensors, architecture, facts["labels"], signal, provenance)


def _signal_of(values: dict[str, Any] | None, path: Path) -> SignalSpec | None:
    if values is None:
        return None
    signal, usual = spec_from_dict(values, f"{path}: signal"), SignalSpec()
    for name, value in values.items():
        if type(value) is not type(getattr(usual, name)):
            raise ValueError(f"{path}: signal.{name} cannot be {show_value(value)}")
    if not all(isinstance(lead, str) for lead in signal.leads):
        raise ValueError(f"{path}: signal.leads must be names")
    return signal


def _from_json(metadata: Mapping[str, str], name: str, path: Path) -> Any:
    expected, inner = FACTS[name]
    try:
        value = from_json(metadata.get(name, "null"))
    except ValueError:
        value = "damaged"
    fits = isinstance(value, expected) and all(isinstance(item, inner) for item in value)
    if not fits and not (value is None and name != "architecture"):
        raise ValueError(
            f"{path}: metadata `{name}` must be a JSON {expected.__name__} of {inner.__name__}"
        )
    return value


def _checked(
    path: Path,
    kind: str,
    tensors: Mapping[str, object],
    architecture: Architecture,
    labels: list[str] | None = None,
    signal: SignalSpec | None = None,
    provenance: list[dict[str, Any]] | None = None,
) -> Checkpoint:
    # First all that needs no look at the values; then each value, once.
    stored = {key: check_weight(tensor, f"{path}: {key}") for key, tensor in tensors.items()}
    check_apart(stored, str(path))
    names = map_names(stored, kind)
    ours = {name: stored[key] for name, key in names.ours.items()}
    layers = [name.split(".")[3] for name in ours if name.startswith("backbone.encoder.layers.")]
    found = len(set(layers))
    if found != architecture.encoder_layers:
        raise ValueError(
            f"{path}: encoder_layers={architecture.encoder_layers}, but the weights do not fit: "
            f"they have {found} layers"
        )
    num_labels = None if has_no_head(kind, ours) else _rows_of(ours.get("head.weight"))
    check_fit(ours, expected_shapes(architecture, num_labels), str(path))
    if labels is not None and len(labels) != num_labels:
        raise ValueError(f"{path}: {len(labels)} label names for a head of {num_labels} labels")
    check_values(stored, str(path))
    return Checkpoint(
        path=str(path),
        kind=kind,
        tensors=stored,
        names=names,
        architecture=architecture,
        num_labels=num_labels,
        labels=labels,
        signal=signal,
        provenance=provenance or [],
    )


def has_no_head(kind: str, ours: Mapping[str, StoredTensor]) -> bool:
    """base_ssl never has one; one of our files may do without (made of a base_ssl)."""
    no_head = not any(name.startswith("head.") for name in ours)
    return kind == "base_ssl" or (kind == "hpc_ecg" and no_head)


def _rows_of(head: StoredTensor | None) -> int:
    """Rows of a head's weight; 1 where there is none, so that `check_fit` names it as missing."""
    return max(head.shape[0], 1) if head is not None and head.shape else 1
