"""`hpc-ecg predict` against what it is made of: decoding alone, the model alone, ONNX Runtime.

Synthetic WFDB files (500 Hz, 12 leads, 10 s); the model has the published size, or with --small a
tenth of it. Decoding and the model are measured alone on the same files with the same number of
workers and threads; where they share the cores, no order of the work can be faster than
1 / (1 / decoding + 1 / model). Rounds of all ways alternate; the medians are compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from original_files import export_original
from probe import SMALL
from synthetic import Population, write_cohort

from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.inference.decode import decode
from hpc_ecg.inference.forward import Forward
from hpc_ecg.inference.model_source import open_model
from hpc_ecg.inference.prediction_job import PredictionJob, load_forward, predict_files
from hpc_ecg.inference.sources import find_sources
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.weights.convert import convert

AT_LEAST = {"ratio_to_parts": 0.9}
TARGETS: dict[str, float] = {}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patients", type=int, default=60, help="about 2.2 ECGs each (default 60)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="4 layers of width 256")
    parser.add_argument("--onnx", action="store_true", help="also ONNX Runtime")


def measure(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(
            folder / "ecgs",
            num_patients=options.patients,
            seed=1,
            population=Population(af_prevalence=0.4),
        )
        torch.manual_seed(0)
        model = build_model(SMALL if options.small else Architecture(), 1, ModelConfig())
        export_original(folder / "model.pt", model, "classifier")
        del model
        return _measure(folder, options)


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    sources = find_sources([str(folder / "ecgs" / "records")], ArrayLayout())
    recordings = Recordings(signals=Path(), signal=SignalSpec())
    names = {"torch": folder / "model.pt"}
    if options.onnx:
        names["onnx"] = folder / "model.onnx"
        convert(folder / "model.pt", names["onnx"])
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        began = time.perf_counter()
        work = decode(sources, range(len(sources)), recordings, None, options.workers)
        ecgs = [window.counts_LS for item in work for window in item.windows]
        seconds.setdefault("decoding", []).append(time.perf_counter() - began)
        for name, path in names.items():
            model = open_model(path)
            job = PredictionJob(
                model=model,
                sources=sources,
                recordings=recordings,
                out=folder / f"{name}.parquet",
                batch_size=options.batch_size,
                workers=options.workers,
            )
            with load_forward(model, folder) as forward:
                ways: dict[str, Callable[[], object]] = {
                    "model": partial(_run_model, forward, ecgs, options.batch_size)
                }
                ways["predict"] = partial(predict_files, job, forward)
                for way, function in ways.items():
                    began = time.perf_counter()
                    function()
                    seconds.setdefault(f"{name}_{way}", []).append(time.perf_counter() - began)
                job.out.unlink()
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    result = {f"{name}_ecg_per_s": len(sources) / value for name, value in middle.items()}
    parts = middle["decoding"] + middle["torch_model"]
    result["ratio_to_parts"] = parts / middle["torch_predict"]
    if options.onnx:
        result["ratio_onnx_to_torch"] = middle["torch_predict"] / middle["onnx_predict"]
    return result


def _run_model(forward: Forward, ecgs: list[np.ndarray], batch_size: int) -> None:
    for start in range(0, len(ecgs), batch_size):
        some = ecgs[start : start + batch_size]
        counts_BLS = np.zeros((batch_size, *ecgs[0].shape), np.int16)
        counts_BLS[: len(some)] = some
        forward(counts_BLS, np.full(batch_size, ecgs[0].shape[1]))
