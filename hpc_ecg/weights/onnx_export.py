"""Write the model as ONNX, and hold the file against torch before it gets its name.

Input `ecg` [batch, leads, samples] in mV, output `logits` [batch, labels] (no sigmoid); batch and
length are free, and an ECG is given without padding. Labels, signal and provenance are in the
file's metadata. Needs the extra `onnx`, which a training does not.
"""
# B batch, C leads, S samples, K labels

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.architecture import architecture_to_settings
from hpc_ecg.model.transformer import ECGClassifier, build_on_meta
from hpc_ecg.weights.reading import Facts

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit if that is above 1."""
TRIED = ((1, 10.0), (3, 10.0), (2, 5.0), (1, 20.0), (4, 2.38))  # ECGs, seconds


def check_installed() -> None:
    """ValueError that says what to install."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}; pip install '.[onnx]' in the checkout installs it"
        )


def write_onnx(path: Path, tensors: Mapping[str, Tensor], facts: Facts) -> str:
    """Write and check the file; returns a line on how well it agrees. ValueError: no head, or the
    file computes something else than torch, and then there is none."""
    if "head.weight" not in tensors:
        raise ValueError(
            "weights without a head have no logits to export; fine-tune them, or give them a head "
            "with `hpc-ecg weights reset-head`"
        )
    model = _model_of(tensors, facts).eval()
    said: list[str] = []

    def write(aside: Path) -> None:
        _export(model, aside, facts)
        said.append(_compare(model, aside, facts))

    write_atomically(path, write)
    return said[0]


def _model_of(tensors: Mapping[str, Tensor], facts: Facts) -> ECGClassifier:
    model = build_on_meta(facts.architecture, tensors["head.weight"].shape[0])
    wanted = {name: tensors[name].float() for name in model.state_dict()}
    model.load_state_dict(wanted, assign=True)
    return model


def _export(model: ECGClassifier, path: Path, facts: Facts) -> None:
    (ecg_BCS,) = _ecgs(facts, ((2, 10.0),))
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim("samples")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # names each library it does not find
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.from_numpy(ecg_BCS),),
            dynamo=True,
            input_names=["ecg"],
            output_names=["logits"],
            dynamic_shapes=(free,),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where on this machine the code lies
    sizes = json.dumps(architecture_to_settings(facts.architecture))
    unit = facts.signal.unit if facts.signal else "mV"
    program.model.metadata_props.update(
        {"format": "hpc_ecg/onnx/1", "architecture": sizes, "unit": unit, **facts.texts()}
    )
    program.save(path, external_data=False)


def _compare(model: ECGClassifier, path: Path, facts: Facts) -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for ecg_BCS in _ecgs(facts, TRIED):
        with torch.no_grad():
            expected_BK = model(torch.from_numpy(ecg_BCS)).numpy()
        (found_BK,) = session.run(["logits"], {"ecg": ecg_BCS})
        deviation = np.abs(found_BK - expected_BK).max() / max(1.0, np.abs(expected_BK).max())
        if not deviation <= TOLERANCE:  # NaN, too
            raise ValueError(
                f"the ONNX file computes other logits than torch: they differ by {deviation:.1e} "
                f"on input {ecg_BCS.shape}, allowed are {TOLERANCE:.0e}; it was deleted"
            )
        worst = max(worst, float(deviation))
    return (
        f"checked: logits of {sum(number for number, _ in TRIED)} ECG-like signals of "
        f"{len(TRIED)} lengths and batch sizes differ from torch by at most {worst:.1e} "
        f"(allowed {TOLERANCE:.0e})"
    )


def _ecgs(facts: Facts, wanted: Sequence[tuple[int, float]]) -> Iterator[NDArray[np.float32]]:
    """ECG-like signals [B, C, S] in mV: beats at uneven distances, of another size in each lead,
    on a wandering baseline with noise."""
    rng, rate_hz = np.random.default_rng(0), (facts.signal or SignalSpec()).sample_rate_hz
    for number, seconds in wanted:
        time_S = np.arange(round(seconds * rate_hz)) / rate_hz
        size = (number, facts.architecture.in_d, 1)
        beats_S = np.zeros_like(time_S)
        for beat in np.cumsum(rng.uniform(0.4, 1.2, size=round(seconds * 2.5))):
            beats_S += np.exp(-(((time_S - beat) / 0.012) ** 2))  # QRS
            beats_S += 0.2 * np.exp(-(((time_S - beat - 0.28) / 0.05) ** 2))  # T
        wander_S = np.sin(2 * np.pi * 0.3 * time_S)
        ecg_BCS = rng.normal(0, 0.8, size) * beats_S + rng.normal(0, 0.1, size) * wander_S
        noise_BCS = rng.normal(0, 0.01, ecg_BCS.shape)
        yield (ecg_BCS + noise_BCS).astype(np.float32)
