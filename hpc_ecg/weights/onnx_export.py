"""Write the model as ONNX, and compare the file with torch before it gets its name.

Input `ecg` [batch, leads, samples] in mV, output `logits` [batch, labels] (no sigmoid). Batch and
length are free; an ECG must not be padded. The file's metadata holds labels, signal and provenance.
Needs the extra `onnx`, which training does not.
"""
# B batch, C leads, S samples, K labels

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.ecg.signal import SignalSpec, spec_from_dict
from hpc_ecg.model.transformer import ECGClassifier, build_on_meta
from hpc_ecg.safe_reading import check_regular
from hpc_ecg.weights.metadata import Metadata, parse_text
from hpc_ecg.weights.stored_tensor import one_line_errors

ONNX_FORMAT = "hpc_ecg/onnx/1"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit if that is above 1."""
CHECKED = ((1, 10.0), (3, 10.0), (2, 5.0), (1, 20.0), (4, 2.38))  # ECGs, seconds


def check_installed() -> None:
    """ValueError that says what to install."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}; pip install '.[onnx]' in the checkout installs it"
        )


def write_onnx(path: Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> str:
    """Write and check the file, and return a line on how well it agrees. ValueError: no head, or
    the file does not compute what torch does; it is then deleted."""
    if "head.weight" not in tensors:
        raise ValueError(
            "weights without a head have no logits to export; fine-tune them, or give them a head "
            "with `hpc-ecg weights reset-head`"
        )
    model = build_on_meta(metadata.architecture, tensors["head.weight"].shape[0]).eval()
    state = {name: tensors[name].float() for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    lines: list[str] = []

    def write(partial: Path) -> None:
        _export(model, partial, metadata)
        lines.append(_compare(model, partial, metadata))

    write_atomically(path, write)
    return lines[0]


def read_onnx_metadata(path: Path) -> tuple[list[str] | None, int, SignalSpec | None]:
    """Labels, their number and signal of a file of `write_onnx`; None: not stated. ValueError: not
    one of these."""
    check_installed()
    import onnx

    with one_line_errors(path):
        check_regular(path)
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's own kinds
            raise ValueError(f"damaged, or no ONNX file ({type(error).__name__})") from None
        texts = {entry.key: entry.value for entry in model.metadata_props}
        if texts.get("format") != ONNX_FORMAT:
            raise ValueError("not an ONNX file that hpc-ecg wrote (its metadata does not say so)")
        num_labels = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
        signal = parse_text(texts, "signal")
        spec = None if signal is None else spec_from_dict(signal, str(path))
        return parse_text(texts, "labels"), num_labels, spec


def _export(model: ECGClassifier, path: Path, metadata: Metadata) -> None:
    (ecg_BCS,) = simulate_ecgs(metadata, ((2, 10.0),))
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim("samples")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it lists each missing library
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
        node.metadata_props.clear()  # paths of the code on this machine
    unit = metadata.signal.unit if metadata.signal else "mV"
    texts = {"architecture": metadata.sizes_text(), "unit": unit, **metadata.texts()}
    program.model.metadata_props.update({"format": ONNX_FORMAT, **texts})
    program.save(path, external_data=False)


def _compare(model: ECGClassifier, path: Path, metadata: Metadata) -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for ecg_BCS in simulate_ecgs(metadata, CHECKED):
        with torch.no_grad():
            expected_BK = model(torch.from_numpy(ecg_BCS)).numpy()
        (logits_BK,) = session.run(["logits"], {"ecg": ecg_BCS})
        deviation = np.abs(logits_BK - expected_BK).max() / max(1.0, np.abs(expected_BK).max())
        if not deviation <= TOLERANCE:  # NaN, too
            raise ValueError(
                f"the logits of the ONNX file differ from torch's by {deviation:.1e} on input "
                f"{ecg_BCS.shape}, allowed are {TOLERANCE:.0e}; the file was deleted"
            )
        worst = max(worst, float(deviation))
    return (
        f"checked: logits of {sum(number for number, _ in CHECKED)} ECG-like signals of "
        f"{len(CHECKED)} lengths and batch sizes differ from torch by at most {worst:.1e} "
        f"(allowed {TOLERANCE:.0e})"
    )


def simulate_ecgs(
    metadata: Metadata, batches: Sequence[tuple[int, float]]
) -> Iterator[NDArray[np.float32]]:
    """ECG-like signals, float32 [B, C, S] in mV, per (ECGs, seconds): beats at uneven intervals,
    scaled differently in each lead, on a wandering baseline with noise."""
    rng, rate_hz = np.random.default_rng(0), (metadata.signal or SignalSpec()).sample_rate_hz
    for number, seconds in batches:
        time_S = np.arange(round(seconds * rate_hz)) / rate_hz
        size = (number, metadata.architecture.in_d, 1)
        beats_S = np.zeros_like(time_S)
        for beat_s in np.cumsum(rng.uniform(0.4, 1.2, size=round(seconds * 2.5))):
            beats_S += np.exp(-(((time_S - beat_s) / 0.012) ** 2))  # QRS
            beats_S += 0.2 * np.exp(-(((time_S - beat_s - 0.28) / 0.05) ** 2))  # T
        wander_S = np.sin(2 * np.pi * 0.3 * time_S)
        ecg_BCS = rng.normal(0, 0.8, size) * beats_S + rng.normal(0, 0.1, size) * wander_S
        noise_BCS = rng.normal(0, 0.01, ecg_BCS.shape)
        yield (ecg_BCS + noise_BCS).astype(np.float32)
