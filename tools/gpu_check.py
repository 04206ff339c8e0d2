#!/usr/bin/env python3
"""`make gpu-check`: everything that only a GPU can show, within eight minutes, without a network.

Environment, the tests marked `gpu`, the loss curve against the CPU's, speed, and the costs of a
run. What is measured is written to OUT at once, so that being cut off loses nothing. The exit code
is 1 if a test fails or a part crashes. Without a GPU it says what was not measured; --rehearse runs
all of it at a tiny size on the CPU, which is no evidence.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from gpu.parts import PARTS, Clock, Runner, run_apart, seconds_for  # noqa: E402
from gpu.verdicts import UNKNOWN, card_of, count_outcomes, rows_of, shown, verdicts  # noqa: E402

from hpc_ecg.atomic_io import check_may_write, write_json  # noqa: E402
from hpc_ecg.safe_reading import read_json  # noqa: E402

KIND = "hpc_ecg gpu-check"
NEEDS_GPU = ("curve", "speed", "costs")
FIGURES = ("ecg_per_s", "mfu", "share", "memory_gb", "seconds", "largest", "save_seconds", "name")


def main(arguments: Sequence[str], run_part: Runner = run_apart, **more: Any) -> int:
    """`run_part` runs a part; `more` are options for the parts."""
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check.json"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all (default 8)")
    parser.add_argument("--rehearse", action="store_true", help="run it on the CPU: no evidence")
    options = parser.parse_args(arguments)
    try:
        if not 0 < options.minutes < float("inf"):
            raise ValueError(f"--minutes must be above 0, got {options.minutes}; the default is 8")
        check_may_write(options.out, not options.out.exists() or _is_ours(options.out))
    except ValueError as error:
        parser.error(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.rehearse:
        os.environ["HPC_ECG_REHEARSE_GPU"] = "1"
    report = check(options, run_part, more)
    print_report(report)
    print(f"written: {options.out}")
    return int(has_failed(report))


def _is_ours(path: Path) -> bool:
    found = read_json(path)
    return isinstance(found, dict) and found.get("kind") == KIND


def check(options: argparse.Namespace, run_part: Runner, more: dict[str, Any]) -> dict[str, Any]:
    """Run all parts and return the report, which OUT holds at each moment."""
    began, total_s = time.monotonic(), 60 * options.minutes
    report: dict[str, Any] = {
        "kind": KIND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": options.minutes,
        "is_rehearsal": options.rehearse,
        "parts": {name: {"status": "not begun", "rows": {}} for name in PARTS},
    }
    for name in PARTS:
        part, started = report["parts"][name], time.monotonic()

        def emit(row: str, figures: dict[str, Any], rows: dict[str, Any] = part["rows"]) -> None:
            rows[row] = figures
            write_json(options.out, report)

        part["status"] = "cut off: the check itself was ended"  # unless it goes on
        write_json(options.out, report)
        card = rows_of(report, "environment").get("card", {})
        if name in NEEDS_GPU and "name" not in card and not options.rehearse:
            part["status"] = f"{UNKNOWN}: {card.get(UNKNOWN, 'no GPU here')}"
        else:
            clock = Clock(seconds_for(name, total_s - (started - began)))
            part["status"] = run_part(name, clock, {"rehearse": options.rehearse, **more}, emit)
        part["seconds"] = round(time.monotonic() - started, 1)
        print(f"{name}: {part['status']} ({part['seconds']} s)", flush=True)
    report["seconds"] = round(time.monotonic() - began, 1)
    report["verdicts"] = verdicts(report)
    write_json(options.out, report)
    return report


def has_failed(report: dict[str, Any]) -> bool:
    """Whether a test failed or a part crashed."""
    crashed = any(part["status"].startswith("crashed") for part in report["parts"].values())
    return crashed or "failed" in count_outcomes(rows_of(report, "tests"))


def print_report(report: dict[str, Any]) -> None:
    card = card_of(report)
    title = card or "no GPU here" + ": a REHEARSAL on the CPU" * report["is_rehearsal"]
    print(f"\n{title}, {report['date']}, {report['seconds']:.0f} s\n")
    for name in PARTS:
        rows = rows_of(report, name)
        if name == "tests":
            _print_tests(rows)
            continue
        for row, figures in rows.items():
            cells = [figures.get(UNKNOWN) and f"{UNKNOWN}: {figures[UNKNOWN]}"]
            cells += [_cell(f, figures[f]) for f in FIGURES if f in figures]
            if any(cells):
                print(f"{name:<12}{row:<28}{'  '.join(filter(None, cells))}")
    print("\n" + "\n".join(report["verdicts"]))


def _cell(figure: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{figure.replace('_', ' ').removesuffix(' per s')} {shown(figure, value)}"


def _print_tests(rows: Mapping[str, Any]) -> None:
    counts = count_outcomes(rows)
    print(f"{'tests':<12}{', '.join(f'{n} {outcome}' for outcome, n in counts.items()) or 'none'}")
    for name, row in rows.items():
        if row["outcome"] == "failed":
            print(f"  failed: {name}: {row.get('reason', '')}")
    reasons = {r.get("reason", "") for r in rows.values() if r["outcome"] == "skipped"}
    for reason in sorted(reasons):
        print(f"  skipped: {reason}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
