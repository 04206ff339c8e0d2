"""Where a run stands, on disk: weights, optimizer moments, and a small Progress as JSON.

`checkpoints/step-0001000/` holds model.safetensors, optimizer.safetensors (moments by parameter
name), progress.json and, written last, COMPLETE. A folder without the mark does not count.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpc_ecg.writing import read_json, wait_until_seen, write_json, write_text, write_whole

logger = logging.getLogger("hpc_ecg")

MARK, AVERAGE = "COMPLETE", "average.safetensors"


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
    scaler: dict[str, Any] | None = None


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint of progress.step, then drop all but the newest `keep`. `average`: the
    state of a mean of weights beside the model."""
    final = folder / f"step-{progress.step:07d}"

    def write(aside: Path) -> None:
        aside.mkdir(parents=True)
        save_file(_state_of(model), aside / "model.safetensors")
        save_file(_moments_of(model, optimizer), aside / "optimizer.safetensors")
        if average:
            save_file(dict(average), aside / AVERAGE)
        write_json(aside / "progress.json", asdict(progress))

    write_whole(final, write)
    write_text(final / MARK, "")
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def update_progress(folder: Path, progress: Progress) -> None:
    """Note the outcome of an evaluation in the checkpoint that was saved before it, if one was."""
    checkpoint = folder / f"step-{progress.step:07d}"
    if checkpoint.exists():
        write_json(checkpoint / "progress.json", asdict(progress))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MARK}"))


def newest_checkpoint(folder: Path) -> tuple[Path, Progress] | None:
    """The newest one that can be read; a damaged one is passed over, and said so."""
    for path in reversed(complete_checkpoints(folder)):
        try:
            for name in ("model.safetensors", "optimizer.safetensors"):
                with safe_open(path / name, framework="pt"):
                    pass
            progress = Progress(**read_json(path / "progress.json"))
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            logger.warning("%s is damaged (%s): going on from the one before", path, error)
        else:
            return path, progress
    return None


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    patience_s: float = 60,
) -> dict[str, Tensor]:
    """Restore a checkpoint into model and optimizer (None: the weights alone); returns the state of
    the average. Which checkpoint, and the progress, is for the first process to say: another node
    may see files a little later (shared file systems cache), and waits for them."""
    wait_until_seen(path / MARK, patience_s)
    model.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    if optimizer is not None:
        _restore_moments(model, optimizer, load_file(path / "optimizer.safetensors"))
    return load_file(path / AVERAGE) if (path / AVERAGE).exists() else {}


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


def _moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<moment>/<parameter name>` -> tensor, so that no position in a list has to agree."""
    return {
        f"{moment}/{name}": value.detach().clone()
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        moment, _, name = key.partition("/")
        parameter = parameters[name]
        # AdamW keeps `step` on the CPU unless it is fused
        fused = moment != "step" or optimizer.param_groups[0].get("fused")
        place = parameter.device if fused else torch.device("cpu")
        optimizer.state[parameter][moment] = value.to(place)
