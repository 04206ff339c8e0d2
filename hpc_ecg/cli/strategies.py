"""`hpc-ecg strategies`: list the strategies and options for a sweep, with descriptions."""

import argparse
from pathlib import Path
from textwrap import wrap

from hpc_ecg.cli.parser import Verbs

WIDTH = 80


def add_strategies(verbs: Verbs) -> None:
    strategies = verbs.add_parser("strategies", help="list strategies and options for a sweep")
    strategies.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="default: the built-in ones"
    )
    strategies.set_defaults(verb=_strategies)


def _strategies(options: argparse.Namespace) -> int:
    from hpc_ecg.config.built_in import STRATEGIES, list_strategies
    from hpc_ecg.log import say

    folder = options.folder or STRATEGIES
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    listed = dict(list_strategies(folder))
    if not listed:
        raise ValueError(f"{folder} holds no strategy; expected NAME.yaml, or with/OPTION.yaml")
    column = 2 + max(map(len, listed))
    for name, text in listed.items():
        lines = wrap(text, WIDTH - column) or [""]
        say(f"{name:<{column}}{lines[0]}", *(f"{'':<{column}}{line}" for line in lines[1:]))
    return 0
