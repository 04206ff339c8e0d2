"""From the figures of a check to verdicts about what is claimed: pure functions."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MET, MISSED, UNKNOWN = "met", "missed", "not measured"
TARGET_CARD = "H100"
AT_LEAST, AT_MOST = True, False
TARGETS = (
    ("training reaches 50 % MFU", "speed", "best 128", "mfu", AT_LEAST, 0.5),
    ("training takes 5,600 ECG/s at batch 128", "speed", "best 128", "ecg_per_s", AT_LEAST, 5600),
    ("the forward pass takes 15,000 ECG/s", "speed", "forward", "ecg_per_s", AT_LEAST, 15_000),
    ("the loop costs at most 2 %", "costs", "overhead", "share", AT_MOST, 0.02),
    ("data wait is at most 1 %, with one reader", "costs", "data wait", "share", AT_MOST, 0.01),
    ("record dropout costs at most 3 %", "costs", "dropout", "share", AT_MOST, 0.03),
    ("20 fp32 steps are the CPU's to 0.1 %", "curve", "fp32", "share", AT_MOST, 1e-3),
    ("20 bf16 steps are the CPU's in fp32 to 5 %", "curve", "bf16", "share", AT_MOST, 0.05),
)
"""Claim, part, row and figure, bound; of speed: on an H100, in bf16, at full size."""
TESTS = Path(__file__).resolve().parents[2] / "tests"


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """A line per claim: met, missed, or not measured with the reason; on which card, and when."""
    card, date = card_of(report), report["date"][:10]
    lines = [_of_target(report, card, *target) for target in TARGETS]
    lines += [_of_tests(report, card, path) for path in sorted(TESTS.glob("test_gpu_*.py"))]
    return [f"{line} ({card or 'no GPU'}, {date})" for line in lines]


def card_of(report: Mapping[str, Any]) -> str | None:
    """The name of the card; None without one, and in a rehearsal."""
    name: str | None = rows_of(report, "environment").get("card", {}).get("name")
    return None if report["is_rehearsal"] else name


def rows_of(report: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    rows: Mapping[str, Any] = report["parts"][part]["rows"]
    return rows


def count_outcomes(rows: Mapping[str, Any]) -> dict[str, int]:
    outcomes = [row["outcome"] for row in rows.values()]
    return {k: outcomes.count(k) for k in ("passed", "failed", "skipped") if k in outcomes}


def shown(figure: str, value: float) -> str:
    """A figure as text: shares in percent."""
    if figure in ("mfu", "share"):
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _of_target(
    report: Mapping[str, Any], card: str | None, claim: str, part: str, row: str, *rest: Any
) -> str:
    figure, at_least, bound = rest
    found = rows_of(report, part).get(row, {})
    if card is None or figure not in found:
        status = f"no {figure} of this card" if found else report["parts"][part]["status"]
        why = found.get(UNKNOWN) or f"{part} {status}"
        return f"{UNKNOWN}: {claim}: {why if card else 'no GPU here'}"
    value = found[figure]
    is_met = value >= bound if at_least else value <= bound
    other = f"; the target is for an {TARGET_CARD}" if TARGET_CARD not in card else ""
    other = "" if part == "curve" else other
    return f"{MET if is_met else MISSED}: {claim}: {shown(figure, value)}{other}"


def _of_tests(report: Mapping[str, Any], card: str | None, path: Path) -> str:
    """Of a file of tests, whose docstring is the claim."""
    claim = (ast.get_docstring(ast.parse(path.read_text())) or path.stem).split("\n")[0].rstrip(".")
    rows, part = rows_of(report, "tests"), report["parts"]["tests"]
    counts = count_outcomes({name: row for name, row in rows.items() if path.name in name})
    text = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    verdict = MET if counts.get("passed") and part["status"] == "complete" else UNKNOWN
    verdict = MISSED if counts.get("failed") else verdict
    if card is None:  # a rehearsal compares a CPU with itself
        verdict, text = UNKNOWN, f"no GPU here; {text or 'no test'}"
    return f"{verdict}: {claim}: {text or part['status']}"
