"""What became of every tensor of the model and of the file, for init_report.json."""

from typing import Any

from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.weights.heads import HeadPlan
from hpc_ecg.weights.reading import Checkpoint


def describe_checkpoint(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
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
    """Every parameter of the model, every ignored tensor of the file, and the counts. `loaded`:
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
