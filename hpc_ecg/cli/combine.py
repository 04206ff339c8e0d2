"""`hpc-ecg combine RUN --covariates age,sex`: the network and clinical data in one model."""

import argparse

from hpc_ecg.cli.parser import Verbs


def add_combine(verbs: Verbs) -> None:
    text = "join a run's network and clinical data in one model"
    combine = verbs.add_parser("combine", help=text)
    combine.add_argument("run_dir", metavar="RUN")
    combine.add_argument("--covariates", metavar="A,B,…", required=True, help="such as age,sex")
    combine.set_defaults(verb=_combine)


def _combine(options: argparse.Namespace) -> int:
    from hpc_ecg.comparison.wording import FORMATS
    from hpc_ecg.inference.combine import combine
    from hpc_ecg.log import say
    from hpc_ecg.reporting.html import render_text

    names = [name.strip() for name in options.covariates.split(",")]
    combined = combine(options.run_dir, names)
    say(render_text("combined.md.jinja", combined=combined, **FORMATS))
    say(f"written: {options.run_dir}/combine.json")
    return 0
