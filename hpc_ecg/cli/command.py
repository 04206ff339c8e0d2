"""The command `hpc-ecg`: verbs, and for each the module that does it.

A verb's module is imported inside the verb, so that `--help` answers at once (torch alone takes
seconds). Runs take `section.key=value`; verbs on files take flags. What the user got wrong is a
ValueError: one line on standard error and exit code 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import hpc_ecg
from hpc_ecg.cli.cohort import add_cohort
from hpc_ecg.cli.config import add_config
from hpc_ecg.cli.data import add_data
from hpc_ecg.cli.doctor import add_doctor
from hpc_ecg.cli.evaluate import add_evaluate
from hpc_ecg.cli.finetune import add_finetune
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

    add_finetune(verbs, SETTINGS_HELP)

    add_doctor(verbs, SETTINGS_HELP)
    add_evaluate(verbs)
    add_sweep(verbs, SETTINGS_HELP)
    add_report(verbs)

    add_config(verbs)
    return parser
