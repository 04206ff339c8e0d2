"""ECG files: from a name in the user's table to a Recording in mV.

A format is a function `(location, layout) -> Recording` and its file endings in READERS. Whatever a
library raises on a broken file becomes a RecordError of one line, so one bad file never ends a run.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, product
from pathlib import Path

from hpc_ecg.ecg.array_files import ArrayLayout, read_array
from hpc_ecg.ecg.recording import RecordError, Recording, RecordLocation, existing_file
from hpc_ecg.ecg.vendor_files import read_vendor
from hpc_ecg.ecg.vendor_parts import is_dicom
from hpc_ecg.ecg.wfdb_files import read_wfdb

TOO_LARGE = "it takes more memory than any resting ECG needs"
WITHIN = "::"
"""`X.npy::17`, `X.h5::tracings::17`: an array or a row within a file of several."""
VENDORS = (".xml", ".dcm", ".dicom", ".scp", ".edf", ".ecg", ".mwf", ".mfer", ".json")
_TEMPORARY = re.compile(r"\S*/hpc_ecg-\w+/")
Reader = Callable[[RecordLocation, ArrayLayout], Recording]
READERS: Mapping[str, Reader] = (
    dict.fromkeys((".hea", ".dat"), read_wfdb)
    | dict.fromkeys((".mat", ".npy", ".npz", ".h5", ".hdf5"), read_array)
    | dict.fromkeys(VENDORS, read_vendor)
)


def name_of_row(array: str, row: int) -> str:
    """The name of the recording in one row of an array of many."""
    return f"{array}{WITHIN}{row}"


def find_recording(folder: Path, name: str) -> RecordLocation:
    """Locate a table's `name`: as a file, with .hea, or with .npy added; else the part before `::`
    is the file, followed by an array's name, a row number or both.

    RecordError("not found") says what was tried.
    """
    for form in _unicode_forms(name):
        for ending in ("", ".hea", ".npy"):
            if name and (path := existing_file(folder / f"{form}{ending}")):
                return RecordLocation(path=path)
    file, *within = name.split(WITHIN)
    if within and file:
        row = int(within.pop()) if within[-1].isdecimal() and len(within[-1]) < 19 else None
        path = find_recording(folder, file).path
        return RecordLocation(path=path, array=WITHIN.join(within), row=row)
    tried = "nor with the ending .hea or .npy" + ", in any Unicode form" * (not name.isascii())
    raise RecordError("not found", f"{name!r}: not in {folder}, {tried}")


def _unicode_forms(name: str) -> Iterator[str]:
    """The name, then with each part composed (NFC) or decomposed (NFD, as macOS writes)."""
    forms = [
        dict.fromkeys([part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))])
        for part in name.split("/")
    ]
    return map("/".join, islice(product(*forms), 64))


def needs_layout(folder: Path, name: str) -> bool:
    """Whether this recording is, or may be, a bare array, which an ArrayLayout describes."""
    try:
        return _reader_of(find_recording(folder, name).path) is read_array
    except RecordError:
        return True


def read_recording(location: RecordLocation | Path, layout: ArrayLayout) -> Recording:
    """Read one recording in any known format; only bare arrays use `layout`.

    RecordError if it cannot be used: "not found", "unreadable", "leads", "rate" or "amplitude".
    """
    if isinstance(location, Path):
        location = RecordLocation(path=location)
    path = location.path
    try:
        reader = _reader_of(path)
        if reader is not read_array and (location.array or location.row is not None):
            raise RecordError("not found", f"it holds one recording; name it without {WITHIN}")
        return reader(location, layout)
    except RecordError as error:
        raise RecordError(error.reason, _one_line(f"{path.name}: {error}")) from None
    except FileNotFoundError:
        raise RecordError("not found", f"{path.name}: no such file in {path.parent}") from None
    except Exception as error:  # a library may raise anything on a broken file
        detail = TOO_LARGE if isinstance(error, MemoryError) else str(error)
        text = f"{path.name}: {type(error).__name__}: {detail}".replace(str(path), path.name)
        raise RecordError("unreadable", _one_line(text)) from error


def _reader_of(path: Path) -> Reader:
    ending = path.suffix.lower()
    if ending == ".mat" and existing_file(path.with_suffix(".hea")):
        return read_wfdb
    if ending in READERS:
        return READERS[ending]
    if existing_file(path) and is_dicom(path):  # DICOM files are often named by a number alone
        return read_vendor
    raise RecordError("unreadable", f"the file's ending must be one of {', '.join(READERS)}")


def _one_line(message: str) -> str:
    message = _TEMPORARY.sub("", " ".join(message.split()))
    return "".join(c if c.isprintable() else "?" for c in message)[:400]
