"""Predict recordings that nobody has labelled: decode, run the model, write a table.

The work is cut into parts of PART recordings, each written to OUT.parts/ when it is done. A killed
job goes on with the parts that are missing. Several processes (torchrun, srun, a Slurm array) take
every n-th part; whichever ends last joins them, so none waits for another.
"""

# N records, B batch, C leads, S samples, M members, K labels

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hpc_ecg.atomic_io import check_may_write, remove_made, write_atomically, write_json
from hpc_ecg.data.dataset import Dataset
from hpc_ecg.evaluation.covariates import add_combined
from hpc_ecg.inference.decode import Decoded, decode
from hpc_ecg.inference.forward import Forward, OnnxForward, TorchForward
from hpc_ecg.inference.from_shards import decode_shards
from hpc_ecg.inference.model_source import ModelSource
from hpc_ecg.inference.risk_table import columns_of, risks, warn_of_amplitude, write_table
from hpc_ecg.inference.sources import Source
from hpc_ecg.log import logger, progress_bar
from hpc_ecg.safe_reading import read_json
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.training.engine import Engine

PART = 256
"""Recordings whose risks are written at once: what a killed job repeats at most, per process."""
PLAN, PART_NAME = "plan.json", "part-{:06d}.parquet"
COUNTS = "counts"
"""Of a row: the ECG, until the model has seen it."""
AMPLITUDES = 100  # recordings after which a wrong unit is said, so that nobody waits for the end


