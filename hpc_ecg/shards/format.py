"""The shard format, and nothing else: how a set of shards is written, described and found again.

    dataset.json        what the signals mean, counts, digests, how the split was made
    index.parquet       a row per record: where it lies, who, which split, labels, age, sex, flags
    shard-000000.tar    WebDataset: `<key>.ecg.npy` (int16 [12, T], 1 µV a count), `<key>.json`
    left_out.csv        rows of the table that are in no shard, each with its reason

    quality.html        what was left out or flagged, with pictures; quality.csv: a row per record

The key is the row of the input table, zero-padded: no dots (webdataset cuts there), no identifier;
with several windows of a recording, `-` and the window's number follow.
Shard k holds rows kS to (k+1)S - 1 less those left out, so any number of workers writes the same
bytes. The index holds the byte offset of each array, so that records are read by mapping the tar.
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
NEEDED = ("signal", "microvolts_per_count", "labels", "records", "shards", "index_sha256")
ARRAY_ENDING = ".ecg.npy"
NO_INDEX = "copy it again from where the shards were written, or write them again (repair needs it)"


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A set of shards as opened: its folder, description and index (a pandas table)."""

    folder: Path
    signal: SignalSpec
    microvolts_per_count: float
    label_names: list[str]
    index: pd.DataFrame
    index_sha256: str
    description: dict[str, Any]
    url: str | None = None
    """Where the shards are, if not in a folder of this machine."""

    @property
    def name(self) -> str:
        """For messages."""
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
    """Writes one shard through webdataset, byte for byte the same each time."""

    def __init__(self, stream: BinaryIO, signal: SignalSpec, microvolts_per_count: float) -> None:
        from webdataset import TarWriter  # imports torch, which most of this floor does without

        self._tar = TarWriter(stream, encoder=False, mtime=0, user="", group="")
        about = asdict(signal) | {"microvolts_per_count": microvolts_per_count}
        self._about = json.dumps(about, sort_keys=True).encode()

    def write(self, key: str, counts_LS: np.ndarray) -> None:
        assert counts_LS.dtype == np.int16 and counts_LS.flags.c_contiguous
        array = io.BytesIO()
        np.lib.format.write_array(array, counts_LS, version=(1, 0))
        self._tar.write({"__key__": key, "ecg.npy": array.getvalue(), "json": self._about})

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._tar.close()
        else:  # a full disk, Ctrl-C: tarfile would try to write the rest, and complain
            self._tar.tarstream.fileobj.closed = True


def find_arrays(path: Path, num_leads: int, num_samples: int) -> dict[str, int]:
    """Key -> byte offset of the first count in the tar, from the tar's and the arrays' headers."""
    offsets = {}
    with tarfile.open(path, "r:") as tar, path.open("rb") as file:
        for member in tar:
            if not member.name.endswith(ARRAY_ENDING):
                continue
            file.seek(member.offset_data)
            version = np.lib.format.read_magic(file)
            assert version == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            assert shape == (num_leads, num_samples) and dtype == np.int16 and not fortran
            offsets[member.name.removesuffix(ARRAY_ENDING)] = file.tell()
    return offsets


def array_of(npy: bytes, shape: tuple[int, ...]) -> NDArray[np.int16]:
    """The counts in the bytes of a `.ecg.npy`; ValueError if it holds anything else.

    numpy's own reader parses each header with `ast`, which now and then fails in threads of a
    Python with python/cpython#106905 (seen with 3.11.7).
    """
    start = 10 + int.from_bytes(npy[8:10], "little")
    is_ours = npy[:8] == b"\x93NUMPY\x01\x00" and npy[10:start].rstrip() == _npy_header(shape)
    if not is_ours or len(npy) != start + 2 * math.prod(shape):
        raise ValueError(f"a record is no int16 array of shape {shape}")
    return np.frombuffer(npy, "<i2", offset=start).reshape(shape)


@lru_cache(maxsize=8)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Without the spaces at its end, of which versions of numpy write more or fewer."""
    file = io.BytesIO()
    about = {"descr": "<i2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()[10:].rstrip()


def read_shard_set(folder: str | Path, check_sizes: bool = True) -> ShardSet:
    """Open a set of shards; ValueError for what is missing, cut off or not ours."""
    folder = Path(folder)
    description = read_description(folder)
    index_path = folder / "index.parquet"
    if not index_path.is_file():
        raise ValueError(f"{index_path} is missing; {NO_INDEX}")
    digest = sha256_of(index_path)
    if digest != description["index_sha256"]:
        raise ValueError(
            f"{index_path} is not the one that dataset.json describes (its SHA-256); {NO_INDEX}"
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
        what = "holds no shards" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"data.shards={folder} {what} (no dataset.json); make them with tools/shard_ecgs.py"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {NO_INDEX}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: not a description of {FORMAT}; write the shards again")
    missing = [name for name in NEEDED if name not in description]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing; write the shards again")
    return description


def _check_sizes(folder: Path, shards: list[dict[str, Any]]) -> None:
    for shard in shards:
        path = folder / shard["name"]
        if not path.is_file():
            raise ValueError(f"{path} is missing; {_mend(folder)}")
        if path.stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, dataset.json says {shard['bytes']}; "
                f"{_mend(folder)}"
            )


def _mend(folder: Path) -> str:
    return f"copy it again, or make it again with: hpc-ecg data repair {folder}"
