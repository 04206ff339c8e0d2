"""Where a run stands, on disk: weights, optimizer moments, and a small Progress as JSON.

`checkpoints/step-0001000/` holds model.safetensors, optimizer.safetensors (moments by parameter
name), progress.json and, written last, COMPLETE with the digests of the others. A folder without
the mark does not count; one that is not what was written is passed over, and said so.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpc_ecg.atomic_io import read_json, sha256_of, wait_until_seen, write_atomically, write_json

logger = logging.getLogger("hpc_ecg")

MARK, AVERAGE, MODEL = "COMPLETE", "average.safetensors", "model.safetensors"
OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """All that a run must remember. `evaluated_step`: the last step that was evaluated."""

    step: int = 0
    stage: str = ""
    """Name of the stage that the run stands in, and the step at which it began."""
    stage_began: int = 0
    evaluated_step: int = -1
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    process_seconds: float = 0.0
    """Seconds times processes: the cost, also when a run went on with another number of them."""
    energy_kwh: float | None = None
    scaler: dict[str, Any] | None = None
    skipped: int = 0
    """Steps that left the weights as they were, as loss or gradient was not finite."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds beside the weights, by parameter name."""

    moments: dict[str, Tensor]
    average: dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    moments: Mapping[str, Tensor],
    keep: int,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint of progress.step, then drop all but the newest `keep`. `moments`: the
    optimizer's; `average`: the state of a mean of weights beside the model."""
    final = folder / f"step-{progress.step:07d}"
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}

    def write(aside: Path) -> None:
        aside.mkdir(parents=True)
        save_file(weights, aside / MODEL)
        save_file(dict(moments), aside / OPTIMIZER)
        if average:
            save_file(dict(average), aside / AVERAGE)
        digests = {path.name: sha256_of(path) for path in sorted(aside.iterdir())}
        _write_progress(aside, progress)
        write_json(aside / MARK, digests)

    write_atomically(final, write)
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def update_progress(folder: Path, progress: Progress) -> None:
    """Note the outcome of an evaluation in the checkpoint that was saved before it, if one was."""
    checkpoint = folder / f"step-{progress.step:07d}"
    if checkpoint.exists():
        _write_progress(checkpoint, progress)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MARK}"))


def newest_checkpoint(folder: Path) -> tuple[Path, Progress] | None:
    """The newest one that is what was written; a damaged one is passed over, and said so."""
    for path in reversed(complete_checkpoints(folder)):
        try:
            for name, sha256 in read_json(path / MARK).items():
                if sha256_of(path / name) != sha256:
                    raise ValueError(f"{name} is not what was written: its SHA-256 differs")
            return path, _read_progress(path)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            logger.warning("%s is damaged (%s): going on from the one before", path, error)
    return None


def load_checkpoint(path: Path, model: nn.Module, patience_s: float = 60) -> Saved:
    """Restore the weights; what else there is, is returned. Which checkpoint, and the progress, is
    for the first process to say: another node may see files a little later (shared file systems
    cache), and waits for them."""
    wait_until_seen(path / MARK, patience_s)
    model.load_state_dict(load_file(path / MODEL), strict=True)
    average = load_file(path / AVERAGE) if (path / AVERAGE).exists() else {}
    return Saved(moments=load_file(path / OPTIMIZER), average=average)


def _write_progress(folder: Path, progress: Progress) -> None:
    """With a digest of its own: it is written again after an evaluation."""
    values = asdict(progress)
    write_json(folder / PROGRESS, {"progress": values, "sha256": _digest_of(values)})


def _read_progress(folder: Path) -> Progress:
    stored = read_json(folder / PROGRESS)
    if _digest_of(stored["progress"]) != stored["sha256"]:
        raise ValueError(f"{PROGRESS} is not what was written: its SHA-256 differs")
    return Progress(**stored["progress"])


def _digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
