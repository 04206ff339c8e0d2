"""The verbs of `hpc-ecg data`: recordings and a table in, shards out, and a look into them."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_ecg.data.sharding import ShardingPlan


def add_data(verbs: Any) -> None:
    data = verbs.add_parser("data", help="make shards from a table and recordings")
    data_verbs = data.add_subparsers(required=True, metavar="VERB")
    shard = data_verbs.add_parser("shard", help="write WebDataset shards (tools/shard_ecgs.py)")
    shard.add_argument("table", type=Path, metavar="TABLE", help=".csv, .tsv or .parquet")
    shard.add_argument("--signals", type=Path, required=True, metavar="DIR")
    shard.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    shard.add_argument(
        "--label", action="append", required=True, metavar="COLUMN", help="repeat for several"
    )
    patient = shard.add_mutually_exclusive_group(required=True)
    patient.add_argument("--patient", metavar="COLUMN", help="who; splits are by patient")
    patient.add_argument("--one-patient-per-record", action="store_true", help="recorded as such")
    shard.add_argument("--file", metavar="COLUMN", help="path below DIR (default: file or record)")
    shard.add_argument("--record", metavar="COLUMN", help="name of the record (default: record)")
    split = shard.add_mutually_exclusive_group()
    split.add_argument("--split", metavar="COLUMN", help="holds train, valid or test")
    split.add_argument(
        "--fractions", default="0.7,0.1,0.2", help="train,valid,test by hash (default %(default)s)"
    )
    shard.add_argument("--split-seed", type=int, default=0)
    shard.add_argument(
        "--rate", metavar="HZ|COLUMN", help="must agree with the files; .npy need it"
    )
    shard.add_argument("--axes", default="leads,samples", help=".npy: or samples,leads")
    shard.add_argument("--leads", help=".npy: names in the order of the file, with commas")
    shard.add_argument("--unit", default="mV", help=".npy: mV, uV or V")
    shard.add_argument("--shard-size", type=int, default=1000, help="rows of the table per shard")
    shard.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    shard.set_defaults(verb=_shard)


def _shard(options: argparse.Namespace) -> int:
    from hpc_ecg.data.sharding import describe_outcome, shard_ecgs
    from hpc_ecg.log import say, start_logging

    start_logging()
    say(*describe_outcome(shard_ecgs(_sharding_plan(options)), options.out))
    return 0


def _sharding_plan(options: argparse.Namespace) -> "ShardingPlan":
    from hpc_ecg.data.cohort import Columns
    from hpc_ecg.data.sharding import ShardingPlan
    from hpc_ecg.data.splits import parse_fractions
    from hpc_ecg.ecg.files import ArrayLayout
    from hpc_ecg.ecg.signal import LEADS

    rate_hz = _as_number(options.rate)
    return ShardingPlan(
        table=options.table,
        signals=options.signals,
        out=options.out,
        columns=Columns(
            labels=options.label,
            patient=options.patient,
            file=options.file,
            record=options.record,
            split=options.split,
            rate=options.rate if rate_hz is None else None,
        ),
        layout=ArrayLayout(
            axes=options.axes,
            leads=LEADS if options.leads is None else tuple(options.leads.split(",")),
            unit=options.unit,
            sample_rate_hz=rate_hz,
        ),
        rate_hz=rate_hz,
        fractions=parse_fractions(options.fractions),
        split_seed=options.split_seed,
        records_per_shard=options.shard_size,
        workers=options.workers,
    )


def _as_number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
