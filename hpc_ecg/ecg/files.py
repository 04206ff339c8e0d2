"""ECG files: a name from the user's table in, a Recording in mV out.

A format is one function `(location, layout) -> Recording` and its endings in READERS. Whatever a
library raises on a broken file leaves here as a RecordError of one line: one bad file never ends a
run.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from hpc_ecg.ecg.array_files import ArrayLayout, read_array
from hpc_ecg.ecg.recording import RecordError, Recording, RecordLocation
from hpc_ecg.ecg.vendor_files import read_vendor
from hpc_ecg.ecg.wfdb_files import read_wfdb

WITHIN = "::"
"""`X.npy::17`, `X.h5::tracings::17`: an array or a row within a file of several."""


def name_of_row(array: str, row: int) -> str:
    """What the recording in one row of an array of many is called."""
    return f"{array}{WITHIN}{row}"


def find_recording(folder: Path, name: str) -> RecordLocation:
    """What a table's `name` means: a file as it stands, else with .hea, else with .npy; else what
    stands before `::` as a file, and after it an array's name, a row or both.

    RecordError("not found") says what was tried.
    """
    for ending in ("", ".hea", ".npy"):
        path = folder / f"{name}{ending}"
        if name and _is_file(path):
            return RecordLocation(path=path)
    file, *within = name.split(WITHIN)
    if within and file:
        row = int(within.pop()) if within[-1].isdecimal() and len(within[-1]) < 19 else None
        return RecordLocation(
            path=find_recording(folder, file).path, array=WITHIN.join(within), row=row
        )
    raise RecordError("not found", f"{name!r}: not in {folder}, nor with the ending .hea or .npy")


def needs_layout(folder: Path, name: str) -> bool:
    """Whether an ArrayLayout matters to this recording, or may: if its format is not known."""
    try:
        return _reader_of(find_recording(folder, name).path) is read_array
    except RecordError:
        return True


def read_recording(location: RecordLocation | Path, layout: ArrayLayout) -> Recording:
    """Read one recording in any known format; `layout` matters to bare arrays only.

    RecordError if it cannot be used: "not found", "unreadable", "leads", "rate" or "amplitude".
    """
    location = location if isinstance(location, RecordLocation) else RecordLocation(path=location)
    path = location.path
    try:
        reader = _reader_of(path)
        if reader in (read_wfdb, read_vendor) and (location.array or location.row is not None):
            raise RecordError("not found", f"it holds one recording; name it without {WITHIN}")
        return reader(location, layout)
    except RecordError as error:
        raise RecordError(error.reason, _one_line(f"{path.name}: {error}")) from None
    except FileNotFoundError:
        raise RecordError("not found", f"{path.name}: no such file in {path.parent}") from None
    except Exception as error:  # a library on a broken file may raise anything
        said = f"{path.name}: {type(error).__name__}: {error}".replace(str(path), path.name)
        raise RecordError("unreadable", _one_line(said)) from error


def _reader_of(path: Path) -> Callable[[RecordLocation, ArrayLayout], Recording]:
    ending = path.suffix.lower()
    if ending == ".mat" and path.with_suffix(".hea").is_file():
        return read_wfdb
    if ending in READERS:
        return READERS[ending]
    if _is_file(path):  # DICOM files are often named by a number alone
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return read_vendor
    raise RecordError("unreadable", f"ending must be one of {', '.join(READERS)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not take, a folder that is closed to us
        return False


def _one_line(message: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))[:400]


VENDORS = (".xml", ".dcm", ".dicom", ".scp", ".edf", ".ecg", ".mwf", ".mfer", ".json")
READERS: Mapping[str, Callable[[RecordLocation, ArrayLayout], Recording]] = (
    dict.fromkeys((".hea", ".dat"), read_wfdb)
    | dict.fromkeys((".mat", ".npy", ".npz", ".h5", ".hdf5"), read_array)
    | dict.fromkeys(VENDORS, read_vendor)
)
