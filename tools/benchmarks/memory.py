"""Peak memory of sharding by cohort size: constant except for the table and the index.

The recordings are `.npy` at 250 Hz (each row of the table names one of 500 files), all in one
split, because identical signals must not be in two. Each size runs in a new process. This is the
worst case for the main process, which holds the table and the index but never a signal. It writes
60 kB per record.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

TARGETS = {"kb_per_record": 1.0}
NUM_FILES = 500
SHARD = """
import resource, sys
from hpc_ecg.cli import main
code = main(sys.argv[1:])
processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print("PEAK", code, *(resource.getrusage(which).ru_maxrss for which in processes))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", default="1000,10000,100000", help="numbers of records (default %(default)s)"
    )
    parser.add_argument("--folder", help="folder for temporary shards")


def measure(options: argparse.Namespace) -> dict[str, float]:
    sizes = [int(size) for size in options.sizes.split(",")]
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_recordings(folder)
        for size in sizes:
            main, worker = peak_memory_mb(folder, size)
            numbers |= {f"main_mb_{size}": main, f"worker_mb_{size}": worker}
    grown_mb = numbers[f"main_mb_{sizes[-1]}"] - numbers[f"main_mb_{sizes[0]}"]
    numbers["kb_per_record"] = 1000 * grown_mb / (sizes[-1] - sizes[0])
    return numbers


def write_recordings(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(NUM_FILES):
        signal_LS = rng.normal(0, 300, (12, 2500)).astype(np.int16)
        np.save(folder / f"{number}.npy", signal_LS)


def peak_memory_mb(folder: Path, size: int) -> tuple[float, float]:
    """Peak resident MB of the main process and of the largest worker."""
    rows = np.arange(size)
    table = {"record": rows, "file": [f"{row % NUM_FILES}.npy" for row in rows]}
    table |= {"patient": rows, "af": rows % 2, "split": "train"}
    pd.DataFrame(table).to_csv(folder / f"{size}.csv", index=False)
    command = f"data shard {folder}/{size}.csv --signals {folder} --out {folder}/shards-{size}"
    command += " --label af --patient patient --split split --rate 250 --unit uV"
    command += " --shard-size 100 --workers 2"
    result = subprocess.run(
        [sys.executable, "-c", SHARD, *command.split()], capture_output=True, text=True, check=True
    )
    code, main_kb, worker_kb = result.stdout.split("PEAK ")[-1].split()
    if code != "0":
        raise ValueError(result.stderr.strip())
    subprocess.run(["rm", "-r", f"{folder}/shards-{size}"], check=True)
    return int(main_kb) / 1000, int(worker_kb) / 1000
