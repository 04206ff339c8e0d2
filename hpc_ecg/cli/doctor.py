"""`hpc-ecg doctor`: the settings of a run in, a line for each finding out."""

import argparse
import os
from typing import Any


def add_doctor(verbs: Any, settings_help: str) -> None:
    doctor = verbs.add_parser("doctor", help="check cluster, data and weights before a run")
    doctor.add_argument("settings", nargs="*", help=settings_help)
    doctor.set_defaults(verb=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    """2 if something is an error, as for any mistake."""
    import logging
    from collections import Counter

    from hpc_ecg.config.load import load_config
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import start_logging
    from hpc_ecg.preflight.doctor import ENGINE, diagnose
    from hpc_ecg.training.settings import FinetuneConfig

    rank = read_ranks(os.environ).rank
    start_logging(rank)
    logging.getLogger("hpc_ecg").setLevel(logging.WARNING)
    files = [word for word in options.settings if "=" not in word]
    words = [word for word in options.settings if "=" in word]
    levels: Counter[str] = Counter()
    for finding in diagnose(load_config(FinetuneConfig, files, words)):
        levels[finding.level] += 1
        if rank == 0 or finding.name == ENGINE:
            print(finding, flush=True)  # noqa: T201 - seen even if the next check hangs
    if rank == 0:
        print(", ".join(f"{count} {level}" for level, count in levels.items()))  # noqa: T201
    return 2 if levels["error"] else 0
