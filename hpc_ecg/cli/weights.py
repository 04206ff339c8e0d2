"""`hpc-ecg weights`: inspect, compare, convert and change files of weights.

`inspect` and `diff` need no torch and answer within a second; the others import it.
"""

import argparse
import json
from pathlib import Path

from hpc_ecg.cli.parser import Verbs

FILE_HELP = "base_ssl.pt, a fine-tuned .pt, model.safetensors or a run's folder"
OUT_HELP = "by its ending: .pt (the original's layout), .safetensors or .onnx"


def add_weights(verbs: Verbs) -> None:
    weights = verbs.add_parser("weights", help="inspect, convert and compare checkpoints")
    weights_verbs = weights.add_subparsers(required=True, metavar="VERB")

    inspect = weights_verbs.add_parser("inspect", help="describe a file without running its code")
    inspect.add_argument("file", metavar="FILE", help=FILE_HELP)
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(verb=_inspect)

    diff = weights_verbs.add_parser("diff", help="show which tensors differ, and by how much")
    diff.add_argument("first", metavar="A", help=FILE_HELP)
    diff.add_argument("second", metavar="B", help="the same; layouts may differ")
    diff.add_argument("--json", action="store_true", help="print JSON, with every tensor")
    diff.add_argument("--exit-code", action="store_true", help="exit with 1 if they differ")
    diff.set_defaults(verb=_diff)

    convert = weights_verbs.add_parser("convert", help="write the weights in another format")
    _add_in_and_out(convert)
    convert.add_argument(
        "--strip",
        action="store_true",
        help="keep only tensors, sizes, labels and signal: no optimizer, history, paths, scores",
    )
    convert.add_argument("--labels", metavar="A,B", help="names of the head's labels, in order")
    convert.set_defaults(verb=_convert)

    reset = weights_verbs.add_parser("reset-head", help="replace the head by a new one")
    _add_in_and_out(reset)
    reset.add_argument(
        "--seed", type=int, required=True, help="like `seed` of a run with init.head=new"
    )
    size = reset.add_mutually_exclusive_group()
    size.add_argument("--labels", metavar="A,B", help="names of the labels, in order")
    size.add_argument("--num-labels", type=int, metavar="K", help="default: as many as before")
    reset.set_defaults(verb=_reset_head)

    soup = weights_verbs.add_parser("soup", help="average the weights of several runs")
    soup.add_argument("out", type=Path, metavar="OUT", help=OUT_HELP)
    soup.add_argument(
        "sources", nargs="+", metavar="IN", help="a file, a run's folder or its best/"
    )
    soup.add_argument("--force", action="store_true", help="replace OUT if it exists")
    soup.set_defaults(verb=_soup)


def _add_in_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help=FILE_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help=OUT_HELP)
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def _inspect(options: argparse.Namespace) -> int:
    from hpc_ecg.weights.inspect_file import describe, inspect

    facts = inspect(options.file)
    _say(*([json.dumps(facts, indent=1)] if options.json else describe(facts)))
    return 0


def _diff(options: argparse.Namespace) -> int:
    from hpc_ecg.weights.diff import describe, diff

    result = diff(options.first, options.second)
    _say(*([json.dumps(result, indent=1)] if options.json else describe(result)))
    return int(options.exit_code and not result["identical"])


def _convert(options: argparse.Namespace) -> int:
    from hpc_ecg.weights.convert import convert

    changes = {"strip": options.strip, "labels": _names(options.labels), "force": options.force}
    _say(*convert(options.source, options.out, **changes))
    return 0


def _reset_head(options: argparse.Namespace) -> int:
    from hpc_ecg.weights.convert import reset_head

    lines = reset_head(
        options.source,
        options.out,
        seed=options.seed,
        labels=_names(options.labels),
        num_labels=options.num_labels,
        force=options.force,
    )
    _say(*lines)
    return 0


def _soup(options: argparse.Namespace) -> int:
    from hpc_ecg.weights.convert import soup

    _say(*soup(options.sources, options.out, force=options.force))
    return 0


def _names(text: str | None) -> list[str] | None:
    """The names between commas; ValueError for an empty name or a repeated one."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--labels must be different names with commas between, got {text!r}")
    return names


def _say(*lines: str) -> None:
    from hpc_ecg.log import say

    say(*lines)
