"""`hpc-ecg data`: make shards from a table and recordings, inspect them, repair them."""

import argparse
from pathlib import Path

from hpc_ecg.cli.parser import Verbs
from hpc_ecg.cli.shard import add_shard

PLOTS = 12


def add_data(verbs: Verbs) -> None:
    data = verbs.add_parser("data", help="make shards from a table and recordings")
    data_verbs = data.add_subparsers(required=True, metavar="VERB")
    add_shard(data_verbs)

    repair = data_verbs.add_parser("repair", help="make damaged or missing shards again")
    repair.add_argument("shards", type=Path, metavar="SHARDS", help="a folder of shards")
    repair.add_argument("--table", type=Path, help="where the table is now, if it has moved")
    repair.add_argument("--signals", type=Path, metavar="DIR", help="the same for the recordings")
    repair.set_defaults(verb=_repair)

    inspect = data_verbs.add_parser("inspect", help="describe, verify and draw shards")
    inspect.add_argument("shards", metavar="SHARDS", help="a folder of shards, or its URL")
    inspect.add_argument("--split", help="only train, valid or test")
    inspect.add_argument("--no-verify", action="store_true", help="do not read every byte")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument("--out", type=Path, metavar="FILE.html", help="write a page with plots")
    inspect.add_argument("--force", action="store_true", help="replace FILE.html, whatever it is")
    inspect.add_argument("--plots", type=int, metavar="N", help=f"ECGs in --out; default {PLOTS}")
    inspect.add_argument("--seed", type=int, help="seed for choosing them")
    inspect.set_defaults(verb=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    import json

    from hpc_ecg.log import say
    from hpc_ecg.shards.format import read_description

    plots = PLOTS if options.plots is None else options.plots
    if plots < 0:
        raise ValueError(f"--plots must be at least 0, got {plots}")
    if options.out is None and (options.plots, options.seed) != (None, None):
        raise ValueError("--plots and --seed are for the page: also give --out FILE.html")
    if options.out is not None:
        _check_page(options.out, options.force)
    if "://" not in options.shards:
        read_description(Path(options.shards))  # a wrong path is reported before pages are imported

    from hpc_ecg.shards.inspection import describe_inspection, inspect_shards, write_page

    inspection = inspect_shards(options.shards, options.split, not options.no_verify)
    if options.out is not None:
        write_page(options.out, inspection, plots, options.seed or 0)
    if options.json:
        say(json.dumps(inspection.facts, indent=1))
    else:
        say(*describe_inspection(inspection.facts))
        if not inspection.shards.index.attrs:
            say("dataset.json: unverified; shards of an older version hold no digest of it")
    return 1 if inspection.facts["damaged"] else 0


def _check_page(out: Path, force: bool) -> None:
    """ValueError unless a page may be written; an earlier page of ours is replaced."""
    from hpc_ecg.atomic_io import check_may_write

    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {out} must end in .html: the page is HTML")
    is_ours = out.is_file() and b"<title>Shards: " in out.read_bytes()
    check_may_write(out, force or is_ours, "--out")


def _repair(options: argparse.Namespace) -> int:
    from hpc_ecg.log import say
    from hpc_ecg.shards.repair import repair

    made = repair(options.shards, options.table, options.signals)
    say(f"made again: {', '.join(made)}" if made else "nothing to mend: all shards are whole")
    return 0
