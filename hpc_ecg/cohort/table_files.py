"""Tables as spreadsheets and pandas write them: from a file to cells of text, nothing guessed."""

import bz2
import gzip
import lzma
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from hpc_ecg.cohort.manifest import is_manifest, read_manifest
from hpc_ecg.log import first_line
from hpc_ecg.reporting.escape import from_csv

ROWS_PER_CHUNK = 10_000
SEPARATORS = (",", "\t", ";", "|")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
GZIP = b"\x1f\x8b"
SHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
MAX_UNPACKED, MAX_RATIO, MAX_HEADER = 64 << 20, 100, 1 << 18
"""A packed table may unpack to so many bytes, or so many times its size (zeros: 1,000 times)."""
_PACKED: dict[bytes, Any] = {GZIP: gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, TSV (also with semicolons, in UTF-16 or compressed), parquet or .xlsx file or a
    manifest: every cell is text, an empty one ''. ValueError: none of these, or no rows."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table; expected a .csv, .tsv, .xlsx or .parquet file")
    if is_manifest(path):
        return read_manifest(path, read_table).table.astype(str)
    with path.open("rb") as file:
        start = file.read(4)
    try:
        _check_size(path, start)
        if path.suffix == ".parquet" or start == b"PAR1":
            # nullable: whole numbers with gaps stay whole (patient 17 must not become 17.0)
            table = pd.read_parquet(path, dtype_backend="numpy_nullable")
            for name in [n for n, c in table.items() if pd.api.types.infer_dtype(c) == "bytes"]:
                table[name] = table[name].str.decode("utf-8")
            table = table.astype(object).where(table.notna(), "").astype(str)
        elif start in SHEETS and path.suffix != ".zip":
            table = _read_sheet(path)
        else:
            table = from_csv(_read_text(path, start))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text in UTF-8; save the table in UTF-8") from None
    except Exception as error:  # pandas and pyarrow raise many kinds for a broken file
        raise ValueError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    if table.empty:
        raise ValueError(f"{path}: the table has no rows")
    return table


def _check_size(path: Path, start: bytes) -> None:
    """ValueError for a small file that would fill memory, and for a header beyond MAX_HEADER."""
    limit, size = max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size), 0
    if start == b"PAR1":
        facts = pq.read_metadata(path)
        size = facts.num_rows * facts.num_columns
    elif start == SHEETS[0]:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    else:
        with (opener := _PACKED.get(start[:2], open))(path, "rb") as file:
            if len(re.split(rb"[\r\n]", file.read(MAX_HEADER), maxsplit=1)[0]) == MAX_HEADER:
                raise ValueError(f"its first line has {MAX_HEADER >> 10} kB or more")
            while opener is not open and size <= limit and (part := file.read(1 << 20)):
                size += len(part)
    if size > limit:
        raise ValueError(f"it unpacks to more than {limit >> 20} MB; save it unpacked")


def _read_text(path: Path, start: bytes) -> pd.DataFrame:
    options: dict[str, Any] = {
        "dtype": str,
        "keep_default_na": False,
        "sep": "\t" if path.suffix == ".tsv" else ",",
        "encoding": "utf-16" if start[:2] in UTF_16 else "utf-8-sig",
        "compression": "gzip" if start[:2] == GZIP else "infer",
    }
    names = _header(path, options)
    if len(names) == 1 and (found := [mark for mark in SEPARATORS if mark in names[0]]):
        options["sep"] = found[0]
        names = _header(path, options)
    _check_names(names)
    # in chunks, since each cell is a Python string for a while
    table = pd.concat(pd.read_csv(path, chunksize=ROWS_PER_CHUNK, **options))
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for an index
        raise ValueError("its rows have more cells than its header")
    return table


def _header(path: Path, options: dict[str, Any]) -> list[str]:
    try:
        names = pd.read_csv(path, header=None, nrows=1, **options).iloc[0].tolist()
    except pd.errors.EmptyDataError:
        raise ValueError("the file is empty") from None
    if names[0].lstrip().startswith("<"):
        raise ValueError("it is HTML or XML, perhaps the page of a log-in; get the table itself")
    if any("\0" in name for name in names):
        raise ValueError("it is not text in UTF-8; save the table in UTF-8")
    return names


def _read_sheet(path: Path) -> pd.DataFrame:
    """The only sheet that holds anything."""
    try:
        sheets = pd.read_excel(path, sheet_name=None, header=None, dtype=str, na_filter=False)
    except ImportError:
        needed = "to read .xlsx, pip install openpyxl (.xls: xlrd, .ods: odfpy)"
        raise ValueError(f"{needed}, or save it as CSV") from None
    names = [name for name, sheet in sheets.items() if not sheet.empty]
    if len(names) != 1:
        held = ", ".join(map(str, names)) or "nothing"
        raise ValueError(f"it must have one sheet with a table, it has {held}")
    sheet = sheets[names[0]]
    _check_names(header := sheet.iloc[0].tolist())
    return sheet[1:].set_axis(header, axis=1).reset_index(drop=True)


def _check_names(names: Sequence[str]) -> None:
    """Refuse a repeated name, which pandas would change."""
    twice = pd.Index(names)[pd.Index(names).duplicated()]
    if len(twice):
        raise ValueError(f"its header names column {twice[0]!r} twice")
