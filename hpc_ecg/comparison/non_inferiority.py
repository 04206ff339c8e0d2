"""Which strategies are shown not to be worse than the best one by more than a margin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_ecg.comparison.scoring import pairs_with, put_first
from hpc_ecg.evaluation.comparisons import Difference, non_inferior
from hpc_ecg.reporting.numbers import join_names
from hpc_ecg.sweep.protocol import locked_content, read_protocol

MARGIN = 0.02
"""The usual margin of non-inferiority, in the deciding metric."""


def margin_of(sweep_dir: Path, margin: float | None) -> float:
    """The margin that is given, else the protocol's, else the usual one. ValueError: not between 0
    and 1."""
    if margin is None:
        protocol = read_protocol(sweep_dir)
        margin = locked_content(protocol)["margin"] if protocol else MARGIN
    if not 0 < margin < 1:
        raise ValueError(f"the margin must be between 0 and 1, got {margin}; {MARGIN} is usual")
    return margin


def against_best(pairs: Sequence[Difference], best: str, margin: float) -> list[dict[str, Any]]:
    """Test each other strategy for non-inferiority to the one with the highest value."""
    return [
        {"strategy": pair.second, "to": best} | non_inferior(put_first(pair, pair.second), margin)
        for pair in pairs_with(pairs, best)
    ]


def non_inferior_sentences(tests: Sequence[dict[str, Any]], metric: str) -> list[str]:
    """One on the strategies that passed, or none."""
    if not (passed := [test for test in tests if test["is_non_inferior"]]):
        return []
    return [
        f"Not worse than {passed[0]['to']} by more than {passed[0]['margin']:g} {metric} "
        f"(non-inferior, one-sided p < 0.025): {join_names([t['strategy'] for t in passed])}."
    ]
