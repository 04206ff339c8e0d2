"""WFDB records (.hea with .dat or .mat), read by wfdb and guarded by this file.

wfdb misreads some headers, so we check each header as text first:
- wfdb refuses a record name with an ending (`E07500.mat 12 500`) and an odd date;
- it reads `µV` as ASCII, which leaves `V`, a million times too much;
- it fills in 250 Hz for a missing rate and 200 counts per mV for a missing gain: refused here;
- it reads `499,98` Hz as 499 and `1,000(0)/mV` as 1: refused here.
If only the wording of a header is the problem, wfdb reads a corrected header from a temporary
folder, beside links to the signal files.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import wfdb

from hpc_ecg.ecg.parts import PARTLY_READ
from hpc_ecg.ecg.recording import (
    MAX_SAMPLES,
    RecordError,
    Recording,
    RecordLocation,
    check_num_samples,
    existing_file,
)
from hpc_ecg.ecg.signal import millivolts_per

# L leads, S samples

_PLAIN_NAME = re.compile(r"[-\w]+", re.ASCII)
_PLAIN_FILE = re.compile(r"[-\w]+\.\w+", re.ASCII)
# FORMATxSAMPLES_PER_FRAME:SKEW+OFFSET
_ONE_PER_FRAME = re.compile(r"\d+(x1)?(:\d{0,5})?(\+\d{0,9})?")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_RATE = re.compile(rf"{_NUMBER}(/.*)?", re.ASCII)
_GAIN = re.compile(rf"(-?{_NUMBER}(?:e[-+]?\d+)?)(\(-?\d+\))?(/.*)?", re.ASCII)
_BYTES = {"8": 1, "16": 2, "24": 3, "32": 4, "61": 2, "80": 1, "160": 2, "212": 1.5}
_BYTES |= {"310": 4 / 3, "311": 4 / 3}
"""Bytes per sample of the formats that are not compressed."""
MAX_HEADER_BYTES, MAX_SIGNALS = 1 << 20, 256
MAX_VALUES = 16 * MAX_SAMPLES
_MICRO = str.maketrans("µμ", "uu")


def read_wfdb(location: RecordLocation, _layout: object = None) -> Recording:
    """Read a record of one segment and one rate, given its header or one of its signal files.

    Samples that WFDB marks as invalid become NaN. Checksums are verified; 0 means none is stated.
    RecordError: "not found", "unreadable", "leads" (no signals), "rate", "amplitude" (no gain, no
    voltage).
    """
    path = location.path
    is_header = path.suffix.lower() == ".hea"
    header_path = path if is_header else existing_file(path.with_suffix(".hea"))
    if header_path is None or not header_path.is_file():
        raise RecordError("not found", f"its header {path.stem}.hea is not beside it")
    lines = _header_lines(header_path)
    _check_record_line(lines)
    files = {line.split()[0]: _signal_file(line, header_path.parent) for line in lines[1:]}
    flags = _check_sizes(lines, files)
    record = _read_record(header_path, lines, files)
    _check_checksums(record)
    scale_L = np.array([_scale(unit) for unit in record.units])
    return Recording(
        signal_LS=np.ascontiguousarray(record.p_signal.T) * scale_L[:, None],
        leads=tuple(name or "" for name in record.sig_name),
        sample_rate_hz=float(record.fs),
        flags=flags,
    )


def _header_lines(header_path: Path) -> list[str]:
    """The record line and the signal lines, without comments."""
    if (size := header_path.stat().st_size) > MAX_HEADER_BYTES:
        most = f"at most {MAX_HEADER_BYTES >> 10} kB are read"
        raise RecordError("unreadable", f"a header of {size >> 10} kB; {most}")
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
    if num_signals > MAX_SIGNALS:
        most = f"at most {MAX_SIGNALS} are read"
        raise RecordError("unreadable", f"the header lists {num_signals} signals; {most}")
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
        got = f"got {' '.join(fields[1:2])!r}"
        raise RecordError("rate", f"the header states no sampling rate like 500 or 499.5; {got}")
    if len(fields) > 2 and not (fields[2].isascii() and fields[2].isdecimal()):
        raise RecordError("unreadable", f"expected a whole number of samples, got {fields[2]!r}")


def _signal_file(line: str, folder: Path) -> Path:
    """The file of a signal line; RecordError if the line cannot be trusted."""
    file_name, *fields = line.split()
    if Path(file_name).name != file_name:
        raise RecordError("unreadable", f"signal file {file_name!r} is not a plain file name")
    if not (path := existing_file(folder / file_name, any_name=True)):
        raise RecordError("not found", f"its signal file {file_name} is not beside it")
    if path.stat().st_size == 0:
        raise RecordError("unreadable", f"its signal file {file_name} is empty")
    if not fields or not _ONE_PER_FRAME.fullmatch(fields[0]):
        got = fields[0] if fields else "nothing"
        message = f"expected a format like 16 or 16+24, 1 sample a frame, got {got}"
        raise RecordError("unreadable", message)
    gain = _GAIN.fullmatch(fields[1]) if len(fields) > 1 else None
    if not gain or not 0 < abs(float(gain[1])) < np.inf:
        got = f"no gain, so it is uncalibrated; got {' '.join(fields[1:2])!r}"
        raise RecordError("amplitude", f"signal {fields[-1]!r} has {got}")
    return path


def _check_sizes(lines: list[str], files: dict[str, Path]) -> tuple[str, ...]:
    """Flag files that hold more samples than the header states; RecordError for too many samples
    or for signals of one file in different formats."""
    fields = lines[0].split()
    stated = int(fields[3][:18]) if len(fields) > 3 else 0
    held: list[float] = []
    for name, path in files.items():
        signals = [line.split()[1] for line in lines[1:] if line.split()[0] == name]
        formats = {re.sub(r":\d*", "", signal) for signal in signals}
        if len(formats) > 1:
            listed = ", ".join(sorted(formats))
            raise RecordError("unreadable", f"{name} in several formats: {listed}")
        kind, _, offset = formats.pop().partition("+")
        frame = _BYTES.get(kind.removesuffix("x1"), 0) * len(signals)
        held.append((path.stat().st_size - int(offset or 0)) / frame if frame else stated)
    samples = stated or int(held[0])
    check_num_samples(samples)
    if samples * (len(lines) - 1) > MAX_VALUES:
        raise RecordError("unreadable", f"more than {MAX_VALUES} values; split the record")
    return (f"{PARTLY_READ}:1",) if max(held) >= samples + 1 else ()


def _check_checksums(record: wfdb.Record) -> None:
    """Raise RecordError if the samples of a signal do not add up to the header's checksum."""
    gain_L, baseline_L = np.array(record.adc_gain), np.array(record.baseline)
    counts_SL = np.rint(record.p_signal * gain_L + baseline_L)
    for name, counts_S, stated in zip(record.sig_name, counts_SL.T, record.checksum, strict=True):
        # the sum of invalid samples (NaN) is unknown; they are refused later
        if stated and np.isfinite(counts_S).all() and (int(counts_S.sum()) - stated) % 2**16:
            raise RecordError("unreadable", f"signal {name!r} is not what its checksum says")


