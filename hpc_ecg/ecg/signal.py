"""What an ECG array means: leads and their order, rate, length, unit, how it was prepared.

Two arrays of one shape can mean different things (10 s at 250 Hz and 5 s at 500 Hz are both
12 x 2500), so every shard set and every checkpoint that we write carries a SignalSpec, and a run
refuses a mismatch.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
PREPROCESSING = "resample_poly/2"


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


def check_same_signal(ours: SignalSpec, theirs: SignalSpec, our_name: str, their_name: str) -> None:
    """Raise ValueError that names both sides if two specs differ in any field but `window`."""
    differences = [
        f"{f.name}: {_show(getattr(ours, f.name))} in {our_name}, "
        f"{_show(getattr(theirs, f.name))} in {their_name}"
        for f in dataclasses.fields(SignalSpec)
        if f.name != "window" and getattr(ours, f.name) != getattr(theirs, f.name)
    ]
    if differences:
        raise ValueError(
            f"the signals of {our_name} and {their_name} do not mean the same: "
            + "; ".join(differences)
        )


def spec_from_dict(values: dict[str, Any], source: str) -> SignalSpec:
    """A SignalSpec from JSON values; ValueError names unknown or missing fields."""
    names = {f.name for f in dataclasses.fields(SignalSpec)}
    if set(values) != names:
        raise ValueError(
            f"{source}: a signal spec has the fields {sorted(names)}, got {sorted(values)}"
        )
    return SignalSpec(**values)


def _show(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
