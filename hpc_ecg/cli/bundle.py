"""`hpc-ecg bundle MODEL OUT`: a folder that a colleague can use."""

import argparse
from pathlib import Path

from hpc_ecg.cli.parser import Verbs


def add_bundle(verbs: Verbs) -> None:
    text = "write a folder with all that a colleague needs to use a model"
    bundle = verbs.add_parser("bundle", help=text)
    bundle.add_argument("model", type=Path, metavar="MODEL", help="a run, or a sweep")
    bundle.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    bundle.add_argument("--strategy", metavar="NAME", help="of a sweep")
    bundle.add_argument("--ensemble", action="store_true", help="all seeds, not the best one")
    bundle.add_argument("--onnx", action="store_true", help="also as ONNX")
    bundle.set_defaults(verb=_bundle)


def _bundle(options: argparse.Namespace) -> int:
    from hpc_ecg.log import say

    if options.out.exists():
        raise ValueError(f"{options.out} exists; give the name of a new folder")

    from hpc_ecg.inference.bundle import write_bundle
    from hpc_ecg.inference.model_source import open_model
    from hpc_ecg.inference.prediction_job import load_forward

    model = open_model(options.model, options.strategy, options.ensemble)
    with load_forward(model, options.out.parent) as forward:
        say(*write_bundle(model, options.out, forward, options.onnx))
    return 0
