"""The report's files: one self-contained page, tables, figures; the same bytes every time."""

import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from statsmodels.stats.multitest import multipletests
from test_compare import edit_evaluation, make_baselines, make_sweep, make_test_set

from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.flow import CohortFlow, _split
from hpc_ecg.comparison.report import render_report, write_report
from hpc_ecg.comparison.tables import as_json, build_tables
from hpc_ecg.evaluation.predictions import read_predictions
from hpc_ecg.reporting.html import render_page
from hpc_ecg.reporting.plots import Group, line_plot

pytestmark = pytest.mark.slow

CURVES = {"roc", "precision_recall", "calibration", "decision"}
VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Check that tags close in order, and collect ids and figures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.figures, self.tags = [], [], 0, set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.figures += tag == "figure"
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "afib"
    make_sweep(folder, {"ssl_new_head": 1.0, "afib_keep_head": 1.6, "random": 0.3})
    make_baselines(folder, make_test_set(), 0.5)
    (folder / "random/seed-2/finished.json").unlink()
    (folder / "random/seed-2/error.txt").write_text("loss is <NaN> & stays so")
    return folder


@pytest.fixture(scope="module")
def paths(sweep_dir):
    return write_report(sweep_dir, replicates=200)


def test_the_page_is_one_well_formed_file_with_its_figures(paths):
    text = paths.page.read_text()
    page = Page(text)
    assert page.figures == len(paths.figures) == 12
    assert len(page.ids) == len(set(page.ids))
    assert {"verdict", "strategies", "matrix", "matrix-auprc", "cohort", "cards"} <= set(page.ids)
    assert {"baselines", "chosen", "thresholds", "checklist1", "problems"} <= set(page.ids)


def test_the_page_needs_no_network_and_no_script(paths):
    text = paths.page.read_text()
    assert "http" not in text and "<script" not in text and "<link" not in text
    assert not re.search(r"url\((?!#)", text) and "@import" not in text


def test_the_page_holds_verdict_start_cost_and_failures(paths):
    text = paths.page.read_text()
    assert "afib_keep_head is best (AUROC 0." in text
    assert "wcr_afib_5y.pt" in text and "GPU-hours" in text
    assert "loss is &lt;NaN&gt; &amp; stays so" in text


def test_figures_are_svg_files(paths):
    names = {path.stem for path in paths.figures}
    every = {"strategies", "references", "differences", "subgroups", "validation", "loss", "risk"}
    every |= {"abstention"}
    assert names == every | CURVES
    for path in paths.figures:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_tables_hold_the_numbers_of_the_page(paths):
    tables = {name: pd.read_csv(path) for name, path in paths.tables.items()}
    comparison, text = json.loads(paths.comparison.read_text()), paths.page.read_text()
    table, pairs = tables["table"], tables["pairs"]
    assert table["name"].tolist()[:3] == ["afib_keep_head", "ssl_new_head", "random"]
    assert table["auroc"][0] == comparison["strategies"][0]["estimates"]["auroc"]["value"]
    assert f"{table['auroc'][0]:.3f}" in text
    assert set(table["kind"]) == {"strategy", "ensemble", "baseline"}
    assert pairs["metric"].value_counts().to_dict() == {"auroc": 3, "auprc": 3}
    assert (pairs["p_adjusted"] >= pairs["p_value"]).all()
    by_metric = {m: rows["detectable"].tolist() for m, rows in pairs.groupby("metric")}
    assert by_metric == {
        metric: [pair["detectable"] for pair in found]
        for metric, found in comparison["pairs_of"].items()
    }
    assert len(tables["baselines"]) == 9  # 3 strategies against 2, and with age and sex
    assert len(tables["thresholds"]) == 9  # 3 models at 3 thresholds
    for value in tables["thresholds"]["sensitivity"]:
        assert f"{value:.3f}" in text
    assert set(tables["cost"]["strategy"]) == set(table["name"][:3])
    counts = pd.read_csv(paths.tables["table"], dtype=str)["num_seeds"].dropna()
    assert set(counts) == {"3", "2"}  # whole, though baselines have none


