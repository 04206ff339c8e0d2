"""`hpc-ecg data shard`: options in, a ShardingPlan out."""

import argparse
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ecg.cli.arrays import add_array_options, as_number, fill_in, layout_of
from hpc_ecg.cli.parser import Verbs, check_effects, check_table

if TYPE_CHECKING:
    from hpc_ecg.cohort.splits import SplitPlan
    from hpc_ecg.ecg.signal import SignalSpec
    from hpc_ecg.shards.sharding_plan import ShardingPlan

FRACTIONS = "0.7,0.1,0.2"


def add_shard(verbs: Verbs) -> None:
    shard = verbs.add_parser("shard", help="write WebDataset shards (tools/shard_ecgs.py)")
    shard.add_argument(
        "table", type=Path, metavar="TABLE", help=".csv, .tsv, .xlsx, .parquet (also .gz) …"
    )
    shard.add_argument("--signals", type=Path, metavar="DIR", help="default: a manifest's root")
    shard.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    _add_columns(shard)
    _add_splits(shard)
    add_array_options(shard)
    _add_signal(shard)
    work = shard.add_argument_group("work")
    work.add_argument("--shard-size", type=int, default=1000, help="rows of the table per shard")
    work.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    work.add_argument(
        "--slurm",
        metavar="KEY=VALUE,…",
        help="a Slurm array, a worker per CPU: jobs=8,partition=cpu,time=60,cpus_per_task=4,mem=8G",
    )
    shard.set_defaults(verb=_shard)


def _add_columns(shard: argparse.ArgumentParser) -> None:
    group = shard.add_argument_group("columns of the table")
    group.add_argument(
        "--label", action="append", required=True, metavar="COLUMN", help="repeat for several"
    )
    group.add_argument("--regression", action="store_true", help="labels are numbers, not yes/no")
    patient = group.add_mutually_exclusive_group()
    patient.add_argument("--patient", metavar="COLUMN", help="patient; splits are by patient")
    patient.add_argument(
        "--one-patient-per-record", action="store_true", help="noted in the shards"
    )
    group.add_argument("--ids-as-written", action="store_true", help="012 and 12 are two patients")
    group.add_argument("--file", metavar="COLUMN", help="path below DIR (default: file or record)")
    group.add_argument("--record", metavar="COLUMN", help="name of the record (default: record)")
    group.add_argument("--time", metavar="COLUMN", help="date of the ECG (default: time)")
    group.add_argument("--site", metavar="COLUMN", help="where it was taken (default: site)")
    group.add_argument(
        "--keep", action="append", default=[], metavar="COLUMN", help="one more for the index"
    )
    group.add_argument("--key", type=Path, metavar="FILE", help="store names as keyed hashes")
    group.add_argument("--dates", default="keep", help="keep (default), shift (by --key) or drop")


def _add_splits(shard: argparse.ArgumentParser) -> None:
    group = shard.add_argument_group("splits, by patient (default: fractions by a seeded hash)")
    method = group.add_mutually_exclusive_group()
    method.add_argument("--split", metavar="COLUMN", help="holds train, valid or test")
    method.add_argument("--split-by-time", action="store_true", help="by a patient's first --time")
    method.add_argument("--split-by-site", action="store_true", help="by --site")
    method.add_argument("--folds", type=int, default=0, metavar="K", help="K folds (data.fold=…)")
    group.add_argument("--fractions", metavar="A,B,C", help=f"default {FRACTIONS}")
    group.add_argument("--split-seed", type=int, default=0)
    group.add_argument("--stratify", action="store_true", help="equal shares of each label")
    group.add_argument("--repeats", type=int, default=1, metavar="R", help="folds dealt R times")
    group.add_argument("--valid-from", metavar="DATE", default="", help="with --split-by-time")
    group.add_argument("--test-from", metavar="DATE", default="", help="with --split-by-time")
    group.add_argument("--valid-sites", metavar="A,B", default="", help="with --split-by-site")
    group.add_argument("--test-sites", metavar="C,D", default="", help="with --split-by-site")


def _add_signal(shard: argparse.ArgumentParser) -> None:
    group = shard.add_argument_group("processing of a recording (DeepECG-SSL: the defaults)")
    group.add_argument("--to-rate", type=int, default=250, metavar="HZ")
    group.add_argument("--seconds", type=float, default=10.0)
    group.add_argument("--window", default="first", help="first (default), centre or all")
    group.add_argument("--pad-short", action="store_true", help="fill up with zeros, flagged")
    group.add_argument("--missing-leads", default="leave_out", help="leave_out (default) or zero")
    group.add_argument("--clip", action="store_true", help="clip at ±32 mV, flagged")
    group.add_argument("--highpass", type=float, metavar="HZ", help="against baseline wander")
    group.add_argument("--notch", type=float, metavar="HZ", help="against mains: 50 or 60")
    group.add_argument("--resampling", default="resample_poly", help="or decimate: x[::k]")
    group.add_argument(
        "--amplitude-factor", type=float, default=1.0, metavar="F", help="as DeepECG_Docker's"
    )


