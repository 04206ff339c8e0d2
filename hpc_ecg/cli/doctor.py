"""`hpc-ecg doctor`: check whether a run would work; settings in, a line per finding out."""

import argparse
import os

from hpc_ecg.cli.parser import SETTINGS_HELP, Verbs
from hpc_ecg.version import __version__


def add_doctor(verbs: Verbs) -> None:
    doctor = verbs.add_parser("doctor", help="check cluster, data and weights before a run")
    doctor.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    doctor.add_argument("--json", action="store_true", help="for a program, or a bug report")
    doctor.set_defaults(verb=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    """Print the findings; the exit code is 2 if one is an error."""
    import json
    import logging
    from collections import Counter

    from hpc_ecg.config.load import load_config, split_arguments
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import say
    from hpc_ecg.training.settings import FinetuneConfig

    rank = read_ranks(os.environ).rank
    logging.getLogger("hpc_ecg").setLevel(logging.WARNING)
    config = load_config(FinetuneConfig, *split_arguments(options.settings))

    from hpc_ecg.preflight.doctor import ENGINE, diagnose

    levels: Counter[str] = Counter()
    findings, step = [], None
    for finding in diagnose(config):
        levels[finding.level] += 1
        findings.append(finding._asdict())
        step = findings[-1].pop("step") or step
        if not options.json and (rank == 0 or finding.name == ENGINE):
            say(str(finding))  # seen even if the next check hangs
    if options.json and rank == 0:
        say(json.dumps({"hpc_ecg": __version__, "findings": findings, "step": step}, indent=1))
    elif rank == 0:
        say(", ".join(f"{count} {level}" for level, count in levels.items()))
    return 2 if levels["error"] else 0
