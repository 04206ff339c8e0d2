#!/usr/bin/env python3
"""Benchmarks of this package against the plain way: `tools/benchmark.py NAME [--json FILE] …`.

NAME is a file of tools/benchmarks/; `tools/benchmark.py NAME --help` lists its own options. Its
`measure` returns numbers by name; its TARGETS say how large some of them may be, its AT_LEAST how
large they must be.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"


def main(arguments: list[str]) -> int:
    # statistics_.py: a file of the standard library's name would hide it from the others
    files = {path.stem.rstrip("_"): path.stem for path in sorted(BENCHMARKS.glob("[a-z]*.py"))}
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("name", choices=list(files))
    name = parser.parse_args(arguments[:1]).name
    sys.path.insert(0, str(BENCHMARKS))
    benchmark = importlib.import_module(files[name])
    parser = argparse.ArgumentParser(
        prog=f"benchmark.py {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    benchmark.add_options(parser)
    options = parser.parse_args(arguments[1:])
    try:
        numbers: dict[str, float] = benchmark.measure(options)
    except ValueError as error:
        parser.error(str(error))
    show(numbers, benchmark.TARGETS, getattr(benchmark, "AT_LEAST", {}))
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    return 0


def show(numbers: dict[str, float], at_most: dict[str, float], at_least: dict[str, float]) -> None:
    """A line per number; those with a target say whether it is met."""
    for name, number in numbers.items():
        met = ""
        if name in at_most:
            met = f"at most {at_most[name]}: {'yes' if number <= at_most[name] else 'NO'}"
        elif name in at_least:
            met = f"at least {at_least[name]}: {'yes' if number >= at_least[name] else 'NO'}"
        print(f"{name:<34} {number:>10.3f}  {met}".rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
