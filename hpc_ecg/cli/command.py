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
from typing import NoReturn

import hpc_ecg
from hpc_ecg.cli.cohort import add_cohort
from hpc_ecg.cli.data import add_data
from hpc_ecg.cli.doctor import add_doctor
from hpc_ecg.cli.evaluate import add_evaluate
from hpc_ecg.cli.report import add_report
from hpc_ecg.cli.sweep import add_sweep
from hpc_ecg.cli.weights import add_weights

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
    add_cohort(verbs)
    add_data(verbs)
    add_weights(verbs)

    finetune = verbs.add_parser("finetune", help="train one run, or go on with it")
    finetune.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    finetune.set_defaults(verb=_finetune)

    add_doctor(verbs, SETTINGS_HELP)
    add_evaluate(verbs)
    add_sweep(verbs, SETTINGS_HELP)
    add_report(verbs)

    config = verbs.add_parser("config", help="print every setting with default and meaning")
    config.add_argument("of", nargs="?", choices=("finetune", "sweep"), help="default: both")
    config.set_defaults(verb=_config)
    return parser


def _finetune(options: argparse.Namespace) -> int:
    from hpc_ecg.config.load import load_config, split_arguments
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import logger, start_logging

    files_and_words = split_arguments(options.settings)
    from hpc_ecg.distributed.process_group import PeerLost
    from hpc_ecg.distributed.stop_signals import Preempted
    from hpc_ecg.distributed.watchdog import EXIT_PEER_LOST
    from hpc_ecg.training.finetune import finetune
    from hpc_ecg.training.settings import FinetuneConfig

    start_logging(read_ranks(os.environ).rank)
    try:
        finetune(load_config(FinetuneConfig, *files_and_words))
    except Preempted as stopped:
        # Slurm ends the processes that are still leaving when the first one has left
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logger.info("%s", stopped)
        return stopped.code
    except PeerLost as lost:
        logger.error("%s", lost)
        return EXIT_PEER_LOST
    return 0


def _config(options: argparse.Namespace) -> int:
    from hpc_ecg.config.describe import explain
    from hpc_ecg.log import say
    from hpc_ecg.sweep.settings import SweepConfig
    from hpc_ecg.training.settings import FinetuneConfig

    if options.of in (None, "finetune"):
        say("# hpc-ecg finetune", "")
        for key, kind, default, text in explain(FinetuneConfig):
            say(f"{key}: {kind} = {default}", f"    {text}")
    if options.of in (None, "sweep"):
        say("", "# hpc-ecg sweep (and every setting above, as run.<key>)", "")
        for key, kind, default, text in explain(SweepConfig):
            say(f"{key}: {kind} = {default}", f"    {text}")
    return 0
