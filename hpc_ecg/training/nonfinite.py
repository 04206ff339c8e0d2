"""A step whose loss or gradient is not finite: which records it was made of, for who looks."""

from hpc_ecg.atomic_io import write_json
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.training.run_folder import RunFolder


def not_finite(folder: RunFolder, sampler: EpochSampler, train: Dataset, step: int) -> ValueError:
    """The error, which names the file with the batch's records; every process may write it."""
    positions = sampler.batch(step)
    batch = [{"key": train.keys[p], "record": train.records[p]} for p in positions]
    path = folder.path / f"nonfinite-step-{step + 1:07d}.json"
    write_json(path, {"step": step + 1, "batch": batch})
    return ValueError(
        f"loss or gradient is not finite at step {step + 1}; lower optim.lr, or look at the "
        f"{len(batch)} records of its batch, listed in {path}"
    )
