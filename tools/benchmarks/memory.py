"""Peak memory of sharding against the size of the cohort: flat, but for the index.

`.npy` recordings at 250 Hz (each row of the table names one of 500 files), all in one split, since
identical signals may not lie in two; another process for each size, one worker. The worst case of
the main process: it holds the table and the index, never a signal. 60 kB a record are written.
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
everybody = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print("PEAK", code, *(resource.getrusage(who).ru_maxrss for who in everybody))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", default="1000,10000,100000", help="records (default %(default)s)"
    )
    parser.add_argument("--folder", help="where the shards are written for a while")


def measure(options: argparse.Namespace) -> dict[str, float]:
    sizes = [int(size) for size in options.sizes.split(",")]
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_recordings(folder)
        for size in sizes:
            main, worker = peaks_of(folder, size)
            numbers |= {f"main_mb_{size}": main, f"worker_mb_{size}": worker}
    grown_mb = numbers[f"main_mb_{sizes[-1]}"] - numbers[f"main_mb_{sizes[0]}"]
    numbers["kb_per_record"] = 1000 * grown_mb / (sizes[-1] - sizes[0])
    return numbers


def write_recordings(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(NUM_FILES):
        signal_LS = rng.normal(0, 300, (12, 2500)).astype(np.int16)
        np.save(folder / f"{number}.npy", signal_LS)


def peaks_of(folder: Path, size: int) -> tuple[float, float]:
    """Peak resident MB of the main process and of the largest worker."""
    rows = np.arange(size)
    table = {"record": rows, "file": [f"{row % NUM_FILES}.npy" for row in rows]}
    table |= {"patient": rows, "af": rows % 2, "split": "train"}
    pd.DataFrame(table).to_csv(folder / f"{size}.csv", index=False)
    words = f"data shard {folder}/{size}.csv --signals {folder} --out {folder}/shards-{size}"
    words += " --label af --patient patient --split split --rate 250 --unit uV"
    words += " --shard-size 100 --workers 2"
    command = [sys.executable, "-c", SHARD, *words.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    last = result.stdout.split("PEAK ")[-1].split()
    if last[0] != "0":
        raise ValueError(result.stderr.strip())
    subprocess.run(["rm", "-r", f"{folder}/shards-{size}"], check=True)
    return int(last[1]) / 1000, int(last[2]) / 1000
