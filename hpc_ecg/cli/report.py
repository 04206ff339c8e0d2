"""`hpc-ecg report FOLDER`: compare the runs of a sweep, or look at one run, and write a page."""

import argparse
import time
from pathlib import Path
from typing import Any

from hpc_ecg.cli.parser import Verbs, check_effects

MIN_REPLICATES, MAX_REPLICATES = 200, 100_000
ONE_TEST_SET, OF_SITES = SWEEPS = "a sweep with one test set", "a sweep with sites=leave_one_out"
EFFECTS: dict[str, Any] = dict.fromkeys(("margin", "no_baselines", "baseline_minutes"), SWEEPS)
EFFECTS |= {"replicates": (ONE_TEST_SET, "one run"), "allow_pipe": (*SWEEPS, "one run")}
"""Of what a report must be for an option to have an effect."""


def add_report(verbs: Verbs) -> None:
    report = verbs.add_parser("report", help="compare the runs of a sweep, or describe one run")
    report.add_argument("sweep_dir", metavar="SWEEP_DIR|RUN_DIR", nargs="?")
    text = "instead: one model's evaluations at several sites, and what to expect at a new one"
    report.add_argument("--across", nargs="+", type=Path, metavar="EVALUATION", help=text)
    report.add_argument("--out", type=Path, help="folder of the page of --across")
    report.add_argument(
        "--margin",
        type=float,
        help="worse by less than this is non-inferior, in the deciding metric (default: the "
        "protocol's, else 0.02)",
    )
    report.add_argument("--replicates", type=int, help="bootstrap replicates (default 2000)")
    report.add_argument(
        "--no-baselines",
        action="store_const",
        const=True,
        help="of a sweep: do not compute age and sex, irregularity, measurements of the ECG",
    )
    report.add_argument("--baseline-minutes", type=float, help="limit of baselines (default 10)")
    report.add_argument(
        "--allow-pipe",
        action="store_const",
        const=True,
        help="run the command in data.shards=pipe:… of the sweep's runs, with your rights",
    )
    report.set_defaults(verb=_report)


def _check_replicates(report: Path, replicates: int) -> None:
    """ValueError for replicates too few for an interval, or fewer than an earlier report has."""
    from hpc_ecg.config.dotted_keys import flatten
    from hpc_ecg.sweep.folder import read_optional

    least, why = MIN_REPLICATES, "the ends of a 95 % interval rest on one replicate in 40"
    earlier = flatten(read_optional(report / "comparison.json")).get("replicates")
    if isinstance(earlier, int) and earlier > least:
        least, why = earlier, f"{report} was made with so many; move it away to replace it by fewer"
    if replicates > MAX_REPLICATES:
        raise ValueError(f"--replicates must be at most {MAX_REPLICATES}, got {replicates}")
    if replicates < least:
        raise ValueError(f"--replicates must be at least {least}, got {replicates}: {why}")


def _check_given(options: argparse.Namespace, form: str) -> None:
    """ValueError for an option that has no effect on a report of this."""
    needs = [(name, " or ".join(forms), form in forms) for name, forms in EFFECTS.items()]
    kept, has_baselines = "baselines, without --no-baselines", not options.no_baselines
    check_effects(options, *needs, ("baseline_minutes", kept, has_baselines))
    check_effects(options, ("allow_pipe", kept, has_baselines or form != OF_SITES))


def _report(options: argparse.Namespace) -> int:
    if bool(options.sweep_dir) == bool(options.across) or bool(options.across) != bool(options.out):
        raise ValueError("report: give SWEEP_DIR, or --across EVALUATION … --out FOLDER")
    if options.across:
        _check_given(options, "--across")
        from hpc_ecg.comparison.across import write_across
        from hpc_ecg.log import say

        say(f"report: {write_across(options.across, options.out)}")
        return 0
    folder = Path(options.sweep_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that a sweep made")
    from hpc_ecg.comparison.results import is_run, read_results
    from hpc_ecg.sweep.protocol import read_margin

    _check_given(options, "one run" if is_run(folder) else ONE_TEST_SET)
    replicates = 2000 if options.replicates is None else options.replicates
    minutes = 10.0 if options.baseline_minutes is None else options.baseline_minutes
    _check_replicates(folder / "report", replicates)
    if not minutes >= 0:
        raise ValueError(f"--baseline-minutes must be 0 or more, got {minutes:g}")
    margin = read_margin(folder, options.margin)

    from hpc_ecg.comparison.across import write_left_out_sites
    from hpc_ecg.comparison.compare import compare
    from hpc_ecg.comparison.headline import run_sentences
    from hpc_ecg.comparison.report import write_comparison
    from hpc_ecg.comparison.terminal import format_table
    from hpc_ecg.log import say
    from hpc_ecg.sweep.arms import LEFT_OUT_SITE

    runs, problems = read_results(folder)
    over_sites = any(LEFT_OUT_SITE in run.varied for run in runs)
    if over_sites:
        _check_given(options, OF_SITES)
    if not options.no_baselines and not is_run(folder):
        _write_baselines(folder, runs, minutes, bool(options.allow_pipe))
    if over_sites:
        about = (runs, problems), not options.no_baselines, margin
        say(f"report: {write_left_out_sites(folder, *about)}")
        return 0
    comparison = compare(folder, replicates, margin=margin)
    paths = write_comparison(comparison, folder, bool(options.allow_pipe))
    single = "\n".join(run_sentences(comparison)) if is_run(folder) else ""
    say(single or format_table(comparison), "", f"report: {paths.page}")
    return 0


def _write_baselines(folder: Path, runs: list[Any], minutes: float, allow_pipe: bool) -> None:
    from hpc_ecg.comparison.baselines import write_baselines
    from hpc_ecg.comparison.reference_models import baseline_folders
    from hpc_ecg.log import describe_error, logger
    from hpc_ecg.training.open_run import load_run

    permission = ["data.allow_pipe=true"] if allow_pipe else []
    end = time.monotonic() + 60 * minutes
    for name, run in baseline_folders(runs).items():
        try:
            left = max(end - time.monotonic(), 0.0) / 60
            write_baselines(load_run(str(run.folder.path), permission), folder / name, left)
        except (ValueError, OSError) as error:
            logger.warning(f"no {name}: {describe_error(error)}")


def add_protocol(verbs: Verbs) -> None:
    actions = verbs.add_parser("protocol", help="verify the protocol of a sweep")
    check = actions.add_subparsers(required=True, metavar="ACTION").add_parser(
        "check", help="verify digests and order, and say what changed: exit code 0 or 1"
    )
    check.add_argument("sweep_dir", metavar="SWEEP_DIR", type=Path)
    check.set_defaults(verb=_check_protocol)


def _check_protocol(options: argparse.Namespace) -> int:
    from hpc_ecg.log import say
    from hpc_ecg.sweep.protocol_check import check_protocol

    is_kept, lines = check_protocol(options.sweep_dir)
    say(*lines)
    return 0 if is_kept else 1