def _shard(options: argparse.Namespace) -> int:
    check_table(options.table)
    # pandas keeps text in Arrow, whose default allocator does not free memory: 0.2 kB a record
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from hpc_ecg.log import say
    from hpc_ecg.shards.classes import describe_lacks
    from hpc_ecg.shards.format import read_shard_set
    from hpc_ecg.shards.index import describe_outcome
    from hpc_ecg.shards.sharding import shard_ecgs

    outcome = describe_outcome(shard_ecgs(sharding_plan(options)), options.out)
    shards = read_shard_set(options.out)
    say(*outcome, *describe_lacks(shards.index, shards.label_names))
    return 0


def _check_together(options: argparse.Namespace) -> None:
    """ValueError for an option that has no effect without another."""
    by_hash = not (options.split or options.split_by_time or options.split_by_site)
    check_effects(
        options,
        ("valid_from", "--split-by-time", options.split_by_time),
        ("test_from", "--split-by-time", options.split_by_time),
        ("valid_sites", "--split-by-site", options.split_by_site),
        ("test_sites", "--split-by-site", options.split_by_site),
        ("repeats", "--folds", options.folds or options.repeats == 1),
        ("array_row", "--array", options.array),
        ("array_id", "--array without --array-row", options.array and not options.array_row),
        ("stratify", "--fractions or --folds", by_hash or not options.stratify),
        ("stratify", "yes/no labels", not (options.stratify and options.regression)),
        ("split_seed", "splits by hash or --folds", by_hash or not options.split_seed),
        ("fractions", "splits by hash or --stratify", by_hash and not options.folds),
    )


def sharding_plan(options: argparse.Namespace) -> "ShardingPlan":
    """The plan that the options describe; ValueError for options that do not fit together."""
    from hpc_ecg.cohort.privacy import Privacy
    from hpc_ecg.cohort.table import Columns
    from hpc_ecg.jobs.settings import parse_slurm
    from hpc_ecg.shards.shard_task import Recordings
    from hpc_ecg.shards.sharding_plan import ShardingPlan

    layout_given = tuple(n for n in ("axes", "leads", "unit") if getattr(options, n) is not None)
    fill_in(options)
    _check_together(options)
    rate_hz = as_number(options.rate)
    if rate_hz is None and re.match(r"[\d.]+[\s,]*[\d.]*\s*k?(hz)?$", options.rate or "", re.I):
        raise ValueError(f"--rate {options.rate}: give Hz as a plain number, such as 500 or 499.98")
    named = ["patient", "file", "record", "split", "keep", "array", "array_row", "array_id"]
    named += ["ids_as_written"]
    return ShardingPlan(
        table=options.table,
        out=options.out,
        columns=Columns(
            labels=options.label,
            rate=options.rate if rate_hz is None else None,
            time=options.time or ("time" if options.split_by_time else None),
            site=options.site or ("site" if options.split_by_site else None),
            **{name: getattr(options, name) for name in named},
        ),
        recordings=Recordings(
            signals=options.signals,
            layout=layout_of(options, rate_hz),
            signal=_signal(options),
            missing_leads=options.missing_leads,
            clip=options.clip,
        ),
        split=_split(options),
        privacy=Privacy(key_file=options.key, dates=options.dates),
        rate_hz=rate_hz,
        regression=options.regression,
        layout_given=layout_given,
        records_per_shard=options.shard_size,
        workers=options.workers,
        slurm=None if options.slurm is None else parse_slurm(options.slurm),
    )


def _split(options: argparse.Namespace) -> "SplitPlan":
    from hpc_ecg.cohort.splits import SplitPlan, parse_fractions

    return SplitPlan(
        fractions=parse_fractions(FRACTIONS if options.fractions is None else options.fractions),
        seed=options.split_seed,
        stratify=options.stratify,
        time=(options.time or "time") if options.split_by_time else None,
        valid_from=options.valid_from,
        test_from=options.test_from,
        site=(options.site or "site") if options.split_by_site else None,
        valid_sites=tuple(filter(None, options.valid_sites.split(","))),
        test_sites=tuple(filter(None, options.test_sites.split(","))),
        folds=options.folds,
        repeats=options.repeats,
    )


def _signal(options: argparse.Namespace) -> "SignalSpec":
    from hpc_ecg.ecg.filters import Preprocessing
    from hpc_ecg.ecg.preprocess import CALIBRATED, PADDED
    from hpc_ecg.ecg.signal import SignalSpec

    factor = options.amplitude_factor
    steps = Preprocessing(
        resampling=options.resampling, highpass_hz=options.highpass, notch_hz=options.notch
    )
    if not (options.to_rate > 0 and 0 < options.seconds < math.inf):
        raise ValueError(
            "--to-rate and --seconds must be positive numbers, "
            f"got {options.to_rate} and {options.seconds:g}"
        )
    steps.check(options.to_rate)
    return SignalSpec(
        sample_rate_hz=options.to_rate,
        num_samples=round(options.seconds * options.to_rate),
        amplitude=CALIBRATED if factor == 1 else f"{CALIBRATED}*{factor:g}",
        preprocessing=steps.name,
        window=options.window + (PADDED if options.pad_short else ""),
    )
