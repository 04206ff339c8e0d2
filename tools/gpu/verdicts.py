"""From the figures of a check to verdicts: pure functions, and the claims that they are about."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MET, MISSED, UNKNOWN = "met", "missed", "not measured"
TARGET_CARD = "H100"


class Target(NamedTuple):
    claim: str
    part: str
    row: str
    """Of the part; its figure is `figure`."""
    figure: str
    bound: float
    at_least: bool = True

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


TARGETS = (
    Target("training reaches 50 % MFU", "speed", "best 128", "mfu", 0.5),
    Target("training reads 5,600 ECG/s at batch 128", "speed", "best 128", "ecg_per_s", 5600),
    Target("the forward pass reads 15,000 ECG/s", "speed", "forward 128", "ecg_per_s", 15_000),
    Target("the loop costs at most 2 %", "costs", "overhead", "share", 0.02, False),
    Target("waiting for data costs at most 1 %", "costs", "data wait", "share", 0.01, False),
    Target("record dropout costs at most 3 %", "costs", "dropout", "share", 0.03, False),
)
"""On an H100, in bf16, at full size."""

CLAIMS = {
    "test_gpu_precision": "a GPU computes what the fp32 reference on a CPU computes",
    "test_gpu_attention": "every attention kernel agrees with the plain one, or is refused",
    "test_gpu_bits": "dropout and augmentation draw on a GPU what they draw on a CPU",
    "test_gpu_runs": "runs resume to the same bits, change device and kind of parallelism",
    "test_gpu_paths": "ways to read, stages, averages and compiled layers keep the curve",
    "test_gpu_inference": "predictions, explanations and exports are those of a CPU",
    "test_gpu_machine": "memory is given back; doctor, meter and sweep see the GPUs",
    "test_gpu_kernels": "kernels that are chosen by measurement are right",
}
CURVES = {"fp32": 1e-3, "bf16": 0.05}
"""Largest relative difference of a loss from the CPU's in fp32, over the curve."""


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """A line per claim: met, missed, or not measured with the reason; and on what, and when."""
    card, date = card_of(report), report["date"][:10]
    lines = [*_of_targets(report, card), *_of_curves(report), *_of_tests(report)]
    where = f"{card}, {date}" if card else f"a CPU, {date}: no evidence about a GPU"
    return [f"{line} ({where})" for line in lines]


def card_of(report: Mapping[str, Any]) -> str | None:
    """The name of the card; None without one, and in a rehearsal."""
    if report["is_rehearsal"]:
        return None
    name: str | None = rows_of(report, "environment").get("card", {}).get("name")
    return name


def rows_of(report: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    rows: Mapping[str, Any] = report["parts"].get(part, {}).get("rows", {})
    return rows


def _of_targets(report: Mapping[str, Any], card: str | None) -> list[str]:
    other = f"; the target is for an {TARGET_CARD}" if card and TARGET_CARD not in card else ""
    lines = []
    for target in TARGETS:
        value = rows_of(report, target.part).get(target.row, {}).get(target.figure)
        if value is None or card is None:
            why = _why_not(report, target.part, target.row) if value is None else "no GPU here"
            lines.append(f"{UNKNOWN}: {target.claim}: {why}")
        else:
            verdict = MET if target.holds(value) else MISSED
            lines.append(f"{verdict}: {target.claim}: {shown(target.figure, value)}{other}")
    return lines


def _of_curves(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for precision, tolerance in CURVES.items():
        row = rows_of(report, "curve").get(precision, {})
        claim = f"20 steps in {precision} follow the CPU's in fp32 within {tolerance:g}"
        if "largest" not in row:
            lines.append(f"{UNKNOWN}: {claim}: {_why_not(report, 'curve', precision)}")
        else:
            verdict = MET if row["largest"] <= tolerance else MISSED
            lines.append(f"{verdict}: {claim}: {row['largest']:.2g}")
    return lines


def _of_tests(report: Mapping[str, Any]) -> list[str]:
    rows, lines = rows_of(report, "tests"), []
    is_whole = report["parts"].get("tests", {}).get("status") == "complete"
    for file, claim in CLAIMS.items():
        counts = count_outcomes({name: r for name, r in rows.items() if f"{file}.py" in name})
        text = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        if counts.get("failed"):
            lines.append(f"{MISSED}: {claim}: {text}")
        elif counts.get("passed") and is_whole:
            lines.append(f"{MET}: {claim}: {text}")
        else:
            lines.append(f"{UNKNOWN}: {claim}: {text or _why_not(report, 'tests', file)}")
    return lines


def count_outcomes(rows: Mapping[str, Any]) -> dict[str, int]:
    outcomes = [row["outcome"] for row in rows.values()]
    kinds = ("passed", "failed", "skipped")
    return {kind: outcomes.count(kind) for kind in kinds if kind in outcomes}


def _why_not(report: Mapping[str, Any], part: str, row: str) -> str:
    said: str | None = rows_of(report, part).get(row, {}).get(UNKNOWN)
    status: str = report["parts"].get(part, {}).get("status", "not begun")
    return said or (f"{part} has no such row" if status == "complete" else f"{part} {status}")


def shown(figure: str, value: float) -> str:
    """A figure as in the table: shares in percent."""
    if figure in ("mfu", "share"):
        return f"{100 * value:.3g} %"
    units = {"ecg_per_s": " ECG/s", "memory_gb": " GB", "seconds": " s"}
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number}{units.get(figure, '')}"
