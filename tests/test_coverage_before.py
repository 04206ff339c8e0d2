"""The tables of tools/coverage_tables.py show what version 0.1 gave beside what is found now."""

import argparse

import coverage_before
import coverage_censoring
import coverage_edges
import numpy as np
import pytest
from coverage_before import VERSION_0_1, Before, beside, quoted
from coverage_tables import main

pytestmark = [pytest.mark.slow, pytest.mark.docs]

METRICS, SHARES, COLUMNS = ("auroc", "auprc"), (0.7, 0.9, 0.95), ("before", "now")
ROWS = {  # of each table: parts that name a row, and what stands in it
    "few": [
        (("21 pos", "0.998 "), "auroc ours before 87 now"),
        (("21 pos", "missed 3%"), "auroc ours before 59 now"),
        (("11 pos", "0.998 "), "auroc ours before 90 now"),
        (("11 pos", "missed 3%"), "auroc ours before 66 now"),
        (("7 pos", "0.98 "), "auroc ours before ≥ 96.8 now"),
        (("20 pos", "0.98 "), "auroc ours now"),
    ],
    "intervals": [
        (("1000 patients", "20.0%", "0.9 "), "auroc ours before 94.1–96.5 now"),
        (("200 patients", "2.0%", "0.9 "), "auroc ours now"),
    ],
    "shares": [(("20 pos",), "0.9 ours before 94.0–97.7 now")],
    "error": [(("3 seeds, spread 2",), "auroc before 4.8–5.9 now")],
    "sweeps": [
        (("6 strategies, 3 seeds, spread 1.5",), "any error before 14 now"),
        (("4 strategies, 3 seeds, spread 1.5",), "any error before 10 now"),
        (("6 strategies, 5 seeds, spread 1.5",), "any error before 3.8 now"),
        (("6 strategies, 3 seeds, spread 0.0",), "any error now"),
    ],
    "best": [
        (("6 strategies", "spread 1.5, lead 0"), "corrected before 90 now"),
        (("6 strategies", "spread 1.5, lead 0"), "an AUROC 0.024–0.036 too high]"),
        (("6 strategies", "spread 1.5, lead 1"), "corrected now"),
    ],
    "power": [
        (("2 strategies", "spread 0.0"), "found before 79 now"),
        (("6 strategies", "spread 0.0"), "found before 43 now"),
    ],
    "jumps": [(("below 1 of",), "before 0.999–1 now 0.8"), (("below 2 of",), "0.9996 now 0.8")],
    "censoring": [
        (("1000 patients", "by risk", "O/E"), "[version 0.1: 1.67 (4,055 ECGs left out)]"),
        (("1000 patients", "by risk", "AUROC"), "[version 0.1: 0.79 (for 0.73; 4,055"),
    ],
    "interaction": [
        (("0.980, 300 patients, levels (0.5, 0.5)",), "[version 0.1: 9.9–13 (AUROC of 0.98"),
    ],
    "edges": [
        (("lowest of all, npv ",), "[version 0.1: 88–90 (cohorts of 200–600 patients)]"),
        (("lowest of all, net benefit 0.8",), "[version 0.1: 38 ("),
        (("lowest of all, macro auroc",), "[version 0.1: 92–93 (6 to 9 positives a label)]"),
    ],
}


@pytest.mark.parametrize("table", ROWS)
def test_rows_show_the_figure_of_version_0_1_if_it_has_one(table, monkeypatch, capsys):
    draw = coverage_edges.draw
    monkeypatch.setattr(
        coverage_edges, "draw", lambda rng, patients, *a: draw(rng, min(patients, 1000), *a)
    )
    monkeypatch.setattr(coverage_edges, "DESIGNS", ((600, 0.2),))
    for module in ("coverage_errors", "coverage_families"):
        monkeypatch.setattr(f"{module}.sampling_error", lambda *_: 0.02)
    sizes = ["--patients", "200", "1000"] if table == "intervals" else ["--patients", "1000"]
    main([table, "--simulations", "2", "--replicates", "20", "--seeds", "3", *sizes])
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for parts, expected in ROWS[table]:
        (row,) = [row for row in rows if all(part in row for part in parts)]
        assert expected in row
        is_quoted = "before" in expected or "version 0.1" in expected or "too high" in expected
        assert ("version 0.1" in row) == is_quoted


def test_a_computed_figure_stands_before_a_quoted_one(monkeypatch):
    monkeypatch.setitem(VERSION_0_1, ("a", 1), Before("14", "600 patients"))
    assert beside(4.21, ("a", 1)).split() == ["before", "14", "now", "4.2"]
    assert beside(1.002, ("a", 1), computed=1.666, digits=2).split()[1::2] == ["1.67", "1.00"]
    assert beside(4.21, ("a", 2)).split() == ["now", "4.2"]
    assert len(beside(4.21, ("a", 2))) == len(beside(4.21, ("a", 1)))
    assert quoted(("a", 1), ("a", 1)) == "  [version 0.1: 600 patients]"
    assert quoted(("a", 2), ("a", 1), figures=True) == "  [version 0.1: 14 (600 patients)]"
    assert quoted(("a", 2)) == ""


def test_every_quoted_figure_belongs_to_a_row_that_is_printed(monkeypatch):
    """A figure whose key no table asks for would never be seen."""
    asked = set()

    class Asked(dict):
        def __contains__(self, key):
            asked.add(key)
            return super().__contains__(key)

    monkeypatch.setattr(coverage_before, "VERSION_0_1", Asked(VERSION_0_1))
    monkeypatch.setattr("coverage_errors.type_1_error", lambda *_: {"auroc": 0.05, "auprc": 0.05})
    monkeypatch.setattr("coverage_families._sweeps", lambda *_: 0.05)
    one = np.ones((2, 28), dtype=bool)
    monkeypatch.setattr("coverage_families._rejected", lambda *_: (one, one))
    names = {"one_model": METRICS, "two_models": METRICS, "sensitivities": SHARES}
    for name, columns in names.items():
        hits = {f"{column} ours": [True] for column in columns}
        monkeypatch.setattr(f"coverage_tables.{name}", lambda *_, hits=hits: hits)
    main(["intervals", "few", "shares", "difference", "error", "family", "sweeps"])
    shown_elsewhere = ("best", "power", "jumps", "censoring", "interaction", "edges")
    assert {key for key in VERSION_0_1 if key[0] not in shown_elsewhere} <= asked


def test_weights_undo_what_excluding_the_censored_does():
    options = argparse.Namespace(simulations=25, replicates=100, seed=1, patients=[500])
    rows = [line.split() for line in coverage_censoring.censoring_table(options)]
    before, now = (np.array([float(row[row.index(w) + 1]) for row in rows]) for w in COLUMNS)
    assert (before[[0, 3, 6]] > 1.4).all() and (before[[1, 4, 7]] > 0.4).all()  # O/E, intercept
    assert before[5] > 0.76 and before[8] > 0.76  # AUROC where risk plays a part
    np.testing.assert_allclose(now[:6], [1, 0, 0.73] * 2, atol=0.06)
    np.testing.assert_allclose(now[[2, 5]], 0.73, atol=0.015)
    assert now[8] < before[8] - 0.02  # age tells only a part of the risk
