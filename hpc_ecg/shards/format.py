"""The shard format: how a set of shards is written, described and opened.

    dataset.json        what the signals mean, counts, digests, how the split was made
    index.parquet       a row per record: shard, offset, patient, split, labels, age, sex, flags
    shard-000000.tar    WebDataset: `<key>.ecg.npy` (int16 [12, T], 1 µV a count), `<key>.json`
    left_out.csv        the table's rows that are in no shard, each with its reason
    quality.html        what was left out or flagged, with pictures; quality.csv: a row per record

The key is the row of the input table, zero-padded: no dots (webdataset cuts there), no identifier.
If a recording gives several windows, `-` and the number of the window follow. Shard k holds rows kS
to (k+1)S - 1 less those left out, so any number of workers writes the same bytes. The index holds
the byte offset of each array, so that records can be read by mapping the tar.
"""

import io
import json
import math
import tarfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hpc_ecg.ecg.signal import SignalSpec, spec_from_dict
from hpc_ecg.log import logger
from hpc_ecg.safe_reading import check_regular, sha256_of
from hpc_ecg.shards.description import (  # noqa: F401 - the format's names
    DESCRIPTION_SHA256,
    FOLD_PREFIX,
    FORMAT,
    HEAD,
    HOW_TO_RESTORE,
    LABEL_PREFIX,
    MAX_RECORDS,
    check_description,
    check_index,
    digest_of_description,
    shard_name,
)

ARRAY_SUFFIX = ".ecg.npy"
HOW_TO_REPAIR = "copy it again, or make it again with: hpc-ecg data repair"


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """An open set of shards: its folder, description and index (a pandas table)."""

    folder: Path
    signal: SignalSpec
    microvolts_per_count: float
    label_names: list[str]
    index: pd.DataFrame
    index_sha256: str
    description: dict[str, Any]
    url: str | None = None
    """Where the shards are, if they are not in a local folder."""

    @property
    def name(self) -> str:
        """The URL or folder, for messages."""
        return self.url or str(self.folder)

    def shard_path(self, shard: int) -> Path:
        return self.folder / self.description["shards"][shard]["name"]


def key_of_row(row: int, window: int | None = None) -> str:
    return f"{row:08d}" if window is None else f"{row:08d}-{window:03d}"


def rows_of_keys(keys: pd.Series) -> np.ndarray:
    """The rows of the input table, int64 [N], counted from 0."""
    return keys.str.replace("-.*", "", regex=True).to_numpy(np.int64)


class ShardWriter:
    """Write one shard as webdataset does, byte for byte the same each time."""

    def __init__(self, stream: BinaryIO, signal: SignalSpec, microvolts_per_count: float) -> None:
        self._tar = tarfile.TarFile(fileobj=stream, mode="w")
        metadata = asdict(signal) | {"microvolts_per_count": microvolts_per_count}
        self._json = json.dumps(metadata, sort_keys=True).encode()

    def write(self, key: str, counts_LS: np.ndarray) -> int:
        """Add a record; returns the byte offset of its first count in the tar."""
        assert counts_LS.dtype == np.int16 and counts_LS.flags.c_contiguous
        array, offset = io.BytesIO(), self._tar.offset + HEAD
        np.lib.format.write_array(array, counts_LS, version=(1, 0))
        assert array.tell() == HEAD - 512 + counts_LS.nbytes
        for suffix, data in ((ARRAY_SUFFIX, array.getvalue()), (".json", self._json)):
            member = tarfile.TarInfo(key + suffix)  # its time and owner are 0
            member.size, member.mode = len(data), 0o444
            self._tar.addfile(member, io.BytesIO(data))
        return offset

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._tar.close()


def check_key(shard: str, key: str, head: bytes) -> None:
    """ValueError if the tar calls a record otherwise than the index, whose digests may have been
    made anew; `head` is the HEAD bytes before the record's counts."""
    found = head[:100].partition(b"\0")[0].decode(errors="replace").removesuffix(ARRAY_SUFFIX)
    if found != key:
        raise ValueError(
            f"{shard} holds {found[:20]!r} where index.parquet names {key}, so labels would go to "
            f"another's signal; index.parquet is damaged: {HOW_TO_RESTORE}"
        )


