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
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

try:
    from gpu.parts import PARTS, Clock, Runner, run_apart, seconds_for
    from gpu.verdicts import UNKNOWN, card_of, count_outcomes, rows_of, shown, verdicts

    from hpc_ecg.atomic_io import check_may_write, write_json
    from hpc_ecg.preflight.step_time import KINDS
    from hpc_ecg.safe_reading import read_json
except ModuleNotFoundError as error:
    sys.exit(f"{sys.executable}: {error}; docs/how-to/gpu-check.md says what the check needs")

KIND = "hpc_ecg gpu-check"
NEEDS_GPU = ("curve", "speed", "costs")
FIGURES = ("ecg_per_s", "mfu", "share", "memory_gb", "seconds", "save_seconds", "load_seconds")
"""What the table shows of a row; the file has all."""


def main(arguments: Sequence[str], run_part: Runner = run_apart) -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check.json"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all (default 8)")
    parser.add_argument("--rehearse", action="store_true", help="run it on the CPU: no evidence")
    options = parser.parse_args(arguments)
    try:
        if not 0 < options.minutes < float("inf"):
            raise ValueError(f"--minutes must be above 0, got {options.minutes}; the default is 8")
        check_may_write(options.out, not options.out.exists() or _is_ours(options.out))
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    report = check(options, run_part)
    print_report(report)
    print(f"written: {options.out}")
    return int(has_failed(report))


PLANNED = 128
"""The batch whose step a planner takes."""


def _is_ours(path: Path) -> bool:
    found = read_json(path)
    return isinstance(found, dict) and found.get("kind") == KIND


def check(options: argparse.Namespace, run_part: Runner) -> dict[str, Any]:
    """Run all parts and return the report, which OUT holds at each moment."""
    clock, began = Clock(60 * options.minutes), time.monotonic()
    parts: dict[str, Any] = {name: {"status": "not begun", "rows": {}} for name in PARTS}
    report: dict[str, Any] = {"kind": KIND, "minutes": options.minutes, "parts": parts}
    report |= {"date": datetime.now(UTC).isoformat(" ", "seconds")}
    report |= {"is_rehearsal": options.rehearse, "seconds": 0}
    if options.rehearse:
        os.environ["HPC_ECG_REHEARSE_GPU"] = "1"  # for the tests
    with TemporaryDirectory(prefix="gpu-check-") as folder:
        words = {"rehearse": options.rehearse, "folder": folder}
        for name, part in parts.items():

            def emit(row: str, figures: dict[str, Any], part: dict[str, Any] = part) -> None:
                part["rows"][row] = figures
                _write(options.out, report, began)

            part["status"] = "cut off with the check"  # unless it goes on
            card = parts["environment"]["rows"].get("card", {})
            if name in NEEDS_GPU and "name" not in card and not options.rehearse:
                part["status"] = card.get(UNKNOWN, "without a GPU")
            else:
                time_for_it = Clock(seconds_for(name, clock.left_s))
                part["status"] = run_part(name, time_for_it, words, emit)
            _write(options.out, report, began)
            print(f"{name}: {part['status']}", flush=True)
    return report


def _write(path: Path, report: dict[str, Any], began: float) -> None:
    measured = rows_of(report, "speed").get(f"auto, eager, {PLANNED}", {})
    if "seconds" in measured:  # for `hpc-ecg plan --measured`
        report["step"] = {name: measured[name] for name in KINDS}
    report |= {"seconds": round(time.monotonic() - began, 1), "verdicts": verdicts(report)}
    write_json(path, report)


def has_failed(report: Mapping[str, Any]) -> bool:
    """Whether a test failed or a part crashed."""
    crashed = any(part["status"].startswith("crashed") for part in report["parts"].values())
    return crashed or "failed" in count_outcomes(rows_of(report, "tests"))


def print_report(report: Mapping[str, Any]) -> None:
    card = card_of(report) or "NO GPU" + report["is_rehearsal"] * ": a REHEARSAL on the CPU"
    print(f"\n{card}, {report['date']}, {report['seconds']} s\n")
    for name in (name for name in PARTS if name != "tests"):
        for row, figures in rows_of(report, name).items():
            known = [f"{f} {shown(f, figures[f])}" for f in FIGURES if f in figures]
            if UNKNOWN in figures or known:
                print(f"{name:<13}{row:<30}{'  '.join(known) or figures[UNKNOWN]}")
    tests = rows_of(report, "tests")
    print(f"{'tests':<13}{', '.join(f'{n} {kind}' for kind, n in count_outcomes(tests).items())}")
    failed = [f"{n}: {row['reason']}" for n, row in tests.items() if row["outcome"] == "failed"]
    skipped = {row["reason"] for row in tests.values() if row["outcome"] == "skipped"}
    for kind, lines in (("failed", failed), ("skipped", sorted(skipped))):
        print(*(f"  {kind}: {line}\n" for line in lines), sep="", end="")
    print("\n" + "\n".join(report["verdicts"]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