def _read_record(header_path: Path, lines: list[str], files: dict[str, Path]) -> wfdb.Record:
    plain = _plain_lines(lines)
    plain_names = [_PLAIN_FILE.fullmatch(n) and path.name == n for n, path in files.items()]
    # wfdb's fsspec reads :: as a chain of file systems
    is_plain = plain == lines and all(plain_names) and "::" not in str(header_path)
    if is_plain and header_path.suffix == ".hea":
        return wfdb.rdrecord(str(header_path.with_suffix("")))
    with tempfile.TemporaryDirectory(prefix="hpc_ecg-") as folder:
        aliases = {name: f"signals{n}{Path(name).suffix}" for n, name in enumerate(files)}
        for name, path in files.items():
            (Path(folder) / aliases[name]).symlink_to(path.absolute())
        names = [line.split()[0] for line in lines[1:]]
        signals = [aliases[n] + line[len(n) :] for n, line in zip(names, plain[1:], strict=True)]
        text = "\n".join([plain[0], *signals]) + "\n"
        (Path(folder) / "record.hea").write_text(text, encoding="utf-8")
        return wfdb.rdrecord(str(Path(folder) / "record"))


def _plain_lines(lines: list[str]) -> list[str]:
    """The same header in a form that wfdb reads: plain name, no date, u for µ."""
    name, *fields = lines[0].split()
    name = name if _PLAIN_NAME.fullmatch(name) else "record"
    return [" ".join([name, *fields[:3]]), *(line.translate(_MICRO) for line in lines[1:])]


def _scale(unit: str | None) -> float:
    millivolts = millivolts_per(unit or "mV")  # in WFDB, no unit means mV
    if millivolts is None:
        raise RecordError("amplitude", f"unit must be one of mV, uV or V, got {unit!r}")
    return millivolts
