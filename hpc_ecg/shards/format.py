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
from numpy.typing import NDArray

from hpc_ecg.atomic_io import sha256_of
from hpc_ecg.ecg.signal import SignalSpec, spec_from_dict

FORMAT = "hpc_ecg-shards/2"
LABEL_PREFIX = "label."
FOLD_PREFIX = "fold."
REQUIRED = ("signal", "microvolts_per_count", "labels", "records", "shards", "index_sha256")
ARRAY_SUFFIX = ".ecg.npy"
HOW_TO_RESTORE = (
    "copy it again from where the shards were written, or write the shards again "
    "(hpc-ecg data repair needs this file)"
)


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


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


class ShardWriter:
    """Write one shard as webdataset does, byte for byte the same each time."""

    def __init__(self, stream: BinaryIO, signal: SignalSpec, microvolts_per_count: float) -> None:
        self._tar = tarfile.TarFile(fileobj=stream, mode="w")
        metadata = asdict(signal) | {"microvolts_per_count": microvolts_per_count}
        self._json = json.dumps(metadata, sort_keys=True).encode()

    def write(self, key: str, counts_LS: np.ndarray) -> None:
        assert counts_LS.dtype == np.int16 and counts_LS.flags.c_contiguous
        array = io.BytesIO()
        np.lib.format.write_array(array, counts_LS, version=(1, 0))
        for suffix, data in ((ARRAY_SUFFIX, array.getvalue()), (".json", self._json)):
            member = tarfile.TarInfo(key + suffix)  # its time and owner are 0
            member.size, member.mode = len(data), 0o444
            self._tar.addfile(member, io.BytesIO(data))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._tar.close()


def find_array_offsets(path: Path, num_leads: int, num_samples: int) -> dict[str, int]:
    """Key -> byte offset of its first count in the tar, read from the headers of tar and arrays."""
    offsets = {}
    with tarfile.open(path, "r:") as tar, path.open("rb") as file:
        for member in tar:
            if not member.name.endswith(ARRAY_SUFFIX):
                continue
            file.seek(member.offset_data)
            version = np.lib.format.read_magic(file)
            assert version == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            assert shape == (num_leads, num_samples) and dtype == np.int16 and not fortran
            offsets[member.name.removesuffix(ARRAY_SUFFIX)] = file.tell()
    return offsets


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
    """Open a set of shards; ValueError names what is missing, cut off or of another format."""
    folder = Path(folder)
    description = read_description(folder)
    index_path = folder / "index.parquet"
    if not index_path.is_file():
        raise ValueError(f"{index_path} is missing; {HOW_TO_RESTORE}")
    digest = sha256_of(index_path)
    if digest != description["index_sha256"]:
        raise ValueError(
            f"{index_path} is not the one that dataset.json describes (its SHA-256); "
            f"{HOW_TO_RESTORE}"
        )
    if check_sizes:
        _check_sizes(folder, description["shards"])
    return ShardSet(
        folder=folder,
        signal=spec_from_dict(description["signal"], f"{folder}/dataset.json"),
        microvolts_per_count=float(description["microvolts_per_count"]),
        label_names=list(description["labels"]),
        index=pd.read_parquet(index_path),
        index_sha256=digest,
        description=description,
    )


def read_description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.is_file():
        problem = "holds no shards" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"data.shards={folder} {problem} (no dataset.json); make them with hpc-ecg data shard"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {HOW_TO_RESTORE}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: not a description of {FORMAT}; write the shards again")
    missing = [name for name in REQUIRED if name not in description]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing; write the shards again")
    return description


def _check_sizes(folder: Path, shards: list[dict[str, Any]]) -> None:
    repair = f"copy it again, or make it again with: hpc-ecg data repair {folder}"
    for shard in shards:
        path, expected = folder / shard["name"], shard["bytes"]
        if not path.is_file():
            raise ValueError(f"{path} is missing; {repair}")
        size = path.stat().st_size
        if size != expected:
            raise ValueError(f"{path} has {size} bytes, dataset.json says {expected}; {repair}")
