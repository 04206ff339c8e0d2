"""What `predict` is given, as one list of recordings: files, folders, patterns, tables, arrays.

Every recording is a name and a place that `read_recording` can open, as in sharding.
"""

import glob
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from hpc_ecg.cohort.table import check_columns
from hpc_ecg.cohort.table_files import read_table
from hpc_ecg.ecg.age_sex import read_ages, read_sexes
from hpc_ecg.ecg.array_files import ArrayLayout, read_array, read_beside
from hpc_ecg.ecg.files import READERS, WITHIN, find_recording, name_of_row
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.vendor_parts import is_dicom

TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".parquet", ".gz")
DESCRIPTION = "dataset.json"
Columns = tuple[Path | None, str | None, str | None, Sequence[str]]
"""The folder of signals, and the columns of a table: files, names, covariates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One recording: `name` is what the output calls it, `file` lies in `folder`."""

    name: str
    folder: Path
    file: str
    facts: tuple = ()
    """The cells of the model's covariates; () where the table or the shards lack one."""


def is_shards(word: str) -> bool:
    return (Path(word) / DESCRIPTION).is_file()


def is_table(word: str) -> bool:
    """Whether this argument is a table of file names."""
    path = Path(word)
    return path.suffix.lower() in TABLES and path.is_file()


def find_sources(
    words: list[str],
    layout: ArrayLayout,
    signals: Path | None = None,
    file_column: str | None = None,
    record_column: str | None = None,
    covariates: Sequence[str] = (),
) -> list[Source]:
    """The recordings that the arguments name, in their order, each once.

    ValueError: an argument that leads to no recording, or a table without a column of files.
    """
    found: dict[Path, Source] = {}
    columns = signals, file_column, record_column, covariates
    for word in words:
        before = len(found)
        for source in _sources_of(word, layout, columns):
            found.setdefault(source.folder.absolute() / source.file, source)
        if len(found) == before and not Path(word).exists():
            hint = f"; did you mean {word}.hea?" if Path(f"{word}.hea").exists() else ""
            text = "no such file or folder, and no file fits it as a pattern"
            raise ValueError(f"{word}: {text}{hint}")
    if not found:
        endings = ", ".join(sorted(READERS))
        raise ValueError(f"{words[0]} holds no recording; files that are read end in {endings}")
    return [source for path, source in found.items() if not _is_of_header(path, found)]


def _is_of_header(path: Path, among: Container[Path]) -> bool:
    """Whether this is the signal file of a WFDB header that is listed too."""
    return path.suffix.lower() in (".dat", ".mat") and path.with_suffix(".hea") in among


def _sources_of(word: str, layout: ArrayLayout, columns: Columns) -> Iterator[Source]:
    path = Path(word)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if _is_recording(p)):
            yield Source(name=str(file), folder=path, file=str(file.relative_to(path)))
    elif is_table(word):
        yield from _rows_of_table(path, columns)
    elif path.exists() or WITHIN in word:
        yield from _within(word, layout)
    else:
        for name in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207  # also absolute ones
            yield from _sources_of(name, layout, columns)


def _rows_of_table(path: Path, columns: Columns) -> Iterator[Source]:
    table, (signals, file_column, record_column, covariates) = read_table(path), columns
    names = [str(name) for name in table]
    wanted = file_column or next((name for name in ("file", "record") if name in names), "file")
    check_columns(table, [wanted, *filter(None, [record_column])], path)
    shown = record_column or ("record" if "record" in names else wanted)
    facts: Iterable[tuple] = repeat(())
    if covariates and set(covariates) <= set(names):
        readers = {"age": read_ages, "sex": read_sexes}
        cells = [readers[n](table[n]).values if n in readers else table[n] for n in covariates]
        facts = zip(*cells, strict=True)
    for name, file, row in zip(table[shown], table[wanted], facts, strict=False):
        yield Source(name=name, folder=signals or path.parent, file=file, facts=row)


def _within(word: str, layout: ArrayLayout) -> Iterator[Source]:
    """A file's only recording, or each of an array of many."""
    path = Path(word.partition(WITHIN)[0])
    folder, file = path.parent, word[len(word) - len(Path(word).name) :]
    count: int | None = None
    if READERS.get(path.suffix.lower()) is read_array:
        try:
            location = find_recording(folder, file)
            count = None if location.row is not None else read_beside(location, layout)[0]
        except (RecordError, OSError):
            count = None  # one recording, or what reading it will say
    if count is None:
        yield Source(name=word, folder=folder, file=file)
    else:
        for row in range(count):
            yield Source(name=name_of_row(word, row), folder=folder, file=name_of_row(file, row))


def _is_recording(path: Path) -> bool:
    ending = path.suffix.lower()
    if path.name.startswith(".") or not path.is_file():
        return False
    return ending in READERS or (not ending and is_dicom(path))
