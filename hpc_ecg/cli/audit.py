"""`hpc-ecg audit RUN`: membership inference before weights are given away."""

import argparse
import os

from hpc_ecg.cli.parser import Verbs


def add_audit(verbs: Verbs) -> None:
    text = "measure what weights reveal about training patients"
    audit = verbs.add_parser("audit", help=text)
    audit.add_argument("run_dir", metavar="RUN")
    audit.set_defaults(verb=_audit)


def _audit(options: argparse.Namespace) -> int:
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import say
    from hpc_ecg.training.open_run import finished_run

    finished_run(options.run_dir)

    from hpc_ecg.inference.audit import AUDIT, audit, describe_audit, warnings_of

    found = audit(options.run_dir)
    if read_ranks(os.environ).rank == 0:
        say(*describe_audit(found), *warnings_of(found), f"written: {options.run_dir}/{AUDIT}")
    return 0
