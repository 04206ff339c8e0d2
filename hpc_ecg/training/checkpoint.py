"""Checkpoints: weights, optimizer moments, and a small Progress as JSON.

`checkpoints/step-0001000/` holds model.safetensors, optimizer.safetensors (moments by parameter
name), progress.json and, written last, COMPLETE with the digests of the others. A folder without
COMPLETE is ignored; a damaged one is skipped with a warning.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpc_ecg.atomic_io import remove_made, wait_until_seen, write_atomically, write_json
from hpc_ecg.hashing import sha256_of_value
from hpc_ecg.log import logger
from hpc_ecg.safe_reading import read_json, sha256_of

COMPLETE, AVERAGE, MODEL = "COMPLETE", "average.safetensors", "model.safetensors"
OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"
FILES = (COMPLETE, AVERAGE, MODEL, OPTIMIZER, PROGRESS)  # a checkpoint is first made incomplete


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run, apart from its tensors."""

    step: int = 0
    stage: str = ""
    """Name of the current stage; "" before the first."""
    stage_began: int = 0
    """The step at which it began."""
    evaluated_step: int = -1
    """The last step that was evaluated."""
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    process_seconds: float = 0.0
    """Seconds times processes, summed over all starts, which may differ in their processes."""
    energy_kwh: float | None = None
    scaler: dict[str, Any] | None = None
    skipped: int = 0
    """Steps without an update because loss or gradient was not finite."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    moments: Mapping[str, Tensor],
    keep: int,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint of progress.step, then delete all but the newest `keep`.

    `moments` come from a parallel backend, `average` from a WeightAverager.
    """
    final = folder / f"step-{progress.step:07d}"
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}

    def write(path: Path) -> None:
        path.mkdir(parents=True)
        save_file(weights, path / MODEL)
        save_file(dict(moments), path / OPTIMIZER)
        if average:
            save_file(dict(average), path / AVERAGE)
        digests = {file.name: sha256_of(file) for file in sorted(path.iterdir())}
        _write_progress(path, progress)
        write_json(path / COMPLETE, digests)

    write_atomically(final, write, FILES)
    for old in complete_checkpoints(folder)[:-keep]:
        remove_made(old, *FILES, ".*.partial")


def update_progress(folder: Path, progress: Progress) -> None:
    """Add the outcome of an evaluation to the checkpoint that was saved before it, if any."""
    checkpoint = folder / f"step-{progress.step:07d}"
    if checkpoint.exists():
        _write_progress(checkpoint, progress)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The folders that have COMPLETE, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{COMPLETE}"))


def newest_checkpoint(folder: Path) -> tuple[Path, Progress] | None:
    """The newest intact checkpoint and its progress; a warning names damaged ones."""
    for path in reversed(complete_checkpoints(folder)):
        try:
            for name, sha256 in read_json(path / COMPLETE).items():
                if sha256_of(path / name) != sha256:
                    raise ValueError(f"{name} has changed since it was written (SHA-256)")
            return path, _read_progress(path)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            logger.warning("%s is damaged (%s): trying the one before it", path, error)
    return None


def load_checkpoint(
    path: Path, model: nn.Module, patience_s: float = 60
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Restore the weights of `model`; return the optimizer's moments, and the average ({}: none).

    Rank 0 chose the checkpoint; other nodes may see it late, since shared file systems cache, so
    they wait up to `patience_s` seconds. ValueError if it does not appear.
    """
    wait_until_seen(path / COMPLETE, patience_s)
    model.load_state_dict(load_file(path / MODEL), strict=True)
    average = load_file(path / AVERAGE) if (path / AVERAGE).exists() else {}
    return load_file(path / OPTIMIZER), average


def _write_progress(folder: Path, progress: Progress) -> None:
    """Write it with a digest inside, since it is rewritten after COMPLETE, by an evaluation."""
    values = asdict(progress)
    write_json(folder / PROGRESS, {"progress": values, "sha256": sha256_of_value(values)})


def _read_progress(folder: Path) -> Progress:
    stored = read_json(folder / PROGRESS)
    if sha256_of_value(stored["progress"]) != stored["sha256"]:
        raise ValueError(f"{PROGRESS} has changed since it was written (SHA-256)")
    return Progress(**stored["progress"])
