"""`hpc-ecg config`: print every setting with its default and meaning."""

import argparse

from hpc_ecg.cli.parser import Verbs


def add_config(verbs: Verbs) -> None:
    config = verbs.add_parser("config", help="print every setting with default and meaning")
    config.add_argument("of", nargs="?", choices=("finetune", "sweep"), help="default: both")
    config.set_defaults(verb=_config)


def _config(options: argparse.Namespace) -> int:
    from hpc_ecg.config.describe import describe_settings
    from hpc_ecg.log import say
    from hpc_ecg.sweep.settings import SweepConfig
    from hpc_ecg.training.settings import FinetuneConfig

    def print_settings(schema: type) -> None:
        for key, kind, default, text in describe_settings(schema):
            say(f"{key}: {kind} = {default}", f"    {text}")

    if options.of in (None, "finetune"):
        say("# hpc-ecg finetune", "")
        print_settings(FinetuneConfig)
    if options.of in (None, "sweep"):
        say("", "# hpc-ecg sweep (and every setting above, as run.<key>)", "")
        print_settings(SweepConfig)
    return 0