def test_comparison_json_keeps_its_keys(paths):
    keys = (
        "task metric metrics labels not_scored counts strategies standing validation pairs_of "
        "best_corrected by_label rivals baselines adds adds_left_out baselines_left_out "
        "probability_best margin non_inferior detectable delong efficiency chosen problems "
        "protocol warnings replicates seed cells chosen_models flow runs tuning risk periods "
        "abstention errors checklist varies"
    )
    assert list(json.loads(paths.comparison.read_text())) == keys.split()


def test_time_and_cost_are_in_one_block_of_the_page_and_in_one_table(paths, sweep_dir):
    before = contents(sweep_dir)
    for path in sweep_dir.glob("*/seed-*/finished.json"):
        slow = {"process_seconds": 7777777.0, "train_seconds": 3.0, "ecg_per_s": 1.5}
        path.write_text(json.dumps(json.loads(path.read_text()) | slow))
    for path in sweep_dir.glob("*/seed-*/environment.json"):
        other = {"machine": {"host": "elsewhere"}, "time": "2031"}
        path.write_text(json.dumps(json.loads(path.read_text()) | other))
    write_report(sweep_dir, replicates=200)
    after = contents(sweep_dir)
    changed = {name for name in before if before[name] != after[name]}
    cards = {name for name in changed if name.endswith("RUN_CARD.md")}
    assert changed == {"index.html", "comparison.json", "cost.csv"} | cards
    block = re.compile(r'<section id="varies">.*?</section>', re.DOTALL)
    assert block.sub("", before["index.html"]) == block.sub("", after["index.html"])


def contents(sweep_dir):
    report = sweep_dir / "report"
    return {str(p.relative_to(report)): p.read_text() for p in report.rglob("*") if p.is_file()}


def test_cards_say_where_thresholds_come_from_and_how_the_run_was_made(paths):
    cards = {path.parent.name + "/" + path.stem: path.read_text() for path in paths.cards}
    assert len(cards) == 6
    model, run = cards["afib_keep_head/MODEL_CARD"], cards["afib_keep_head/RUN_CARD"]
    for text in (
        "Intended use",
        "fitted on validation",
        "| sensitivity ≥ 90 % |",
        "- AUROC: ",
        "Limits",
    ):
        assert text in model
    assert "optim.lr | 5e-05" in run and "SHA-256 `" + "0f" * 32 in run
    for text in ("{{", "{'", "['", "None", "log_loss"):
        assert text not in model + run, text


def test_a_model_that_separates_the_classes_perfectly_has_a_card(tmp_path):
    """Such a model has no calibration slope."""
    make_sweep(tmp_path, {"only": 1.0}, (0,), make_test_set(num_patients=80))
    none = {"value": None, "low": None, "high": None, "reason": "the classes are apart"}
    calibration = {"slope": none}
    edit_evaluation(
        tmp_path / "only/seed-0",
        lambda content: content["labels"]["afib_5y"]["calibration"].update(calibration),
    )
    model, _ = write_report(tmp_path, replicates=50).cards
    assert "Calibration on the test set: slope –, intercept" in model.read_text()


def test_subgroups_of_the_best_model_are_shown_with_a_test_of_interaction(paths):
    text = paths.page.read_text()
    rows = re.search(r'<table id="subgroups">(.*?)</table>', text, re.DOTALL).group(1)
    assert "female" in rows and "male" in rows and ">p of interaction<" in rows
    subgroups = pd.read_csv(paths.tables["subgroups"])
    assert f"{subgroups['auroc_value'][0]:.3f}" in rows


def test_the_p_of_interaction_is_the_corrected_one(tmp_path):
    make_sweep(tmp_path, {"only": 1.0}, (0,), make_test_set(num_patients=80))

    def edit(evaluation):
        for level in evaluation["labels"]["afib_5y"]["subgroups"]:
            level |= {"interaction_p": 0.031, "interaction_p_holm": 0.093}

    edit_evaluation(tmp_path / "only/seed-0", edit)
    text = write_report(tmp_path, replicates=50).page.read_text()
    rows = re.search(r'<table id="subgroups">(.*?)</table>', text, re.DOTALL).group(1)
    assert "0.093" in rows and "0.031" not in rows


