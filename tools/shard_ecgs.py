#!/usr/bin/env python3
"""Write WebDataset shards from a table and recordings: the same as `hpc-ecg data shard`."""

import sys
from pathlib import Path

try:
    from hpc_ecg.cli import main
except ImportError as error:
    sys.exit(
        f"tools/shard_ecgs.py is the same as `hpc-ecg data shard`; this Python lacks {error.name}. "
        f"In {Path(__file__).resolve().parent.parent} run `make install`, then .venv/bin/hpc-ecg "
        "data shard …"
    )

if __name__ == "__main__":
    sys.exit(main(["data", "shard", *sys.argv[1:]]))
