"""`hpc-ecg sweep`: run strategies x seeds with one command, locally or on Slurm.

Its arguments are settings, as for a run, unless the first one is `status`, `cancel` or `retry`:
these take the folder of a sweep that was started.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ecg.cli.parser import SETTINGS_HELP, Parser, Verbs
from hpc_ecg.config.suggestions import did_you_mean

if TYPE_CHECKING:
    from hpc_ecg.sweep.grid import Sweep

HELP = "run strategies x seeds; also sweep status, cancel and retry (sweep --help)"
DESCRIPTION = """Run every cell that is not done yet; it can be started again at any time.

  hpc-ecg sweep status SWEEP_DIR [--watch]    show what is queued, running, done or failed
  hpc-ecg sweep cancel SWEEP_DIR [CELL ...]   stop these runs, or all; starting again resumes them
  hpc-ecg sweep retry SWEEP_DIR CELL          forget a failure and run the cell again; settings
                                              key=value may follow
"""
EXIT_KILLED = 137
"""A run was killed: slurm/sweep.sh starts the sweep again, which continues it."""


def add_sweep(verbs: Verbs) -> None:
    # This takes all arguments as they are: which options there are depends on the first one.
    sweep = verbs.add_parser("sweep", help=HELP, add_help=False, prefix_chars="\0")
    sweep.add_argument("arguments", nargs="*")
    names = ("", "status", "cancel", "retry")
    sweep.set_defaults(verb=_sweep, parsers={name: partial(_parser, name) for name in names})


def _sweep(command: argparse.Namespace) -> int:
    subcommands = {"status": _status, "cancel": _cancel, "retry": _retry}
    first = command.arguments[0] if command.arguments else ""
    hint = did_you_mean(first, subcommands)
    if hint and first not in subcommands and "." not in first and "=" not in first:
        raise ValueError(f"sweep {first}: neither a setting nor {', '.join(subcommands)}{hint}")
    if first not in subcommands:
        return _launch(_parser("").parse_intermixed_args(command.arguments))
    return subcommands[first](_parser(first).parse_intermixed_args(command.arguments[1:]))


def _parser(subcommand: str) -> Parser:
    """The parser of status, cancel or retry; of the sweep itself without a name."""
    if not subcommand:
        raw = argparse.RawDescriptionHelpFormatter
        parser = Parser(prog="hpc-ecg sweep", description=DESCRIPTION, formatter_class=raw)
        parser.add_argument("settings", nargs="*", help=SETTINGS_HELP)
        text = "print what would run, and write nothing"
        parser.add_argument("--dry-run", action="store_true", help=text)
        text = "on Slurm: submit, and do not wait for the runs"
        parser.add_argument("--no-wait", action="store_true", help=text)
        text = "predict the test split although runs are missing (else: once none is left)"
        parser.add_argument("--open-test", action="store_true", help=text)
        return parser
    parser = Parser(prog=f"hpc-ecg sweep {subcommand}")
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", type=Path)
    if subcommand == "status":
        parser.add_argument("--watch", action="store_true", help="repeat until nothing is left")
    else:
        nargs = "*" if subcommand == "cancel" else None
        parser.add_argument("cells", metavar="CELL", nargs=nargs, help="such as STRATEGY/seed-0")
    if subcommand == "retry":
        parser.add_argument("settings", nargs="*", help="key=value, permissions above all")
    return parser


def _launch(options: argparse.Namespace) -> int:
    from hpc_ecg.config.load import split_arguments
    from hpc_ecg.log import say

    files, overrides = split_arguments(options.settings)
    from hpc_ecg.sweep.grid import load_sweep

    sweep = load_sweep(files, overrides)
    if options.dry_run:
        from hpc_ecg.sweep.dry_run import describe_launch

        say(*describe_launch(sweep))
        return 0
    if options.no_wait and sweep.config.slurm is None:
        raise ValueError("--no-wait is for Slurm: give slurm.partition=… or another of slurm")
    return _run(sweep, wait=not options.no_wait, open_now=options.open_test)


def _run(sweep: "Sweep", wait: bool, only: str | None = None, open_now: bool = False) -> int:
    """Launch the sweep, print what comes next and, last, failures; return the exit code."""
    from hpc_ecg.distributed.stop_signals import Preempted
    from hpc_ecg.log import logger, say
    from hpc_ecg.sweep.folder import has_killed_runs
    from hpc_ecg.sweep.launch import launch

    folder = sweep.config.sweep_dir
    try:
        failures = launch(sweep, wait, only, open_now)
    except Preempted as stopped:
        logger.info("%s", stopped)
        return stopped.code
    if not wait:
        say(f"check on them: hpc-ecg sweep status {folder}")
    tested = len([*Path(folder).glob("*/seed-*/evaluation.json")])
    if tested or not failures:
        which = f"the {tested} finished" if failures else "the runs"
        say(f"compare {which}: hpc-ecg report {folder}")
    if failures:
        say(
            f"{len(failures)} failed. Mend the cause and give the same command again: what is done "
            f"stays. For one run: hpc-ecg sweep retry {folder} CELL",
            *(f"failed: {failure}" for failure in failures),
        )
    if failures and sweep.config.slurm is None and has_killed_runs(Path(folder)):
        return EXIT_KILLED
    return 1 if failures else 0


def _status(options: argparse.Namespace) -> int:
    from hpc_ecg.sweep.status import print_status

    print_status(options.sweep_dir, options.watch)
    return 0


def _cancel(options: argparse.Namespace) -> int:
    from hpc_ecg.log import say
    from hpc_ecg.sweep.status import cancel_cells

    say(*cancel_cells(options.sweep_dir, options.cells))
    return 0


def _retry(options: argparse.Namespace) -> int:
    from hpc_ecg.sweep.grid import load_sweep
    from hpc_ecg.sweep.status import check_cells

    check_cells(options.sweep_dir, [options.cells])
    settings = [*options.settings, f"sweep_dir={options.sweep_dir}"]
    sweep = load_sweep([str(options.sweep_dir / "sweep.yaml")], settings, of_folder=True)
    return _run(sweep, wait=sweep.config.slurm is None, only=options.cells)
