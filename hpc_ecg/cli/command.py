"""The command `hpc-ecg`: its parser, and how errors are reported.

A verb imports its modules when it is called, so that `--help` answers at once (torch alone takes
seconds). Runs take `section.key=value`; verbs on files take flags. A user's mistake is a
ValueError, reported as one line on standard error with exit code 2.
"""

import gc
import os
import socket
import sys
from collections.abc import Sequence
from importlib import import_module

from hpc_ecg.cli.parser import Parser
from hpc_ecg.version import __version__

VERBS = "cohort data weights finetune doctor plan evaluate predict bundle embed explain audit "
VERBS += "combine update sweep strategies report protocol config completion"
"""In the order of the help; the file of each has a function add_VERB."""
SHARES_FILE = {"embed": "predict", "protocol": "report"}
FIRST_LINE_S, QUICK = 0.5, ("completion", "config", "strategies", "protocol")
"""A verb that has said nothing after so long says that it is at work, except these."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 for a user's mistake, or the verb's own."""
    gc.set_threshold(50_000, 20, 50)  # a fifth of the time to import torch was garbage collection
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in ([], ["help"]):
        given = [*(word for word in given if word != "help"), "--help"]
    options = build_parser().parse_args(given)
    rank = os.environ.get("SLURM_PROCID" if "SLURM_STEP_ID" in os.environ else "RANK", "0")
    from hpc_ecg.log import EVERY_S, describe_error, start_logging, waiting_for

    start_logging(int(rank) if rank.isdecimal() else 0)
    try:
        first_s = EVERY_S if given[0] in QUICK else FIRST_LINE_S
        with waiting_for(f"hpc-ecg {given[0]}: at work", first_s):
            return options.verb(options)
    except (ValueError, OSError) as error:
        if os.environ.get("HPC_ECG_DEBUG"):
            raise
        program = "hpc-ecg" if rank == "0" else f"hpc-ecg, process {rank} on {socket.gethostname()}"
        print(f"{program}: {describe_error(error)}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("hpc-ecg: interrupted; start it again to go on", file=sys.stderr)  # noqa: T201
        return 130


def build_parser() -> Parser:
    parser = Parser(
        prog="hpc-ecg",
        description="Fine-tune the DeepECG-SSL transformer and find out which start works best.",
        epilog="hpc-ecg help VERB describes a verb and its options.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS.split():
        module = import_module(f"hpc_ecg.cli.{SHARES_FILE.get(verb, verb)}")
        getattr(module, f"add_{verb}")(verbs)
    return parser
