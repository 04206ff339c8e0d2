"""Recordings of shards, prepared already, as `predict` takes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hpc_ecg.data.dataset import Dataset
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, PreparedECG
from hpc_ecg.ecg.signal import SignalSpec, check_same_signal
from hpc_ecg.inference.decode import CHUNK, Decoded
from hpc_ecg.inference.sources import Source
from hpc_ecg.shards.remote import open_shard_set

ALL = "all"


def open_all(
    folder: str, signal: SignalSpec, name: str, covariates: Sequence[str] = ()
) -> tuple[Dataset, list[Source]]:
    """All records of a set of shards, whatever their split. ValueError: the model `name` needs
    other signals."""
    shards = open_shard_set(folder)
    check_same_signal(shards.signal, signal, folder, name)
    if shards.microvolts_per_count != MICROVOLTS_PER_COUNT:
        raise ValueError(
            f"{folder} has {shards.microvolts_per_count:g} µV a count, and `predict` reads "
            f"{MICROVOLTS_PER_COUNT:g} µV; make the shards anew, or use `hpc-ecg evaluate`"
        )
    shards.index["split"] = ALL
    dataset = Dataset(shards, ALL, [])
    has_all = set(covariates) <= set(shards.index)
    cells = [shards.index[name] for name in covariates if has_all]
    facts = [*zip(*cells, strict=True)] or [()] * len(dataset)
    path, rows = Path(folder), zip(dataset.records, dataset.keys, facts, strict=True)
    return dataset, [Source(name=n, folder=path, file=key, facts=row) for n, key, row in rows]


def decode_shards(dataset: Dataset, numbers: Sequence[int]) -> Iterator[Decoded]:
    """The records at these positions. ValueError: a shard is damaged."""
    index = dataset.shards.index
    for start in range(0, len(numbers), CHUNK):
        some = np.array(numbers[start : start + CHUNK])
        for number, counts_LS in zip(some.tolist(), dataset.read(some), strict=True):
            row = index.iloc[number]
            flags = str(row.get("flags", "") or "")
            ecg = PreparedECG(
                counts_LS=counts_LS,
                flags=tuple(filter(None, flags.split(";"))),
                samples=int(row.get("samples", counts_LS.shape[1])),
                amplitude_mv=float(row.get("amplitude_mv", np.nan)),
            )
            yield Decoded(number=number, windows=[ecg])
