"""The command `hpc-ecg`: verbs, and for each the module that does it.

A verb's module is imported inside the verb, so that `--help` answers at once (torch alone takes
seconds). Runs take `section.key=value`; verbs on files take flags. What the user got wrong is a
ValueError: one line on standard error and exit code 2.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hpc_ecg
from hpc_ecg.cli_weights import add_weights

if TYPE_CHECKING:
    from hpc_ecg.data.sharding import ShardingPlan

SETTINGS_HELP = "YAML files and settings key=value, later over earlier; `hpc-ecg config` lists them"


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line, as the verbs do; argparse would print the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return options.verb(options)
    except (ValueError, OSError) as error:
        if os.environ.get("HPC_ECG_DEBUG"):
            raise
        rank = os.environ.get("SLURM_PROCID" if "SLURM_STEP_ID" in os.environ else "RANK", "0")
        who = "hpc-ecg" if rank == "0" else f"hpc-ecg, process {rank}"
        # a file's own words may be part of it
        line = "".join(c if c.isprintable() else " " for c in f"{who}: {error}")
        print(line, file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("hpc-ecg: interrupted; start it again to go on", file=sys.stderr)  # noqa: T201
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hpc-ecg",
        description="Fine-tune the DeepECG-SSL transformer and learn which start is best.",
    )
    parser.add_argument("--version", action="version", version=hpc_ecg.__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_data(verbs)
    add_weights(verbs)

    finetune = verbs.add_parser("finetune", help="train one run, or go on with it")
    finetune.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    finetune.set_defaults(verb=_finetune)

    evaluate = verbs.add_parser("evaluate", help="score a finished run on its test split")
    evaluate.add_argument("run_dir", metavar="RUN_DIR")
    evaluate.add_argument("settings", nargs="*", help="settings laid over the run's own")
    evaluate.set_defaults(verb=_evaluate)

    sweep = verbs.add_parser("sweep", help="run strategies x seeds")
    sweep.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    sweep.set_defaults(verb=_sweep)

    report = verbs.add_parser("report", help="compare the runs of a sweep")
    report.add_argument("sweep_dir", metavar="SWEEP_DIR")
    report.set_defaults(verb=_report)

    config = verbs.add_parser("config", help="print every setting with default and meaning")
    config.add_argument("of", nargs="?", choices=("finetune", "sweep"), help="default: both")
    config.set_defaults(verb=_config)
    return parser


def _add_data(verbs: "argparse._SubParsersAction[Parser]") -> None:
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


def _finetune(options: argparse.Namespace) -> int:
    _check_words(options.settings)
    from hpc_ecg.config import load_config
    from hpc_ecg.training.finetune import FinetuneConfig, finetune

    _start_logging()
    finetune(load_config(FinetuneConfig, *_files_and_words(options.settings)))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from hpc_ecg.training.evaluate import describe_evaluation, evaluate, load_run

    rank = _start_logging()
    result = evaluate(load_run(options.run_dir, options.settings))
    if rank == 0:
        _say(*describe_evaluation(result), f"written: {options.run_dir}/evaluation.json")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    _check_words(options.settings)
    from hpc_ecg.sweep.grid import load_sweep
    from hpc_ecg.sweep.launch import launch

    _start_logging()
    # as Ctrl-C: the runs are stopped, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sweep = load_sweep(*_files_and_words(options.settings))
    failures = launch(sweep)
    for failure in failures:
        _say(f"failed: {failure}")
    _say(f"compare the runs: hpc-ecg report {sweep.config.sweep_dir}")
    return 1 if failures else 0


def _report(options: argparse.Namespace) -> int:
    from hpc_ecg.sweep.compare import compare
    from hpc_ecg.sweep.report import format_table, write_comparison

    folder = Path(options.sweep_dir)
    comparison = compare(folder)
    _say(format_table(comparison), "", f"report: {write_comparison(comparison, folder).page}")
    return 0


def _config(options: argparse.Namespace) -> int:
    from hpc_ecg.explain import explain
    from hpc_ecg.sweep.grid import SweepConfig
    from hpc_ecg.training.finetune import FinetuneConfig

    if options.of in (None, "finetune"):
        _say("# hpc-ecg finetune", "")
        for key, kind, default, text in explain(FinetuneConfig):
            _say(f"{key}: {kind} = {default}", f"    {text}")
    if options.of in (None, "sweep"):
        _say("", "# hpc-ecg sweep (and every setting above, as run.<key>)", "")
        for key, kind, default, text in explain(SweepConfig):
            _say(f"{key}: {kind} = {default}", f"    {text}")
    return 0


def _shard(options: argparse.Namespace) -> int:
    from hpc_ecg.data.sharding import describe_outcome, shard_ecgs

    _start_logging()
    _say(*describe_outcome(shard_ecgs(_sharding_plan(options)), options.out))
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


def _check_words(settings: Sequence[str]) -> None:
    """Before torch is imported: seconds matter to somebody who mistyped."""
    for word in settings:
        if "=" not in word and not word.endswith((".yaml", ".yml")):
            raise ValueError(f"{word!r} is neither a .yaml file nor a setting key=value")


def _files_and_words(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    files = [word for word in settings if "=" not in word]
    return files, [word for word in settings if "=" in word]


def _start_logging() -> int:
    from hpc_ecg.cluster import read_ranks
    from hpc_ecg.log import start_logging

    rank = read_ranks(os.environ).rank
    start_logging(rank)
    return rank


def _say(*lines: str) -> None:
    for line in lines:
        print(line)  # noqa: T201