def parse_array(npy: bytes, shape: tuple[int, ...]) -> NDArray[np.int16]:
    """The counts in the bytes of a `.ecg.npy`; ValueError if the bytes hold anything else.

    numpy's own reader parses each header with `ast`, which sometimes fails in threads of a Python
    with python/cpython#106905 (seen with 3.11.7).
    """
    start = 10 + int.from_bytes(npy[8:10], "little")
    is_ours = npy[:8] == b"\x93NUMPY\x01\x00" and npy[10:start].rstrip() == _npy_header(shape)
    if not is_ours or len(npy) != start + 2 * math.prod(shape):
        raise ValueError(f"a record is not an int16 array of shape {shape}")
    return np.frombuffer(npy, "<i2", offset=start).reshape(shape)


@lru_cache(maxsize=8)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The header without the spaces at its end, whose number depends on numpy's version."""
    file = io.BytesIO()
    header = {"descr": "<i2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()[10:].rstrip()


def read_shard_set(folder: str | Path, check_sizes: bool = True) -> ShardSet:
    """Open a set of shards; ValueError names what is missing, cut off, of another format, or does
    not agree with the rest. Nothing outside of the folder is read."""
    folder = Path(folder)
    description = read_description(folder)
    path = folder / "index.parquet"
    if not path.exists():
        raise ValueError(f"{path} is missing; {HOW_TO_RESTORE}")
    check_inside(path)
    digest = sha256_of(path)
    if digest != description["index_sha256"]:
        raise ValueError(
            f"{path} is not the one that dataset.json describes (its SHA-256); {HOW_TO_RESTORE}"
        )
    _check_files(folder, description["shards"], check_sizes)
    signal = spec_from_dict(description["signal"], f"{folder}/dataset.json")
    length = signal.num_samples
    try:
        stated = sum(shard["records"] for shard in description["shards"])
        if (count := pq.read_metadata(path).num_rows) != stated or count > MAX_RECORDS:
            most = f"{stated:,} in dataset.json, and at most {MAX_RECORDS:,} are read"
            raise ValueError(f"records by shard: {count:,} in all, but {most}")
        index = pd.read_parquet(path)
        check_index(index, description, 2 * len(signal.leads) * length, length)
    except Exception as error:  # pandas and pyarrow raise many kinds for a table that is not ours
        raise ValueError(f"{path}: {str(error).partition(chr(10))[0]}") from None
    stored = index.attrs.get(DESCRIPTION_SHA256)
    if stored is None:
        logger.info(f"{folder}/dataset.json is unverified: its index holds no digest of it")
    elif stored != digest_of_description(description):
        raise ValueError(f"{folder}/dataset.json was changed (its SHA-256); {HOW_TO_RESTORE}")
    return ShardSet(
        folder=folder,
        signal=signal,
        microvolts_per_count=float(description["microvolts_per_count"]),
        label_names=list(description["labels"]),
        index=index,
        index_sha256=digest,
        description=description,
    )


def read_description(folder: Path) -> dict[str, Any]:
    """The content of dataset.json, each field checked by its type and bounds; ValueError."""
    path = folder / "dataset.json"
    if not path.exists():
        problem = "does not exist"
        if folder.exists():
            problem = "holds no shards" if folder.is_dir() else "is a file, not a folder of shards"
        raise ValueError(
            f"data.shards={folder} {problem} (no dataset.json); make them with hpc-ecg data shard"
        )
    check_inside(path)
    try:
        description = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {HOW_TO_RESTORE}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: not a description of {FORMAT}; write the shards again")
    try:
        check_description(description)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return description


def check_inside(path: Path) -> None:
    """ValueError unless this file of a set is a regular one that lies in the set's folder."""
    check_regular(path)
    if path.resolve().parent != path.parent.resolve():
        raise ValueError(
            f"{path} is a link out of its folder; copy the file there, or give the folder itself"
        )


def _check_files(folder: Path, shards: list[dict[str, Any]], check_sizes: bool) -> None:
    for shard in shards:
        path, expected = folder / shard["name"], shard["bytes"]
        if path.exists() and not path.is_dir():
            check_inside(path)
        if not check_sizes:
            continue
        if not path.is_file():
            raise ValueError(f"{path} is missing; {HOW_TO_REPAIR} {folder}")
        size = path.stat().st_size
        if size != expected:
            raise ValueError(
                f"{path} has {size} bytes, dataset.json says {expected}; {HOW_TO_REPAIR} {folder}"
            )
