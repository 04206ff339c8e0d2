"""The verbs of `hpc-ecg data`: recordings and a table in, shards out; a look into them; mending."""

import argparse
from pathlib import Path
from typing import Any

from hpc_ecg.cli_shard import add_shard


def add_data(verbs: Any) -> None:
    data = verbs.add_parser("data", help="make shards from a table and recordings")
    data_verbs = data.add_subparsers(required=True, metavar="VERB")
    add_shard(data_verbs)

    repair = data_verbs.add_parser("repair", help="make damaged or missing shards again")
    repair.add_argument("shards", type=Path, metavar="SHARDS", help="a folder of shards")
    repair.add_argument("--table", type=Path, help="where the table is now, if it has moved")
    repair.add_argument("--signals", type=Path, metavar="DIR", help="the same for the recordings")
    repair.set_defaults(verb=_repair)


def _repair(options: argparse.Namespace) -> int:
    from hpc_ecg.data.repair import repair
    from hpc_ecg.log import say, start_logging

    start_logging()
    mended = repair(options.shards, options.table, options.signals)
    say(f"made again: {', '.join(mended)}" if mended else "nothing to mend: all shards are whole")
    return 0