@dataclass(frozen=True, kw_only=True)
class PredictionJob:
    model: ModelSource
    sources: Sequence[Source]
    recordings: Recordings
    out: Path
    shards: Dataset | None = None
    """Where the sources are, if they are records of shards."""
    rate_hz: float | None = None
    batch_size: int
    workers: int = 1
    share: tuple[int, int] = (0, 1)
    """Which process this is, and of how many."""

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    def part(self, number: int) -> Path:
        return self.folder / PART_NAME.format(number)

    @property
    def num_parts(self) -> int:
        return -(-len(self.sources) // PART)

    def decode(self, numbers: Sequence[int]) -> Iterator[Decoded]:
        if self.shards is not None:
            return decode_shards(self.shards, numbers)
        return decode(self.sources, numbers, self.recordings, self.rate_hz, self.workers)

    def digest(self) -> str:
        """SHA-256 of all that the risks depend on, except the recordings themselves."""
        inputs = [
            self.model.digests(),
            self.model.points,
            [self.model.labels, self.model.layer, *[self.model.abstention] * self.model.abstains],
            *[self.model.platt] * bool(self.model.platt),
            asdict(self.recordings),
            [(str(s.folder.absolute()), s.file, s.facts) for s in self.sources],
            self.model.combined,
            self.shards and self.shards.shards.index_sha256,
            [self.rate_hz, self.batch_size, self.model.config.engine.precision],
        ]
        return hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()


def predict_files(job: PredictionJob, forward: Forward) -> pd.DataFrame | None:
    """Predict all sources and write the table; None if other processes still have parts to do.

    ValueError if `OUT.parts` holds the work of another command.
    """
    index, count = job.share
    if index >= job.num_parts:
        logger.info(f"{job.num_parts} parts leave nothing for process {index + 1} of {count}")
        return None
    check_may_write(job.out, option="--out")
    claim_folder(job)
    mine = [n for n in range(index, job.num_parts, count) if not job.part(n).exists()]
    _predict_parts(job, forward, [n for part in mine for n in _sources_of_part(job, part)])
    paths = [job.part(number) for number in range(job.num_parts)]
    done = sum(path.exists() for path in paths)
    if done < len(paths):
        logger.info(f"{done} of {len(paths)} parts are done; the process that ends last joins them")
        return None
    try:
        parts = [pd.read_parquet(path) for path in paths]
    except FileNotFoundError:  # another process has joined them
        return None
    table = write_table(job.out, parts, job.model)
    remove_made(job.folder, "part-*.parquet", PLAN, ".*.partial")
    return table


@contextmanager
def load_forward(model: ModelSource, folder: Path) -> Iterator[Forward]:
    """The model on this process's device, in the run's arithmetic. Processes of one Slurm step meet
    through `folder`."""
    if model.files[0].suffix == ".onnx":
        yield OnnxForward(model.files[0], model.config.engine.cpu_threads or 0)
        return
    with closing(Engine(model.config.engine.for_inference(), folder)) as engine:
        yield TorchForward(model, engine)


def claim_folder(job: PredictionJob) -> None:
    plan, digest = job.folder / PLAN, job.digest()
    if plan.exists():
        if read_json(plan) != {"inputs": digest}:
            raise ValueError(
                f"{job.folder} holds the unfinished work of another command; delete that folder, "
                "or give another --out"
            )
        return
    if job.folder.exists() and any(job.folder.glob("[!.]*")):
        raise ValueError(f"{job.folder} is in the way; move it away, or give another --out")
    write_json(plan, {"inputs": digest})


class _Parts:
    """The parts of this process: rows gather in them, and a part is written when it is whole."""

    def __init__(self, job: PredictionJob, forward: Forward, parts: Sequence[int]) -> None:
        self._job, self._forward = job, forward
        self._left = {part: len(_sources_of_part(job, part)) for part in parts}
        self._rows: dict[int, list[dict]] = {part: [] for part in parts}
        self._waiting: list[dict] = []
        """Rows whose ECGs the model has not seen."""

    def take(self, item: Decoded) -> None:
        part = item.number // PART
        for row in _rows_of(self._job, item, self._forward.takes_padded):
            self._rows[part].append(row)
            if COUNTS in row:
                self._waiting.append(row)
        self._left[part] -= 1
        while len(self._waiting) >= self._job.batch_size:
            self._run_model()
        self._write_whole()

    def finish(self) -> None:
        if self._waiting:
            self._run_model()
        self._write_whole()

    def _run_model(self) -> None:
        """Predict a batch; the last one of all is filled with zeros."""
        job, size = self._job, self._job.batch_size
        rows, self._waiting = self._waiting[:size], self._waiting[size:]
        spec = job.model.signal
        counts_BCS = np.zeros((size, len(spec.leads), spec.num_samples), np.int16)
        counts_BCS[: len(rows)] = [row.pop(COUNTS) for row in rows]
        samples_B = np.full(size, spec.num_samples, np.int64)
        samples_B[: len(rows)] = [row["samples"] for row in rows]
        logits_NMK = self._forward(counts_BCS, samples_B)[: len(rows)]
        for name, values_N in risks(job.model, logits_NMK).items():
            for row, value in zip(rows, values_N.tolist(), strict=True):
                row[name] = value

    def _write_whole(self) -> None:
        is_open = {row["source"] // PART for row in self._waiting}
        for part in [n for n, left in self._left.items() if left == 0 and n not in is_open]:
            _write_part(self._job, part, self._rows.pop(part))
            del self._left[part]


def _predict_parts(job: PredictionJob, forward: Forward, numbers: Sequence[int]) -> None:
    parts = _Parts(job, forward, sorted({number // PART for number in numbers}))
    amplitudes: list[float] = []
    with progress_bar("ECGs", len(numbers), ecgs_per_step=1) as advance:
        for item in job.decode(numbers):
            parts.take(item)
            amplitudes += [ecg.amplitude_mv for ecg in item.windows]
            if len(amplitudes) >= AMPLITUDES > len(amplitudes) - len(item.windows):
                warn_of_amplitude(amplitudes)
            advance()
    parts.finish()
    if len(amplitudes) < AMPLITUDES and amplitudes:
        warn_of_amplitude(amplitudes)


def _sources_of_part(job: PredictionJob, part: int) -> range:
    return range(part * PART, min((part + 1) * PART, len(job.sources)))


def _rows_of(job: PredictionJob, item: Decoded, takes_padded: bool) -> Iterator[dict]:
    name, spec = job.sources[item.number].name, job.model.signal
    about = {"source": item.number, "window": 0, "record": name}
    refused = {"flags": "", "amplitude_mv": np.nan}
    if item.reason:
        yield about | refused | {"reason": item.reason, "message": item.message}
    for ecg in item.windows:
        if ecg.samples < spec.num_samples and not takes_padded:
            text = f"{ecg.samples} of {spec.num_samples} samples; ONNX takes no padded ECG"
            yield about | refused | {"reason": "too short", "message": text}
            continue
        yield about | {
            "window": ecg.window,
            "record": f"{name}-{ecg.window:03d}" if spec.window.startswith("all") else name,
            "flags": ";".join(ecg.flags),
            "amplitude_mv": ecg.amplitude_mv,
            "reason": "",
            "message": "",
            "samples": ecg.samples,
            COUNTS: ecg.counts_LS,
        }


def _write_part(job: PredictionJob, part: int, rows: list[dict]) -> None:
    names = ["source", "window", "record", *columns_of(job.model), "flags", "amplitude_mv"]
    table = pd.DataFrame(rows, columns=[*names, "reason", "message"])
    for name in columns_of(job.model) if job.model.layer is None else []:
        table[name] = table[name].astype(np.float64)
    if job.model.combined:
        add_combined(table, [job.sources[n].facts for n in table["source"]], job.model.combined)
    write_atomically(job.part(part), table.to_parquet, about_people=True)
