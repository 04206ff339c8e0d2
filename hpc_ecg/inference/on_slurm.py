"""`predict --slurm`: tasks of an array share the parts; those that are killed start again."""

import shutil
from collections.abc import Callable

import pandas as pd

from hpc_ecg.inference.prediction_job import PART, PredictionJob, claim_folder
from hpc_ecg.jobs.job import Job
from hpc_ecg.jobs.settings import SlurmJobs
from hpc_ecg.jobs.slurm_jobs import run_on_slurm
from hpc_ecg.log import logger, progress_bar


def predict_on_slurm(
    job: PredictionJob, slurm: SlurmJobs, task: Callable[..., object], *arguments: object
) -> pd.DataFrame:
    """Submit `task(*arguments, k, count)` for each share k, wait, and return the column `reason` of
    the table that the tasks have written. ValueError: a task failed, or was killed too often."""
    count = min(slurm.jobs, job.num_parts)
    shares = {f"predict-{k}": (*arguments, k, count) for k in range(count)}
    tasks = [Job(name=name, function=task, arguments=words) for name, words in shares.items()]
    logs = job.out.with_name(f"{job.out.name}.slurm")
    claim_folder(job)
    with progress_bar("parts", job.num_parts, ecgs_per_step=PART) as advance:
        done: set[int] = set()

        def show(queue: str) -> None:
            new = {n for n in range(job.num_parts) if n not in done and job.part(n).exists()}
            done.update(new)
            advance(len(new), queue)

        for tries_left in range(slurm.config().max_retries, -1, -1):
            outcomes = list(run_on_slurm(tasks, logs, slurm, "predict", show))
            bad = {outcome.name: outcome for outcome in outcomes if outcome.error}
            if not bad or not job.folder.exists():
                break  # the table is whole
            first = next(iter(bad.values()))
            if not tries_left or "without a result" not in str(first.error):
                why = str(first.error).splitlines()[-1]
                raise ValueError(f"{first.name} failed: {why}; see {first.log}")
            logger.warning(f"{len(bad)} of {count} tasks were killed; they start again")
            tasks = [task for task in tasks if task.name in bad]
    shutil.rmtree(logs)
    if job.out.suffix == ".parquet":
        return pd.read_parquet(job.out, columns=["reason"])
    return pd.read_csv(job.out, usecols=["reason"], keep_default_na=False)
