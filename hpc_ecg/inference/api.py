"""For Python and notebooks: predict, look at a recording, read shards, evaluate.

import hpc_ecg
model = hpc_ecg.load_predictor("bundle")
table = model.predict(["a.xml", "folder"])
"""
# L leads, S samples, K labels

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hpc_ecg.comparison.compare import compare as compare_sweep
from hpc_ecg.data.dataset import Dataset, open_split
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.files import find_recording
from hpc_ecg.ecg.files import read_recording as read_file
from hpc_ecg.ecg.leads import normalize_lead
from hpc_ecg.ecg.signal import LEADS
from hpc_ecg.inference.abstain import with_abstention
from hpc_ecg.inference.bundle import is_bundle, open_bundle
from hpc_ecg.inference.model_source import ModelSource, open_model
from hpc_ecg.inference.pictures import ECG, RunScores, SweepComparison
from hpc_ecg.inference.prediction_job import PredictionJob, load_forward, predict_files
from hpc_ecg.inference.published import is_published, open_published
from hpc_ecg.inference.sources import find_sources
from hpc_ecg.reporting.html import html_table
from hpc_ecg.reporting.numbers import MISSING, count, format_number, format_threshold
from hpc_ecg.shards.remote import open_shard_set
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.training.evaluate import evaluate as evaluate_run
from hpc_ecg.training.evaluate import evaluate_weights
from hpc_ecg.training.open_run import load_run, load_run_for


class Predictor(AbstractContextManager["Predictor"]):
    """A model in memory. Close it, or use it in a `with` statement, to free its memory."""

    def __init__(self, model: ModelSource) -> None:
        self._model, self._stack = model, ExitStack()
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="hpc_ecg-")))
        self._forward = self._stack.enter_context(load_forward(model, folder))
        self._folder = folder

    @property
    def labels(self) -> list[str]:
        return self._model.labels

    @property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """By label and the method that fitted them on validation; {} for a file of weights."""
        points = self._model.points
        return {label: {m: p["threshold"] for m, p in by.items()} for label, by in points.items()}

    def predict(
        self,
        files: str | Path | Iterable[str | Path],
        rate_hz: float | None = None,
        axes: str = "leads,samples",
        leads: Iterable[str] = LEADS,
        unit: str = "mV",
        workers: int = 1,
    ) -> pd.DataFrame:
        """The table that `hpc-ecg predict` writes: a row per recording, refused ones with their
        reason. `files` as there; the other arguments describe bare arrays (.npy, .mat, .h5).

        With `workers` above 1 in a script, call it under `if __name__ == "__main__":`.
        ValueError: a name that leads to no recording.
        """
        words = [str(w) for w in ([files] if isinstance(files, str | Path) else files)]
        layout = ArrayLayout(axes=axes, leads=tuple(leads), unit=unit, sample_rate_hz=rate_hz)
        job = PredictionJob(
            model=self._model,
            sources=find_sources(words, layout, covariates=self._model.covariates),
            recordings=Recordings(signals=Path(), layout=layout, signal=self._model.signal),
            out=self._folder / "risks.parquet",
            rate_hz=rate_hz,
            batch_size=self._model.config.data.batch_size,
            workers=workers,
        )
        table = predict_files(job, self._forward)
        job.out.unlink()
        assert table is not None
        return table

    def close(self) -> None:
        self._stack.close()

    def _repr_html_(self) -> str:
        rows = [
            (label, name, format_threshold(threshold))
            for label, by in self.thresholds.items()
            for name, threshold in by.items()
        ]
        labels = f"{self._model.name} predicts {', '.join(self.labels)}"
        return html_table(labels, ["label", "threshold fitted for", "at"], rows)

    def __exit__(self, *_: object) -> None:
        self.close()


def load_predictor(
    path: str | Path,
    strategy: str | None = None,
    ensemble: bool = False,
    abstain: float | None = None,
) -> Predictor:
    """Load a run, a bundle, a strategy of a sweep (the seed that is best on validation, or all as
    an `ensemble`), or a file of weights. `abstain`: mark risks by the rule that keeps this share of
    validation. ValueError: nothing to predict with, no rule, or changed."""
    model = open_source(Path(path), strategy, ensemble)
    return Predictor(with_abstention(model, str(abstain)) if abstain else model)


