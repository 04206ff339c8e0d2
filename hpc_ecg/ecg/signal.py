"""What an ECG array means: leads and their order, rate, length, unit, preprocessing.

Two arrays of one shape can mean different things (10 s at 250 Hz and 5 s at 500 Hz are both
12 x 2500), so every shard set and every checkpoint that we write carries a SignalSpec, and a run
refuses a mismatch.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from hpc_ecg.reporting.numbers import count

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
PREPROCESSING = "resample_poly/2"
MAX_SAMPLES = 2**24
"""Bound of a record's samples and of its rate in Hz."""
_MILLIVOLTS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3}  # micro sign, Greek mu


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    leads: list[str] = field(default_factory=lambda: list(LEADS))
    """Lead names in the order of the array's rows."""
    sample_rate_hz: int = 250
    """Samples per second (DeepECG-SSL saw 250 Hz)."""
    num_samples: int = 2500
    """Samples per lead (DeepECG-SSL saw 10 s: 2500)."""
    unit: str = "mV"
    """Unit of the model's input."""
    amplitude: str = "calibrated"
    """Amplitude convention: `calibrated` = the recorder's true gain; `calibrated*F`, F times it."""
    preprocessing: str = PREPROCESSING
    """How the signals were prepared, with its version: resample_poly or decimate, then
    highpass-HZ and notch-HZ if filtered, as in `resample_poly/highpass-0.5/notch-50/2`."""
    window: str = "first"
    """Which part of a longer recording: first, centre or all; with `+padded`, shorter ones end in
    zeros. Stated, not compared: it changes which seconds are seen, not what they mean."""


def millivolts_per(unit: str) -> float | None:
    """Millivolts in one `unit`, in any case and with either µ; None if it is no voltage."""
    return _MILLIVOLTS.get(unit.strip().lower())


def describe_signal(signal: SignalSpec) -> str:
    seconds = signal.num_samples / signal.sample_rate_hz
    return (
        f"{count(len(signal.leads), 'lead')} ({', '.join(signal.leads)}), {seconds:g} s at "
        f"{signal.sample_rate_hz} Hz in {signal.unit}, {signal.amplitude}, {signal.preprocessing}, "
        f"window: {signal.window}"
    )


def check_same_signal(ours: SignalSpec, theirs: SignalSpec, our_name: str, their_name: str) -> None:
    """Raise ValueError if two specs differ in any field but `window`; it shows both values."""
    differences = [
        f"{f.name}: {_show(ours, f.name)} in {our_name}, {_show(theirs, f.name)} in {their_name}"
        for f in fields(SignalSpec)
        if f.name != "window" and getattr(ours, f.name) != getattr(theirs, f.name)
    ]
    if differences:
        raise ValueError(
            f"the signals of {our_name} and {their_name} do not mean the same: "
            + "; ".join(differences)
        )


def spec_from_dict(values: dict[str, Any], source: str) -> SignalSpec:
    """Build a SignalSpec from JSON; ValueError if `values` lacks a field or has an unknown one."""
    names = sorted(f.name for f in fields(SignalSpec))
    got = sorted(values) if isinstance(values, dict) else type(values).__name__
    if got != names:
        raise ValueError(f"{source}: a signal spec has the fields {names}, got {got}")
    spec = SignalSpec(**values)
    for name, value in values.items():
        is_right = type(value) is type(getattr(SignalSpec(), name))
        if is_right and name == "leads":
            is_right = 0 < len(value) == len({lead for lead in value if isinstance(lead, str)})
        if not is_right or (isinstance(value, int) and not 0 < value < MAX_SAMPLES):
            raise ValueError(f"{source}: signal.{name} cannot be {repr(value)[:60]}")
    return spec


def _show(spec: SignalSpec, name: str) -> str:
    value = getattr(spec, name)
    return ",".join(value) if isinstance(value, list) else str(value)
