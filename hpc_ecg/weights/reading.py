"""Read a file of weights: any harmless one as WeightsFile, one that a run can start from as
Checkpoint.

Accepts the original's `.pt` (pre-trained `base_ssl`, fine-tuned `classifier`), our safetensors, and
a folder with `model.safetensors` (a run's `best/`). In a WeightsFile the checksums match and no two
tensors share bytes. For a Checkpoint the sizes are stated, names and shapes fit them exactly, and
all values are finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_ecg.hashing import check_file
from hpc_ecg.model.architecture import Architecture, architecture_from_settings, show_value
from hpc_ecg.weights.archive import read_archive
from hpc_ecg.weights.mapping import (
    LAYOUTS,
    PRETRAINING,
    abbreviate,
    check_fit,
    expected_shapes,
    kind_of_keys,
    map_names,
)
from hpc_ecg.weights.metadata import OUR_FORMAT, Metadata, parse_metadata, parse_text
from hpc_ecg.weights.safetensors_file import read_safetensors
from hpc_ecg.weights.stored_tensor import FLOATS, StoredTensor, check_storage, one_line_errors

MODEL_FILE = "model.safetensors"

# Settings that this model has fixed: the value it implements, and how another one differs.
FIXED = {
    "layer_norm_first": (False, "its layers normalize first, this model normalizes last"),
    "extractor_mode": ("default", "its conv stem normalizes every layer, this model the first"),
    "conv_bias": (False, "its conv stem has biases"),
    "normalize": (False, "it was trained on ECGs normalized per lead, this package feeds mV"),
    "filter": (False, "it was trained on ECGs filtered by the original's code"),
}


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    path: str
    """The file that was read (inside the folder, if a folder was given)."""
    kind: str
    """base_ssl | classifier | hpc_ecg | unknown."""
    content: Mapping[str, Any]
    """All of a `.pt`, or the metadata of a safetensors file."""
    tensors: dict[str, StoredTensor]
    """By the file's keys."""
    names: dict[str, str]
    """Our name -> the file's key."""
    not_finite: list[str]
    """Keys of tensors with NaN, or values that float32 cannot hold."""

    @property
    def is_safetensors(self) -> bool:
        return self.path.endswith(".safetensors")

    def parameters(self) -> dict[str, StoredTensor]:
        """The tensors that a model loads, by our parameter names."""
        return {n: self.tensors[key] for n, key in self.names.items() if n not in PRETRAINING}

    def ignored(self) -> dict[str, str]:
        """The file's keys that a model ignores -> the reason."""
        return {key: PRETRAINING[n] for n, key in self.names.items() if n in PRETRAINING}