def test_label_fractions_of_a_grid_make_a_curve(tmp_path):
    arms = [(base, share) for base in "ab" for share in (0.1, 1)]
    names = [f"{base},label_fraction={share}" for base, share in arms]
    make_sweep(tmp_path, {name: 0.5 + k for k, name in enumerate(names)}, (0, 1))
    for name, (base, share) in zip(names, arms, strict=True):
        arm = {"base": base, "varied": {"data.label_fraction": share}}
        (tmp_path / name / "arm.json").write_text(json.dumps(arm))
    paths = write_report(tmp_path, replicates=50)
    assert "efficiency" in {path.stem for path in paths.figures}
    assert "training patients used" in (tmp_path / "report/figures/efficiency.svg").read_text()
    assert "How many labels are needed" in paths.page.read_text()


def test_a_logarithmic_axis_has_a_tick_at_each_position_of_the_line():
    group = Group(name="a", bold=([50.0, 100.0], [0.1, 0.2]))
    svg = line_plot([group], name="n", xlabel="x", ylabel="y", log_x=True)
    assert ">50<" in svg and ">100<" in svg
    assert "×" not in svg and "mathdefault" not in svg


def test_the_flow_counts_no_positives_for_a_regression(tmp_path):
    index = pd.DataFrame({"split": "test", "patient": ["1", "2"], "label.lvef": [55.0, np.nan]})
    flow = CohortFlow(
        in_table=2,
        left_out={},
        splits=[_split(SimpleNamespace(index=index), "test", ["lvef"], False)],
        labels=["lvef"],
        flags={},
        signal="12 leads",
        index_sha256="ab" * 32,
    )
    make_sweep(tmp_path, {"x": 0.1}, (0,), make_test_set(labels=("lvef",)), task="regression")
    page = render_report(compare(tmp_path, 50), {}, tmp_path, flow, {})
    assert flow.splits[0]["lvef"] == {"missing": 1}
    assert "lvef: missing" in page and "positive / " not in page


def test_cohort_and_selected_models_are_in_tables(paths, sweep_dir):
    table = pd.read_csv(paths.tables["chosen"]).set_index("strategy")
    assert list(table.index) == ["afib_keep_head", "ssl_new_head", "random"]
    row = table.loc["afib_keep_head"]
    evaluation = json.loads(
        (sweep_dir / f"afib_keep_head/seed-{row['seed']}/evaluation.json").read_text()
    )
    label = evaluation["labels"]["afib_5y"]
    for column, value in (
        ("brier", label["brier"]["value"]),
        ("auroc_high", label["auroc"]["high"]),
        ("calibration_slope", label["calibration"]["slope"]["value"]),
        ("one_ecg_per_patient_auroc", label["one_ecg_per_patient"]["auroc"]["value"]),
    ):
        assert row[column] == pytest.approx(value)
    (cohort,) = pd.read_csv(paths.tables["cohort"]).to_dict("records")
    assert (cohort["n"], cohort["n_positive"]) == (label["n"], label["n_positive"])


def test_runs_and_trials_are_in_tables_and_in_json(tmp_path):
    make_sweep(tmp_path, {"x": 0.1, "y": 0.5}, (0, 1))
    trials = [
        {"values": {"optim.lr": 1e-4}, "score": 0.7},
        {"values": {"optim.lr": 1e-3}, "score": 0.8},
        {"values": {"optim.lr": 1.0}, "score": None},
    ]
    tuning = {"x": {"chosen": {"optim.lr": 1e-3}, "trials": trials}}
    (tmp_path / "tuning.json").write_text(json.dumps(tuning))
    paths = write_report(tmp_path, replicates=50)
    table = pd.read_csv(paths.tables["tuning"])
    assert table["optim.lr"].tolist() == [1e-4, 1e-3, 1.0]
    assert table["chosen"].tolist() == [False, True, False]
    assert table["score"].tolist()[:2] == [0.7, 0.8] and np.isnan(table["score"][2])
    runs = pd.read_csv(paths.tables["runs"])
    assert runs["strategy"].tolist() == ["x", "x", "y", "y"]
    assert runs["seed"].tolist() == [0, 1, 0, 1]
    counts = json.loads((tmp_path / "x/seed-0/init_report.json").read_text())["counts"]
    assert runs["tensors_loaded"][0] == counts["tensors_loaded"]
    assert runs["best_step"].tolist() == [100] * 4
    whole = json.loads(paths.comparison.read_text())
    assert len(whole["runs"]) == 4 and whole["tuning"][2]["score"] is None
    assert "0.8000" in paths.page.read_text()


