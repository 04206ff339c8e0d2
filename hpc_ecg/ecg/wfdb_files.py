"""WFDB records (.hea with .dat or .mat), read by wfdb and guarded by this file.

wfdb misreads some headers, so we check each header as text first:
- wfdb refuses a record name with an ending (`E07500.mat 12 500`) and an odd date;
- it reads a rate of `499,98` as 499 and `5e2` as 5;
- it reads `µV` as ASCII, which leaves `V`, a million times too much;
- it fills in 250 Hz for a missing rate and 200 counts per mV for a missing gain: refused here.
If only the wording of a header is the problem, wfdb reads a corrected header from a temporary
folder, beside links to the signal files.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import wfdb

from hpc_ecg.ecg.recording import RecordError, Recording, RecordLocation, check_num_samples
from hpc_ecg.ecg.signal import millivolts_per

# L leads, S samples

_PLAIN_NAME = re.compile(r"[-\w]+", re.ASCII)
_PLAIN_FILE = re.compile(r"[-\w]+\.\w+", re.ASCII)
# FORMATxSAMPLES_PER_FRAME:SKEW+OFFSET
_ONE_PER_FRAME = re.compile(r"\d+(x1)?(:\d{0,5})?(\+\d{0,9})?")
_RATE = re.compile(r"(\d*[.,]?\d+(?:e\+?\d)?)(/[\d.()-]+)?", re.IGNORECASE)
_MICRO = str.maketrans("µμ", "uu")


def read_wfdb(location: RecordLocation, _layout: object = None) -> Recording:
    """Read a record of one segment and one rate, given its header or one of its signal files.

    Samples that WFDB marks as invalid become NaN. Checksums are verified; 0 means none is stated.
    RecordError: "not found", "unreadable", "leads" (no signals), "rate", "amplitude" (no gain, no
    voltage).
    """
    path = location.path
    header_path = path if path.suffix == ".hea" else path.with_suffix(".hea")
    if not header_path.is_file():
        raise RecordError("not found", f"its header {header_path.name} is not beside it")
    lines = _header_lines(header_path)
    _check_record_line(lines)
    for line in lines[1:]:
        _check_signal_line(line, header_path.parent)
    record = _read_record(header_path, lines)
    _check_checksums(record)
    scale_L = np.array([_scale(unit) for unit in record.units])
    return Recording(
        signal_LS=np.ascontiguousarray(record.p_signal.T) * scale_L[:, None],
        leads=tuple(name or "" for name in record.sig_name),
        sample_rate_hz=float(record.fs),
    )


def _header_lines(header_path: Path) -> list[str]:
    """The record line and the signal lines, without comments."""
    content = header_path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _check_record_line(lines: list[str]) -> None:
    if not lines:
        raise RecordError("unreadable", "the header is empty")
    name, *fields = lines[0].split()
    num_signals = len(lines) - 1
    if "/" in name:
        raise RecordError("unreadable", "it has several segments; save one segment as a record")
    if num_signals == 0:
        raise RecordError("leads", "the header lists no signals")
    if fields and not fields[0].isdecimal():
        message = "the first line must be `name signals rate`, no blanks in the name; got "
        raise RecordError("unreadable", message + repr(lines[0]))
    if not fields or fields[0] != str(num_signals):
        announced = fields[0] if fields else "no number of"
        message = f"the header announces {announced} signals and lists {num_signals}"
        raise RecordError("unreadable", message)
    if len(fields) < 2 or not _RATE.fullmatch(fields[1]):
        got = fields[1] if len(fields) > 1 else "nothing"
        raise RecordError("rate", f"the header states no sampling rate, but {got}")
    if len(fields) > 2 and not fields[2].isdecimal():
        raise RecordError("unreadable", f"the header's number of samples is {fields[2]!r}")
    if len(fields) > 2:
        check_num_samples(int(fields[2][:18]))


def _check_signal_line(line: str, folder: Path) -> None:
    file_name, *fields = line.split()
    if Path(file_name).name != file_name:
        raise RecordError("unreadable", f"signal file {file_name!r} is not a plain file name")
    if not (folder / file_name).is_file():
        raise RecordError("not found", f"its signal file {file_name} is not beside it")
    if (folder / file_name).stat().st_size == 0:
        raise RecordError("unreadable", f"its signal file {file_name} is empty")
    if not fields or not _ONE_PER_FRAME.fullmatch(fields[0]):
        got = fields[0] if fields else "nothing"
        message = f"expected a format like 16 or 16+24, 1 sample a frame, got {got}"
        raise RecordError("unreadable", message)
    if len(fields) < 2 or not 0 < abs(_gain(fields[1])) < np.inf:
        raise RecordError("amplitude", f"signal {fields[-1]!r} has no gain, so it is uncalibrated")


def _gain(field: str) -> float:
    """The gain in `1000(0)/mV`; 0 if there is none (wfdb would assume 200)."""
    try:
        return float(re.split(r"[(/]", field)[0])
    except ValueError:
        return 0.0


def _check_checksums(record: wfdb.Record) -> None:
    """Raise RecordError if the samples of a signal do not add up to the header's checksum."""
    gain_L, baseline_L = np.array(record.adc_gain), np.array(record.baseline)
    counts_SL = np.rint(record.p_signal * gain_L + baseline_L)
    for name, counts_S, stated in zip(record.sig_name, counts_SL.T, record.checksum, strict=True):
        # the sum of invalid samples (NaN) is unknown; they are refused later
        if stated and np.isfinite(counts_S).all() and (int(counts_S.sum()) - stated) % 2**16:
            raise RecordError("unreadable", f"signal {name!r} is not what its checksum says")


def _read_record(header_path: Path, lines: list[str]) -> wfdb.Record:
    plain = _plain_lines(lines)
    odd = [line for line in lines[1:] if not _PLAIN_FILE.fullmatch(line.split()[0])]
    # wfdb's fsspec reads :: as a chain of file systems
    if plain == lines and not odd and "::" not in str(header_path):
        return wfdb.rdrecord(str(header_path.with_suffix("")))
    with tempfile.TemporaryDirectory(prefix="hpc_ecg-") as folder:
        aliases: dict[str, str] = {}
        signals = []
        for name, fields in zip((line.split()[0] for line in lines[1:]), plain[1:], strict=True):
            if name not in aliases:
                aliases[name] = f"signals{len(aliases)}{Path(name).suffix}"
                (Path(folder) / aliases[name]).symlink_to((header_path.parent / name).absolute())
            signals.append(" ".join([aliases[name], *fields.split()[1:]]))
        text = "\n".join([plain[0], *signals]) + "\n"
        (Path(folder) / "record.hea").write_text(text, encoding="utf-8")
        return wfdb.rdrecord(str(Path(folder) / "record"))


def _plain_lines(lines: list[str]) -> list[str]:
    """The same header in a form that wfdb reads: plain name, no date, u for µ."""
    name, *fields = lines[0].split()
    name = name if _PLAIN_NAME.fullmatch(name) else "record"
    rate = _RATE.fullmatch(fields[1])
    assert rate is not None, "checked before"
    if not re.fullmatch(r"[\d.]+", rate[1]):
        fields[1] = f"{float(rate[1].replace(',', '.')):.12g}{rate[2] or ''}"
    return [" ".join([name, *fields[:3]]), *(line.translate(_MICRO) for line in lines[1:])]


def _scale(unit: str | None) -> float:
    millivolts = millivolts_per(unit or "mV")  # in WFDB, no unit means mV
    if millivolts is None:
        raise RecordError("amplitude", f"unit must be one of mV, uV or V, got {unit!r}")
    return millivolts
