#!/usr/bin/env python3
"""Benchmark this package against simpler alternatives: `tools/benchmark.py NAME [--json FILE] …`.

NAME is a module in tools/benchmarks/; `tools/benchmark.py NAME --help` lists its options. Each
module's `measure` returns numbers by name. TARGETS and AT_LEAST hold upper and lower bounds for
some of them.
"""

import argparse
import importlib
import sys
from pathlib import Path

from hpc_ecg.atomic_io import check_may_write, write_json
from hpc_ecg.safe_reading import read_json

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"


def main(arguments: list[str]) -> int:
    # The trailing underscore of statistics_.py keeps it from shadowing the standard library.
    modules = {path.stem.rstrip("_"): path.stem for path in sorted(BENCHMARKS.glob("[a-z]*.py"))}
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("name", choices=list(modules))
    name = parser.parse_args(arguments[:1]).name
    sys.path.insert(0, str(BENCHMARKS))
    benchmark = importlib.import_module(modules[name])
    parser = argparse.ArgumentParser(
        prog=f"benchmark.py {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    benchmark.add_options(parser)
    options = parser.parse_args(arguments[1:])
    try:
        if options.json:
            check_may_write(options.json, not options.json.exists() or _is_ours(options.json))
        numbers: dict[str, float] = benchmark.measure(options)
    except ValueError as error:
        parser.error(str(error))
    print_numbers(numbers, benchmark.TARGETS, getattr(benchmark, "AT_LEAST", {}))
    if options.json:
        write_json(options.json, numbers)
    return 0


def _is_ours(path: Path) -> bool:
    """Whether the file holds the numbers of an earlier benchmark."""
    numbers = read_json(path)
    return isinstance(numbers, dict) and all(isinstance(n, int | float) for n in numbers.values())


def print_numbers(
    numbers: dict[str, float], at_most: dict[str, float], at_least: dict[str, float]
) -> None:
    """Print one line per number, and whether it meets its target, if any."""
    for name, number in numbers.items():
        verdict = ""
        if name in at_most:
            verdict = f"at most {at_most[name]}: {'yes' if number <= at_most[name] else 'NO'}"
        elif name in at_least:
            verdict = f"at least {at_least[name]}: {'yes' if number >= at_least[name] else 'NO'}"
        print(f"{name:<34} {number:>10.3f}  {verdict}".rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