def test_the_flow_from_the_table_to_the_splits_is_a_table(tmp_path):
    index = pd.DataFrame(
        {"split": "test", "patient": ["1", "2", "2"], "age": 60.0, "label.af": [1, 0, np.nan]}
    )
    flow = CohortFlow(
        in_table=5,
        left_out={"unreadable": 2},
        splits=[_split(SimpleNamespace(index=index), "test", ["af"], True)],
        labels=["af"],
        flags={},
        signal="12 leads",
        index_sha256="ab" * 32,
    )
    comparison = compare(make_sweep(tmp_path, {"x": 0.1}, (0,)), 50)
    assert build_tables(comparison, {}, {}, flow, {})["flow"] == [
        {"part": "in the table", "records": 5},
        {"part": "left out: unreadable", "records": 2},
        {
            "part": "test",
            "records": 3,
            "patients": 2,
            "age": "60 (60–60)",
            "af_positive": 1,
            "af_missing": 1,
        },
    ]
    assert as_json(comparison, flow, {})["flow"]["left_out"] == {"unreadable": 2}
    assert as_json(comparison, "not readable", {})["flow"] == "not readable"
    assert "flow" not in build_tables(comparison, {}, {}, "not readable", {})


def test_the_points_of_the_curves_are_in_a_table(paths, sweep_dir):
    curves = pd.read_csv(paths.tables["curves"]).set_index(["curve", "strategy"])
    assert {kind for kind, _ in curves.index} == CURVES
    assert ("decision", "everybody is treated") in curves.index
    runs = (sweep_dir / "afib_keep_head").glob("seed-*")
    tests = [read_predictions(run / "predictions/test.parquet") for run in runs]
    roc = curves.loc[("roc", "afib_keep_head")]
    lines = [roc_curve(test.label_NK[:, 0], test.logit_NK[:, 0]) for test in tests]
    expected = np.mean([np.interp(roc["x"], false, true) for false, true, _ in lines], axis=0)
    np.testing.assert_allclose(roc["y"][1:], expected[1:], atol=1e-12)
    assert (roc["low"] <= roc["y"] + 1e-9).all() and (roc["y"] <= roc["high"] + 1e-9).all()