def open_source(
    path: Path, strategy: str | None, ensemble: bool, needs_head: bool = True
) -> ModelSource:
    """A bundle, a folder as model hubs hold them, or what `open_model` opens."""
    if is_bundle(path) and not (strategy or ensemble):
        return open_bundle(path)
    if is_published(path) and not (strategy or ensemble):
        return open_published(path)
    return open_model(path, strategy, ensemble, needs_head)


def read_recording(
    path: str | Path,
    rate_hz: float | None = None,
    axes: str = "leads,samples",
    leads: Iterable[str] = LEADS,
    unit: str = "mV",
) -> ECG:
    """Read one recording in any format that `hpc-ecg data shard` reads; the other arguments
    describe a bare array. ValueError: it cannot be used, and why."""
    path = Path(path)
    layout = ArrayLayout(axes=axes, leads=tuple(leads), unit=unit, sample_rate_hz=rate_hz)
    recording = read_file(find_recording(path.parent, path.name), layout)
    return ECG(
        signal_LS=recording.signal_LS,
        leads=tuple(normalize_lead(name) or name for name in recording.leads),
        sample_rate_hz=recording.sample_rate_hz,
        flags=recording.flags,
        name=path.name,
    )


class ShardDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A split of shards: the ECG in mV, float32 [L, S], and its labels, float32 [K] (NaN: none)."""

    def __init__(self, records: Dataset) -> None:
        self.labels = records.label_names
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"{position} is not below {len(self)}")
        position %= len(self)
        counts_LS = self._records.read(np.array([position]))[0]
        ecg_LS = torch.from_numpy(counts_LS.astype(np.float32)) * self._records.millivolts_per_count
        return ecg_LS, torch.from_numpy(self._records.labels_NK[position])

    def ecg(self, position: int) -> ECG:
        """The record as an ECG, which notebooks show on paper; its name is that in the index."""
        signal = self._records.shards.signal
        return ECG(
            signal_LS=self[position][0].numpy().astype(np.float64),
            leads=tuple(signal.leads),
            sample_rate_hz=signal.sample_rate_hz,
            flags=(),
            name=self._records.records[position],
        )

    def _repr_html_(self) -> str:
        known_KN = [column[~np.isnan(column)] for column in self._records.labels_NK.T]
        rows = [
            (
                name,
                len(known),
                len(self) - len(known),
                format_number(known.mean()) if len(known) else MISSING,
            )
            for name, known in zip(self.labels, known_KN, strict=True)
        ]
        patients = count(len(set(self._records.patients)), "patient")
        caption = f"{self._records.split}: {count(len(self), 'ECG')} of {patients}"
        return html_table(caption, ["label", "labelled", "missing", "mean"], rows)


def open_shards(
    path: str | Path, split: str = "train", labels: list[str] | None = None
) -> ShardDataset:
    """One split of the shards in a folder or at a URL. ValueError: damaged, no such split."""
    shards = open_shard_set(path)
    unknown = set(labels or []) - set(shards.label_names)
    if unknown:
        raise ValueError(f"{path} has the labels {shards.label_names}, not {sorted(unknown)}")
    return ShardDataset(open_split(shards, split, labels or shards.label_names))


def evaluate(
    run_dir: str | Path, shards: str | Path | None = None, out: str | Path | None = None
) -> RunScores:
    """Score a finished run on its test split, or on that of other `shards` (then `out` is the
    folder for the results), and return the content of evaluation.json."""
    run = str(run_dir)
    if shards is None:
        return RunScores(evaluate_run(load_run(run, [])))
    folder = Path(out) if out else Path(run) / "evaluations" / f"{Path(shards).name}-test"
    config = load_run_for(run, str(shards), [])
    return RunScores(evaluate_weights(config, Path(run) / "best", folder))


def compare(sweep_dir: str | Path, replicates: int = 2000) -> SweepComparison:
    """Compare the tested runs of a sweep on `replicates` draws of patients; writes nothing.
    ValueError: no run is finished and tested, or they were tested on different records."""
    return SweepComparison(compare_sweep(Path(sweep_dir), replicates))
