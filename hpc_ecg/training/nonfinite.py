"""A step whose loss or gradient is not finite: a file names the records of its batch."""

from hpc_ecg.atomic_io import write_json
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.prepare import PreparedData
from hpc_ecg.training.run_folder import RunFolder


def check_finite(engine: Engine, folder: RunFolder, data: PreparedData) -> None:
    """Call before anything is logged or saved: diverged weights must not replace good ones."""
    step = engine.first_bad_step()
    if step is not None:
        raise nonfinite_error(folder, data, step)


def nonfinite_error(folder: RunFolder, data: PreparedData, step: int) -> ValueError:
    """Write the file, on whichever rank, and return the error that names it."""
    train = data.train
    batch = [{"key": train.keys[p], "record": train.records[p]} for p in data.sampler.batch(step)]
    path = folder.path / f"nonfinite-step-{step + 1:07d}.json"
    write_json(path, {"step": step + 1, "batch": batch})
    return ValueError(
        f"loss or gradient is not finite at step {step + 1}; lower optim.lr, or look at the "
        f"{len(batch)} records of its batch, listed in {path}"
    )
