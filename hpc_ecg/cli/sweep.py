"""`hpc-ecg sweep`: strategies x seeds as one command, here or on Slurm; and how they are.

The verb's own words are settings, as for a run; `status`, `cancel` and `retry` in front of a folder
look after a sweep that was started.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from hpc_ecg.cli.parser import SETTINGS_HELP, Verbs

HELP = "run strategies x seeds; also sweep status, cancel and retry (sweep --help)"
ABOUT = """Run every cell that is not done yet; start it again at any time.

  hpc-ecg sweep status SWEEP_DIR [--watch]    what is queued, runs, is done, has failed
  hpc-ecg sweep cancel SWEEP_DIR [CELL ...]   end these runs, or all; a start goes on with them
  hpc-ecg sweep retry SWEEP_DIR CELL          forget a failure and run it again
"""


def add_sweep(verbs: Verbs) -> None:
    # no word is an option yet: which options there are depends on the first word
    sweep = verbs.add_parser("sweep", help=HELP, add_help=False, prefix_chars="\0")
    sweep.add_argument("words", nargs="*")
    sweep.set_defaults(verb=partial(_sweep, type(sweep), SETTINGS_HELP))


def _sweep(parser_class: type[argparse.ArgumentParser], help: str, given: Any) -> int:
    own = {"status": _status, "cancel": _cancel, "retry": _retry}
    first = given.words[0] if given.words else ""
    if first not in own:
        raw = argparse.RawDescriptionHelpFormatter
        parser = parser_class(prog="hpc-ecg sweep", description=ABOUT, formatter_class=raw)
        parser.add_argument("settings", nargs="*", help=help)
        parser.add_argument(
            "--dry-run", action="store_true", help="print what would run, and write nothing"
        )
        parser.add_argument(
            "--no-wait", action="store_true", help="on Slurm: submit, and do not wait for the runs"
        )
        return _launch(parser.parse_intermixed_args(given.words))
    parser = parser_class(prog=f"hpc-ecg sweep {first}")
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", type=Path)
    if first == "status":
        parser.add_argument("--watch", action="store_true", help="go on until nothing is left")
    else:
        many = "*" if first == "cancel" else None
        parser.add_argument("cells", metavar="CELL", nargs=many, help="as STRATEGY/seed-0")
    return own[first](parser.parse_intermixed_args(given.words[1:]))


def _launch(options: argparse.Namespace) -> int:
    from hpc_ecg.config.load import split_arguments
    from hpc_ecg.log import say, start_logging

    files, words = split_arguments(options.settings)
    from hpc_ecg.sweep.grid import load_sweep

    start_logging()
    sweep = load_sweep(files, words)
    if options.dry_run:
        from hpc_ecg.sweep.dry_run import describe_launch

        say(*describe_launch(sweep))
        return 0
    if options.no_wait and sweep.config.slurm is None:
        raise ValueError("--no-wait is for Slurm: give slurm.partition=… or another of slurm")
    return _run(sweep, wait=not options.no_wait)


def _run(sweep: Any, wait: bool, only: str | None = None) -> int:
    from hpc_ecg.distributed.stop_signals import Preempted
    from hpc_ecg.log import logger, say
    from hpc_ecg.sweep.launch import launch

    folder = sweep.config.sweep_dir
    try:
        failures = launch(sweep, wait, only)
    except Preempted as stopped:
        logger.info("%s", stopped)
        return stopped.code
    for failure in failures:
        say(f"failed: {failure}")
    if not wait:
        say(f"how they are: hpc-ecg sweep status {folder}")
    say(f"compare the runs: hpc-ecg report {folder}")
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
    from hpc_ecg.log import start_logging
    from hpc_ecg.sweep.grid import load_sweep
    from hpc_ecg.sweep.status import check_cells

    check_cells(options.sweep_dir, [options.cells])
    start_logging()
    sweep = load_sweep([str(options.sweep_dir / "sweep.yaml")], [f"sweep_dir={options.sweep_dir}"])
    return _run(sweep, wait=sweep.config.slurm is None, only=options.cells)