def test_the_points_of_the_learning_curves_are_in_a_table(paths, sweep_dir):
    learning = pd.read_csv(paths.tables["learning"]).set_index(["curve", "strategy", "seed"])
    for strategy in ("afib_keep_head", "ssl_new_head"):
        lines = (sweep_dir / strategy / "seed-1/metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        for curve, event, key in (("validation", "eval", "score"), ("loss", "step", "loss")):
            points = learning.loc[(curve, strategy, 1)]
            known = [(e["step"], e[key]) for e in events if e["event"] == event]
            np.testing.assert_allclose(points[["step", "value"]], known, rtol=1e-12)


def test_checklist_items_that_a_sweep_cannot_know_are_left_to_the_authors(paths):
    table = pd.read_csv(paths.tables["checklist"], dtype=str)
    tripod = table[table["checklist"] == "TRIPOD+AI"].set_index("number")
    known = tripod["is_known"] == "True"
    assert not known["17"] and not known["8b"] and known["12a"]
    text = paths.page.read_text()
    rows = re.findall(r'<tr class="open"><th scope="row">(\d+\w?)</th>.*?for the authors', text)
    assert rows == known.index[~known].tolist()


def test_the_report_is_the_same_every_time(paths, sweep_dir):
    before = {p: p.read_bytes() for p in (sweep_dir / "report").rglob("*") if p.is_file()}
    write_report(sweep_dir, replicates=200)
    after = {p: p.read_bytes() for p in (sweep_dir / "report").rglob("*") if p.is_file()}
    assert before == after


@pytest.mark.parametrize("labels", [("lvef",), ("lvef", "age")])
def test_a_regression_has_no_curves(tmp_path, labels):
    test_set = make_test_set(num_patients=80, labels=labels)
    make_sweep(tmp_path, {"x": 0.1, "y": 0.5}, (0, 1), test_set, task="regression")
    paths = write_report(tmp_path, replicates=50)
    names = {"strategies", "references", "differences", "validation", "loss"}
    assert {p.stem for p in paths.figures} == names
    Page(paths.page.read_text())


def test_each_of_several_labels_has_its_row_and_its_curves(tmp_path):
    test_set = make_test_set(num_patients=150, labels=("block", "AV block", "AV/block"))
    make_sweep(tmp_path, {"x": 0.1, "y": 1.5}, (0, 1, 2), test_set, task="multilabel")
    paths = write_report(tmp_path, replicates=100)
    text = paths.page.read_text()
    ids = Page(text).ids
    assert len(ids) == len(set(ids))
    ends = {"-block": "block", "-AV-block": "AV block", "-AV-block-3": "AV/block"}
    kinds = ("roc", "precision_recall", "calibration", "decision", "subgroups")
    assert {f"{kind}{end}" for kind in kinds for end in ends} <= {p.stem for p in paths.figures}
    assert all(f"Curves on the test set: {name.split('/')[0]}" in text for name in ends.values())
    labels = pd.read_csv(paths.tables["labels"]).set_index(["label", "strategy"])
    for label in ends.values():
        scores = [
            roc_auc_score(test.label_NK[:, k], test.logit_NK[:, k])
            for seed in (0, 1, 2)
            for test in [read_predictions(tmp_path / f"y/seed-{seed}/predictions/test.parquet")]
            for k in [test.labels.index(label)]
        ]
        assert labels.loc[(label, "y"), "auroc"] == pytest.approx(np.mean(scores))
        assert f"{np.mean(scores):.3f}" in re.search(r'id="labels".*?</table>', text, re.S)[0]
    table = pd.read_csv(paths.tables["table"]).query("kind == 'strategy'").set_index("name")
    assert labels["auroc"].xs("y", level="strategy").mean() == pytest.approx(table["auroc"]["y"])
    pairs = pd.read_csv(paths.tables["pairs_by_label"])
    assert pairs["label"].tolist() == list(ends.values())
    expected = multipletests(pairs["p_value"], method="bonferroni")[1]
    np.testing.assert_allclose(pairs["p_adjusted"], expected)


def test_with_many_labels_the_first_ones_are_drawn_and_the_page_says_so(tmp_path):
    labels = tuple(f"label{k}" for k in range(10))
    make_sweep(tmp_path, {"x": 0.5}, (0,), make_test_set(100, labels), task="multilabel")
    paths = write_report(tmp_path, replicates=50)
    assert sum(path.stem.startswith("roc") for path in paths.figures) == 8
    assert "Of 10 labels the first 8 are drawn" in paths.page.read_text()
    assert pd.read_csv(paths.tables["labels"])["label"].tolist() == list(labels)


def test_a_run_without_optional_files_is_reported(tmp_path):
    make_sweep(tmp_path, {"only": 1.0}, (0,), make_test_set(num_patients=80))
    for name in ("metrics.jsonl", "evaluation.json"):
        (tmp_path / "only/seed-0" / name).unlink()
    (tmp_path / "sweep.yaml").unlink()
    text = write_report(tmp_path, replicates=50).page.read_text()
    assert "Only only is finished" in text and 'id="pairs"' not in text


def test_a_value_that_the_template_lacks_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        render_page("sweep_report.html.jinja", title="x")


def test_the_page_says_what_leaving_doubtful_records_out_gains(paths, sweep_dir, tmp_path):
    rows = pd.read_csv(paths.tables["abstention"])
    assert rows["coverage"].tolist() == [1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert rows["kept"].is_monotonic_decreasing and rows["auroc_gain"][0] == 0
    text = " ".join(paths.page.read_text().split())
    row = rows.loc[2]
    kept = f"keeps {100 * row['kept']:.1f} % of the test set. AUROC is {row['auroc']:.3f} there"
    assert kept in text
    assert "leaving out as many at random" in text
    shutil.copytree(sweep_dir / "random" / "seed-0", tmp_path / "seed-0")
    page = write_report(tmp_path / "seed-0", replicates=50).page.read_text()
    assert f"hpc-ecg predict {tmp_path / 'seed-0'} --fit-abstention" in page