@dataclass(frozen=True, kw_only=True)
class Checkpoint(WeightsFile, Metadata):
    num_labels: int | None
    """Rows of the head; None = the file has no head."""

    def check_expected(self, expects: str) -> None:
        """ValueError unless the file is what `init.expects` says: a head makes it a classifier,
        whatever its name or format, and the tensors of pre-training a base_ssl."""
        kind, holds = "neither", "has neither a head nor the tensors of pre-training"
        if self.num_labels is not None:
            kind, holds = "classifier", f"is a classifier (a head of {self.num_labels} labels)"
        elif any(name in PRETRAINING for name in self.names):
            kind, holds = "base_ssl", "is a pre-trained file (no head)"
        if expects not in ("any", kind):
            raise ValueError(
                f"init.expects={expects}, but {self.path} {holds}; give the right file (are two "
                "swapped?), or init.expects=any to start from it all the same"
            )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint; nothing in the file is ever executed. ValueError, one line:
    no such file, damaged, refused, or weights of another model."""
    return to_checkpoint(open_weights(path))


def open_weights(path: str | Path) -> WeightsFile:
    """Open any harmless file of weights. ValueError, one line: no such file, damaged, refused, or
    without tensors."""
    with one_line_errors(Path(path)):
        file = resolve_file(Path(path))
    # the run or soup that made this file may have recorded other bytes
    absolute = file.absolute()
    if absolute.parent.name == "best":
        check_file(absolute, absolute.parent.parent / "finished.json")
    check_file(absolute, absolute.with_name("soup.json"))
    with one_line_errors(file):
        content: Mapping[str, Any]
        if is_ours := file.suffix == ".safetensors":
            content, values = read_safetensors(file)
        else:
            content = read_archive(file)
            values = content["model"] if isinstance(content.get("model"), dict) else content
        tensors = {str(key): t for key, t in values.items() if isinstance(t, StoredTensor)}
        if not tensors:
            raise ValueError(
                "holds no tensors under `model` or at its top level; expected the original's "
                "layout or our safetensors"
            )
        not_finite = check_storage(tensors)
        is_ours = is_ours and content.get("format") == OUR_FORMAT
        kind = "hpc_ecg" if is_ours else kind_of_keys(tensors)
        return WeightsFile(
            path=str(file),
            kind=kind,
            content=content,
            tensors=tensors,
            names=map_names(tensors, kind),
            not_finite=not_finite,
        )


def resolve_file(path: Path) -> Path:
    """The file of weights at a path, or in the folder of a run. ValueError: there is none."""
    folders = [path, path / "best"] if path.is_dir() else []
    file = next((f / MODEL_FILE for f in folders if (f / MODEL_FILE).is_file()), path)
    if file.is_dir():
        raise ValueError(f"{path}: a folder without {MODEL_FILE}; give a file or a run's folder")
    if not file.is_file():
        raise ValueError(
            f"{path}: no such file; a checkpoint is base_ssl.pt, a fine-tuned .pt, "
            f"{MODEL_FILE} or a run's best/"
        )
    return file


def to_checkpoint(file: WeightsFile) -> Checkpoint:
    """ValueError says why no run can start from the file."""
    with one_line_errors(Path(file.path)):
        metadata = _parse_ours(file.content) if file.is_safetensors else _parse_original(file)
        for key, tensor in file.tensors.items():
            if tensor.dtype not in FLOATS:
                raise ValueError(f"{key} must be a float tensor, got {tensor.dtype}")
            if not tensor.numel:
                raise ValueError(f"{key} holds no values (shape {tensor.shape})")
        num_labels = _check_shapes(file, metadata.architecture)
        metadata.check_labels(num_labels)
        for key in file.not_finite:
            raise ValueError(
                f"{key} holds NaN or infinite values (in float32); the run that wrote it diverged"
            )
    return Checkpoint(**vars(file), **vars(metadata), num_labels=num_labels)


def _parse_original(file: WeightsFile) -> Metadata:
    """The sizes that the file's cfg states (the number of heads leaves no trace in the tensors),
    and what this package wrote into the file, if it did."""
    content = file.content
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
    if file.kind not in LAYOUTS:
        raise ValueError(
            "weights of another model: expected names such as encoder.layers.0.fc1.weight "
            "(base_ssl) or encoder.encoder.layers.0.fc1.weight (classifier), got "
            f"{abbreviate(sorted(tensors), 3)}"
        )
    for name, (expected, reason) in FIXED.items():
        value = settings.get(name, expected)
        if value != expected:
            raise ValueError(
                f"cfg.model.{name} must be {expected!r}, got {show_value(value)}: {reason}"
            )
    state = content.get("extra_state")
    texts = state.get("hpc_ecg") if isinstance(state, dict) else None
    architecture = architecture_from_settings(settings, "cfg.model.")
    return parse_metadata(architecture, texts if isinstance(texts, dict) else {})


def _parse_ours(texts: Mapping[str, str]) -> Metadata:
    if texts.get("format") != OUR_FORMAT:
        raise ValueError(
            f"not written by hpc_ecg (its metadata says format="
            f"{texts.get('format')!r}, expected {OUR_FORMAT!r})"
        )
    sizes = parse_text(texts, "architecture")
    return parse_metadata(architecture_from_settings(sizes, "architecture."), texts)


def _check_shapes(file: WeightsFile, architecture: Architecture) -> int | None:
    """Number of labels. ValueError unless names and shapes are those of the model."""
    tensors = file.parameters()
    layers = {n.split(".")[3] for n in tensors if n.startswith("backbone.encoder.layers.")}
    if len(layers) != architecture.encoder_layers:
        raise ValueError(
            f"encoder_layers={architecture.encoder_layers}, but the weights do not fit: "
            f"they have {len(layers)} layers"
        )
    num_labels = None
    # base_ssl never has a head, and one of our files may have none (made from a base_ssl)
    if file.kind == "classifier" or any(name.startswith("head.") for name in tensors):
        head = tensors.get("head.weight")
        num_labels = max(head.shape[0], 1) if head is not None and head.shape else 1
    check_fit(tensors, expected_shapes(architecture, num_labels))
    return num_labels
