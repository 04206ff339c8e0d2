"""Write weights: our safetensors, the original's two `.pt` layouts, or ONNX.

Tensors are given by our names (`backbone.`, `head.`, and `pretraining.` for those that only a
base_ssl.pt holds) in any float type, and are written in that type (ONNX: float32). Metadata goes
with them as JSON texts. Every file is written atomically: a reader sees the old one or the new one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.weights import original
from hpc_ecg.weights.mapping import PRETRAINING, check_fit, expected_shapes, file_key
from hpc_ecg.weights.metadata import OUR_FORMAT, Metadata
from hpc_ecg.weights.onnx_export import write_onnx
from hpc_ecg.weights.reading import Checkpoint
from hpc_ecg.weights.safetensors_file import DIGEST, digest_of
from hpc_ecg.weights.stored_tensor import one_line_errors


def save_model(
    path: str | Path,
    model: ECGClassifier | Mapping[str, Tensor],
    architecture: Architecture,
    labels: list[str],
    signal: SignalSpec,
    provenance: list[dict[str, Any]] | None = None,
) -> None:
    """Write `model` (the module, or a full state dict gathered from ranks) as our safetensors in
    float32. ValueError: tensors or label names that do not fit."""
    metadata = Metadata(
        architecture=architecture, labels=labels, signal=signal, provenance=provenance or []
    )
    state = model.state_dict() if isinstance(model, ECGClassifier) else model
    tensors = {name: t.detach().to("cpu", torch.float32) for name, t in state.items()}
    check_weights(path, tensors, metadata)
    write_safetensors(path, tensors, metadata)


def write_weights(
    target: Path,
    tensors: Mapping[str, Tensor],
    metadata: Metadata,
    source: Checkpoint | None = None,
    strip: bool = False,
) -> list[str]:
    """Write weights in the format of the target's ending, and return lines for the user. `source`,
    `strip`: as for `write_original`. ValueError: tensors or label names that do not fit."""
    check_weights(target, tensors, metadata)
    if target.suffix == ".onnx":
        return [write_onnx(target, tensors, metadata)]
    if target.suffix == ".safetensors":
        write_safetensors(target, tensors, metadata)
    else:
        write_original(target, tensors, metadata, source, strip)
    return []


def check_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """ValueError unless names, shapes and number of labels fit the metadata."""
    num_labels = original.num_labels_of(tensors)
    model = {name: t for name, t in tensors.items() if name not in PRETRAINING}
    with one_line_errors(Path(path)):
        check_fit(model, expected_shapes(metadata.architecture, num_labels))
        metadata.check_labels(num_labels)


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write checked weights, with or without a head, as our safetensors."""
    texts = {"format": OUR_FORMAT, "architecture": metadata.sizes_text(), **metadata.texts()}
    texts[DIGEST] = "0" * 64
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def write(partial: Path) -> None:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(contiguous, partial, texts)
        _sort_metadata(partial)
        partial.chmod(mode)  # the library makes a file that only its owner can read

    write_atomically(Path(path), write)


def _sort_metadata(path: Path) -> None:
    """Put the metadata in order, so that equal weights are equal bytes: the library's order is
    another in each process. Then state the digest."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"][DIGEST] = digest_of(header, file.read())
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


def write_original(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Metadata,
    source: Checkpoint | None = None,
    strip: bool = False,
) -> None:
    """Write checked weights as a `.pt` of the original: `classifier` (209 tensors at full size), or
    without a head `base_ssl` (215), with the metadata in `extra_state`.

    If `source` has the same layout, its keys and its cfg are kept (`strip`: without paths).
    ValueError: tensors that only pre-training uses are missing.
    """
    num_labels = original.num_labels_of(tensors)
    layout = original.layout_of(tensors)
    if source and source.kind == layout:
        names = {key: name for name, key in source.names.items()}
        model = {key: tensors[names[key]] for key in source.tensors if names[key] in tensors}
        cfg = original.copy_cfg(source.content["cfg"], neutral=strip)
        if num_labels:
            cfg["model"]["num_labels"] = num_labels
    else:
        order = list(expected_shapes(metadata.architecture, num_labels))
        if layout == "base_ssl":
            mask, *others = PRETRAINING
            order = [mask, *order, *others]
        if missing := [name for name in order if name not in tensors]:
            raise ValueError(
                f"{path}: the layout of base_ssl needs the {len(PRETRAINING)} tensors of "
                f"pre-training, these weights lack {missing[0]}; write a .safetensors"
            )
        model = {file_key(name, layout): tensors[name] for name in order}
        cfg = original.build_cfg(layout, model, metadata.architecture, num_labels)
    content = original.build_content(layout, cfg, model)
    if texts := metadata.texts():
        content["extra_state"]["hpc_ecg"] = {"format": OUR_FORMAT, **texts}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # given a path, torch stores its name in the file
            torch.save(content, file)

    write_atomically(Path(path), write)
