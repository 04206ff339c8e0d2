"""The account of a start, for init_report.json: every tensor of model and file is in it."""

from typing import Any

from hpc_ecg.atomic_io import sha256_of
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.weights.heads import HeadPlan
from hpc_ecg.weights.reading import Checkpoint


def facts_of(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
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


def build_init_report(
    model: ECGClassifier, checkpoint: Checkpoint | None, loaded: dict[str, str], head: HeadPlan
) -> dict[str, Any]:
    """Each parameter of the model, each ignored tensor of the file, and the counts."""
    parameters = {
        name: {
            "origin": _origin_of(name, loaded, head),
            "file_key": loaded.get(name),
            "trained": parameter.requires_grad,
            "shape": list(parameter.shape),
        }
        for name, parameter in model.named_parameters()
    }
    ignored = dict(checkpoint.names.ignored) if checkpoint else {}
    for name, key in checkpoint.names.ours.items() if checkpoint else ():
        if name not in loaded:
            ignored[key] = "the head is new"
    counts = {
        "tensors_loaded": len(loaded),
        "tensors_fresh": len(parameters) - len(loaded),
        "tensors_ignored": len(ignored),
        "tensors_frozen": sum(not p.requires_grad for p in model.parameters()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    return {"counts": counts, "parameters": parameters, "ignored": ignored}


def _origin_of(name: str, loaded: dict[str, str], head: HeadPlan) -> str:
    """loaded, fresh, or (a head of which only some labels were found) loaded in part."""
    if name not in loaded:
        return "fresh"
    in_part = name.startswith("head.") and head.taken == "by_label"
    return "loaded in part" if in_part else "loaded"
