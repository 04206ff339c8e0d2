#!/usr/bin/env python3
"""Write WebDataset shards from a table and recordings: the same as `hpc-ecg data shard`."""

import sys

from hpc_ecg.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "shard", *sys.argv[1:]]))
