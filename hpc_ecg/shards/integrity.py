"""Find the shards of a set that are not as they were written, by their SHA-256."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from hpc_ecg.log import progress_bar
from hpc_ecg.shards.format import HEAD, ShardSet, check_key
from hpc_ecg.shards.remote import digest_shard


def find_damage(shards: ShardSet) -> dict[int, str]:
    """Number of a shard -> how it is missing, cut off, swapped or changed; reads every byte."""
    numbers = range(len(shards.description["shards"]))
    workers = len(os.sched_getaffinity(0))
    damage = {}
    with ThreadPoolExecutor(workers) as pool, progress_bar("digests", len(numbers)) as advance:
        for number, problem in enumerate(pool.map(partial(_check_shard, shards), numbers)):
            if problem is not None:
                damage[number] = problem
            advance()
    return damage


def _check_shard(shards: ShardSet, number: int) -> str | None:
    described = shards.description["shards"]
    name, expected_size = described[number]["name"], described[number]["bytes"]
    try:
        digest, size = digest_shard(shards, number)
    except ValueError as error:
        return str(error).removeprefix(f"{shards.name}: ")
    same_digest = [shard["name"] for shard in described if shard["sha256"] == digest]
    if name in same_digest:
        if not shards.url:
            _check_keys(shards, number)
        return None
    if same_digest:
        return f"{name} is swapped: it holds {same_digest[0]}"
    if size < expected_size:
        return f"{name} is cut off: {size} of {expected_size} bytes"
    return f"{name} is damaged (its SHA-256)"


def _check_keys(shards: ShardSet, number: int) -> None:
    """ValueError if the index names another record than an intact local shard holds there."""
    rows = shards.index[shards.index["shard"] == number]
    path = shards.shard_path(number)
    with path.open("rb") as file:
        for key, offset in zip(rows["key"], rows["offset"], strict=True):
            file.seek(offset - HEAD)
            check_key(str(path), key, file.read(HEAD))
