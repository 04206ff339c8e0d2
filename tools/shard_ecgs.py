#!/usr/bin/env python3
"""Table and recordings in, WebDataset shards out: the same as `hpc-ecg data shard` (--help)."""

import sys

from hpc_ecg.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "shard", *sys.argv[1:]]))
