"""The page of a sweep and that of one run: order, links, and what it adds to the numbers."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from test_compare import edit_evaluation, make_baselines, make_run, make_sweep, make_test_set

from hpc_ecg.atomic_io import write_json
from hpc_ecg.cli import main
from hpc_ecg.comparison.checklist import fill_checklists, read_checklists
from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.errors import describe_errors
from hpc_ecg.comparison.flow import CohortFlow, _read_selection
from hpc_ecg.comparison.headline import headline
from hpc_ecg.comparison.model_tables import scaled_brier
from hpc_ecg.comparison.report import render_report, write_report
from hpc_ecg.comparison.risk import describe_risks
from hpc_ecg.comparison.wording import whom_it_flags
from hpc_ecg.evaluation.predictions import Predictions
from hpc_ecg.reporting.html import render_page
from hpc_ecg.reporting.numbers import format_number, format_p, format_percent, format_threshold
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.shards.remote import open_shard_set

pytestmark = pytest.mark.slow
CSS = Path(render_page.__code__.co_filename).parent / "templates" / "page.css"


def flag_everybody(evaluation):
    """Have the first threshold flag everybody."""
    counts = evaluation["labels"]["afib_5y"]["at_threshold"]["youden"]["counts"]
    counts |= {"tp": counts["tp"] + counts["fn"], "fp": counts["fp"] + counts["tn"]}
    counts |= {"fn": 0, "tn": 0}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "afib"
    test_set = make_test_set(150)
    make_sweep(folder, {"keep": 1.6, "new": 1.0, "random": 0.2}, (0, 1, 2), test_set)
    make_baselines(folder, test_set, 0.5)
    for path in folder.glob("*/seed-*"):
        edit_evaluation(path, flag_everybody)
    write_report(folder, replicates=60)
    return folder


@pytest.fixture(scope="module", params=["sweep", "run"])
def page(request, sweep):
    folder = sweep
    if request.param == "run":
        folder = sweep / "keep" / "seed-1"
        write_report(folder, replicates=60)
    return folder / "report" / "index.html"


def test_headings_are_in_order_and_start_with_one_title(page):
    levels = [int(n) for n in re.findall(r"<h([1-6])[ >]", page.read_text())]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_the_verdict_has_at_most_three_sentences_and_comes_before_all_else(page):
    text = page.read_text()
    verdict = re.search(r'<section class="verdict".*?(</section>|<details>)', text, re.S)[0]
    assert 1 <= len(re.findall("<p>", verdict)) <= 3
    assert text.index("<section") < text.index("<nav") < text.index("<h2")


def test_every_heading_is_in_the_contents_and_every_link_leads_somewhere(page):
    text = page.read_text()
    nav = re.search(r"<nav.*?</nav>", text, re.S)[0]
    headings = re.findall(r"<h2([^>]*)>", text)
    assert re.findall(r'href="#([^"]+)"', nav) == [h.split('"')[1] for h in headings]
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="([^"]+)"', re.sub(r"<svg.*?</svg>", "", text, flags=re.S)):
        if target.startswith("#"):
            assert target[1:] in ids
        else:
            assert (page.parent / target).is_file(), target


def test_tables_and_figures_can_be_read_aloud_and_terms_are_reached_by_key(page):
    text = page.read_text()
    assert not re.search(r"<th(?![^>]*scope=)[ >]", text)
    for table in re.findall(r"<table.*?</table>", text, re.S):
        assert "<th " in table
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    assert figures and all('role="img" aria-label="' in figure for figure in figures)
    terms = re.findall(r"<abbr[^>]*>", text)
    assert terms and all('title="' in term and 'tabindex="0"' in term for term in terms)


def luminance(color):
    channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "paper"])
def test_text_and_links_have_enough_contrast_on_every_ground(scheme):
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.S)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    for ground in ("paper", "shade", "note"):
        for text in ("ink", "soft", "mark"):
            if (text, ground) == ("mark", "note"):
                continue  # no link stands there
            pair = sorted([luminance(colors[text]), luminance(colors[ground])])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, ground)


def test_a_cell_of_the_matrix_is_the_row_minus_the_column(sweep):
    text = (sweep / "report/index.html").read_text()
    matrix = re.search(r'<table id="matrix".*?</table>', text, re.S)[0]
    pairs = pd.read_csv(sweep / "report/pairs.csv").query("metric == 'auroc'")
    pair = pairs.query("first == 'keep' and second == 'random'").iloc[0]
    row = next(row for row in matrix.split("<tr>") if ">keep<" in row)
    cell = row.split("<td")[2]
    assert format_number(pair["difference"], True) in cell
    assert f"({format_number(pair['low_simultaneous'])} to" in cell
    p = format_p(pair["p_adjusted"]).removeprefix("= ").replace(" ", "\u00a0")
    assert f"p {p}<" in unescape(cell)
    assert matrix.count('class="p"') == len(pairs) == 3


def test_only_the_best_models_thresholds_are_open_and_one_that_flags_everybody_is_said(sweep):
    text = (sweep / "report/index.html").read_text()
    table = re.search(r'<table id="thresholds".*?</table>', text, re.S)[0]
    assert table.count("<tr>") == 1 + 3 and table.count("flags everybody") == 1
    others = text.index('id="thresholds-others"')
    assert text.rindex("<details>", 0, others) > text.rindex("</details>", 0, others)


def test_the_card_says_which_threshold_flags_everybody(sweep):
    card = (sweep / "report/cards/keep/MODEL_CARD.md").read_text()
    assert re.findall(r"^\| ([^|]*), flags everybody \|", card, re.M) == ["Youden’s J"]
    page = (sweep / "report/index.html").read_text()
    assert set(re.findall(r"\(([^()]*) on validation; it flags everybody\): ", page)) == {
        "Youden’s J"
    }


def test_a_threshold_may_flag_everybody_or_nobody():
    counts = {"tp": 3, "fp": 7, "tn": 0, "fn": 0}
    assert whom_it_flags({"counts": counts}) == "flags everybody"
    assert whom_it_flags({"counts": {"tp": 0, "fp": 0, "tn": 7, "fn": 3}}) == "flags nobody"
    assert whom_it_flags({"counts": counts | {"fn": 1}}) == whom_it_flags({}) == ""


def test_ensembles_are_folded_away_and_drawn_apart(sweep):
    text = (sweep / "report/index.html").read_text()
    strategies = re.search(r'<table id="strategies".*?</table>', text, re.S)[0]
    assert "(ensemble)" not in strategies and "age and sex" in strategies
    assert "keep (ensemble)" in re.search(r'<table id="references".*?</table>', text, re.S)[0]
    assert "ensemble" not in (sweep / "report/figures/strategies.svg").read_text()


def test_the_page_of_a_run_compares_nothing(sweep):
    write_report(sweep / "keep" / "seed-1", replicates=60)
    text = (sweep / "keep/seed-1/report/index.html").read_text()
    headings = re.findall(r'<h2 id="([^"]+)"', text)
    for name in ("models", "selected", "curves", "at-thresholds", "subgroups-of", "training"):
        assert name in headings
    assert not {"differences", "needed"} & set(headings)
    evaluation = json.loads((sweep / "keep/seed-1/evaluation.json").read_text())
    label = evaluation["labels"]["afib_5y"]
    first = re.search(r'id="verdict">\s*<p>(.*?)</p>', text, re.S)[1]
    assert format_number(label["auroc"]["value"]) in first
    assert f"{label['n_positive']} positive" in first
    assert "risk" in {path.stem for path in (sweep / "keep/seed-1/report/figures").glob("*")}
    assert (sweep / "keep/seed-1/report/cards/keep/MODEL_CARD.md").is_file()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("finished.json", "cannot be reported: not finished: at step 120"),
        ("predictions/test.parquet", "has no predictions of the test set; make them with: hpc-ecg"),
    ],
)
def test_a_run_that_cannot_be_reported_is_refused_with_what_to_do(
    tmp_path, capsys, missing, message
):
    make_run(tmp_path / "alone", make_test_set(60), 1.0, 0)
    (tmp_path / "alone" / missing).unlink()
    assert main(["report", str(tmp_path / "alone")]) == 2
    assert message in capsys.readouterr().err


def test_a_run_alone_is_named_by_its_folder(tmp_path, capsys):
    make_run(tmp_path / "alone", make_test_set(60), 1.0, 0)
    assert main(["report", str(tmp_path / "alone"), "--replicates", "200"]) == 0
    assert "alone: AUROC 0." in capsys.readouterr().out
    card = (tmp_path / "alone/report/cards/alone/MODEL_CARD.md").read_text()
    assert (tmp_path / "alone/report/cards/alone/RUN_CARD.md").is_file()
    text = card + (tmp_path / "alone/report/index.html").read_text()
    assert "seed-0" not in text and "# Model card: alone" in card
    for words in (
        "selected seed",
        "mean over seeds",
        "single seeds",
        "selected models",
        "a line per run",
    ):
        assert words not in text.lower()
    for words in ("seeds have the best", "this strategy's seeds", "compare it with", "no protocol"):
        assert words not in card


@pytest.mark.parametrize(
    ("qualities", "seeds", "parts"),
    [
        ({"a": 3.0, "b": 0.0}, (0, 1, 2), ["a is best (AUROC ", "It is better than b."]),
        ({"a": 1.0, "b": 1.01}, (0, 1, 2), ["has the highest", "is not shown to be better than"]),
        ({"a": 3.0, "b": 0.0}, (0,), ["a has the highest", "cannot be judged against b from one"]),
        ({"a": 1.0}, (0, 1), ["Only a is finished (AUROC "]),
    ],
)
def test_the_headline_follows_the_rules_of_the_verdict(tmp_path, qualities, seeds, parts):
    make_sweep(tmp_path, qualities, seeds, make_test_set(120))
    sentences = headline(compare(tmp_path, 60))
    assert len(sentences) == len(parts)
    assert all(part in sentence for part, sentence in zip(parts, sentences, strict=True))


def test_the_headline_says_what_the_best_beats_without_a_network(sweep):
    (sentence,) = headline(compare(sweep, 60))[2:]
    assert sentence.startswith(
        "Compared with models that need no network, it beats age and sex (0."
    )


NUMBER = re.compile(r"[−+]?\d+(?:,\d{3})*(?:\.\d+)?")


def leaves(value):
    if isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def as_written(value):
    """All ways in which the report writes a value of comparison.json."""
    if isinstance(value, str):
        return set(re.findall(r"\d+", value))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return set()
    texts = {format_number(value), format_number(value, True), format_threshold(value), str(value)}
    texts |= {f"{value:,}", format_percent(value)}
    texts |= {format_p(value)} if 0 <= value <= 1 else set()
    return {number for text in texts for number in NUMBER.findall(text)}


def test_every_number_of_the_paragraphs_for_a_paper_is_one_of_the_comparison(page):
    content = json.loads((page.parent / "comparison.json").read_text())
    known = {text for value in leaves(content) for text in as_written(value)}
    text = page.read_text()
    paragraphs = [
        unescape(re.search(rf'<p class="wide-text" id="{name}">(.*?)</p>', text, re.S)[1])
        for name in ("methods", "results")
    ]
    numbers = [n for paragraph in paragraphs for n in NUMBER.findall(paragraph)]
    assert len(numbers) > 30
    constants = {"12", "95"}  # 12-lead ECGs, 95 % intervals
    assert [n for n in numbers if n not in known | constants] == []


def test_a_made_up_number_would_be_noticed():
    assert "0.123" not in as_written(0.1244) and as_written("sensitivity_90") == {"90"}


def test_the_distribution_of_risk_counts_every_labelled_record_once(sweep):
    risk = pd.read_csv(sweep / "report/risk.csv")
    chosen = pd.read_csv(sweep / "report/chosen.csv").iloc[0]
    assert risk["with"].sum() == chosen["n_positive"]
    assert (risk["with"] + risk["without"]).sum() == chosen["n"]
    bins = pd.read_csv(sweep / "report/calibration_bins.csv").groupby("strategy")["n"].sum()
    assert set(bins) == {chosen["n"]}


@pytest.mark.parametrize("brier", [0.05, {"value": 0.05, "low": 0.04, "high": 0.06}])
def test_the_scaled_brier_score_is_what_the_prevalence_leaves_to_save(brier):
    scaled = scaled_brier({"brier": brier, "prevalence": 0.2})
    assert scaled["brier_reference"] == pytest.approx(0.16)
    assert scaled["brier_scaled"] == pytest.approx(1 - 0.05 / 0.16)
    assert scaled_brier({"prevalence": 0.2}) == scaled_brier({"brier": 0.1, "prevalence": 0}) == {}


def with_groups(**groups):
    """A comparison of one model whose test records have these groups."""
    rng, n = np.random.default_rng(0), 600
    label_NK = (np.arange(n) % 3 == 0).astype(float)[:, None]
    logit_NK = 2 * label_NK + rng.normal(size=(n, 1))
    test = Predictions(
        record_N=np.array([f"r{k}" for k in range(n)], object),
        patient_N=np.array([f"p{k // 2}" for k in range(n)], object),
        labels=["af"],
        label_NK=label_NK,
        logit_NK=logit_NK,
        probability_NK=1 / (1 + np.exp(-logit_NK)),
        groups={name: np.array(values) for name, values in groups.items()},
    )
    run = SimpleNamespace(test=test, name="a/seed-0", settings={"data_index_sha256": "0"})
    selected = [SimpleNamespace(run=run)]
    return SimpleNamespace(selected=selected, labels=["af"], replicates=50, seed=0)


TIMES = [f"{2015 + k % 4}-03-01T10:00:00" for k in range(600)]


@pytest.mark.parametrize(
    "groups",
    [
        {"time": np.array(TIMES, object)},
        {"year": np.array([2015.0 + k % 4 for k in range(600)])},
        {"date": np.array([time[:10] for time in TIMES], object)},
    ],
)
def test_periods_are_calendar_years_with_the_auroc_of_their_records(groups):
    comparison = with_groups(**groups)
    rows = describe_risks(comparison, ["af"])["periods"]
    assert [row["period"] for row in rows] == ["2015", "2016", "2017", "2018"]
    test, years = comparison.selected[0].run.test, np.arange(600) % 4
    for k, row in enumerate(rows):
        expected = roc_auc_score(test.label_NK[years == k, 0], test.logit_NK[years == k, 0])
        assert row["auroc"]["value"] == pytest.approx(expected)
        assert row["n"] == 150


def test_many_years_are_joined_and_records_without_a_date_are_counted():
    years = np.array([2000.0 + k % 20 for k in range(600)])
    years[:7] = np.nan
    rows = describe_risks(with_groups(year=years), ["af"])["periods"]
    assert [row["period"] for row in rows][:2] == ["2000–2002", "2003–2005"]
    assert rows[-2]["period"] == "2018–2019" and rows[-1]["n"] == 7
    assert sum(row["n"] for row in rows) == 600


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({}, "the shards hold no column time, date or year"),
        ({"time": np.array(["soon"] * 600, object)}, "no value of time can be read as a date"),
        ({"year": np.full(600, 2020.0)}, "all ECGs are of 2020"),
        ({"year": np.arange(600) % 9 + 2150.0}, "dates run from 2150 to 2158: they were shifted"),
    ],
)
def test_why_there_are_no_periods_is_said(groups, reason):
    assert describe_risks(with_groups(**groups), ["af"])["periods"].startswith(reason)


def comparison_on(shards: ShardSet, **settings):
    """A model that is wrong about some test records of a set of shards, by its index."""
    rows = shards.index[shards.index["split"] == "test"]
    label_N = rows["label.af"].to_numpy(float)
    wrong_N = np.linspace(0.9, 0.1, len(rows))  # how far each probability is from its label
    probability_N = np.where(label_N == 1, 1 - wrong_N, wrong_N)
    test = Predictions(
        record_N=rows["record"].to_numpy(object),
        patient_N=rows["patient"].to_numpy(object),
        labels=["af"],
        label_NK=label_N[:, None],
        logit_NK=np.log(probability_N / (1 - probability_N))[:, None],
        probability_NK=probability_N[:, None],
    )
    digest = settings.pop("digest", shards.index_sha256)
    run = SimpleNamespace(test=test, name="a/seed-0", settings={"data_index_sha256": digest})
    return SimpleNamespace(selected=[SimpleNamespace(run=run)], labels=["af"]), rows


def test_the_most_confident_errors_are_drawn_by_key_one_a_patient(shards):
    opened = open_shard_set(str(shards))
    comparison, rows = comparison_on(opened)
    errors, page = describe_errors(comparison, {"data.shards": str(shards)})
    known = rows[rows["label.af"].notna()]
    first = known.drop_duplicates("patient")["key"].tolist()
    assert [error["key"] for error in errors] == first[: len(errors)] and 3 < len(errors) <= 10
    gaps = [abs(error["value"] - error["probability"]) for error in errors]
    assert gaps == sorted(gaps, reverse=True) and min(gaps) > 0.5
    assert page.count("<figure>") == len(errors)
    names = {*rows["record"], *rows["patient"]}
    assert not [name for name in names if name in re.sub(r'd="[^"]*"', "", page)]


def test_errors_are_not_drawn_from_other_or_damaged_or_absent_shards(shards, tmp_path):
    opened = open_shard_set(str(shards))
    comparison, _ = comparison_on(opened, digest="0" * 64)
    reason, page = describe_errors(comparison, {"data.shards": str(shards)})
    assert "is not the data that was tested" in reason and not page
    comparison, _ = comparison_on(opened)
    reason, page = describe_errors(comparison, {"data.shards": str(tmp_path / "absent")})
    assert reason.startswith("the shards cannot be read here") and not page
    copy = shutil.copytree(shards, tmp_path / "copy")
    for path in copy.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    reason, page = describe_errors(comparison, {"data.shards": str(copy)})
    assert "is damaged" in reason and not page


def selection_beside(tmp_path, **changes):
    table = tmp_path / "cohort.csv"
    table.write_text("record\n1\n")
    count = {"text": "all ECGs", "ecgs": 9, "patients": 4}
    left = {"text": "younger than 18", "ecgs": 2, "patients": 1}
    flow = {"start": count, "left_out": [left], "labelled": count, "labels": []} | changes
    about = {"table": {"file": "cohort.csv", "sha256": sha256_of(table)}, "flow": flow}
    write_json(tmp_path / "cohort.flow.json", about)
    return {"made_from": {"table": str(table)}}


def test_the_flow_beside_the_table_of_the_shards_is_read_if_it_is_of_that_table(tmp_path):
    description = selection_beside(tmp_path)
    flow = _read_selection(description)
    assert (flow.start.ecgs, flow.left_out[0].text) == (9, "younger than 18")
    (tmp_path / "cohort.csv").write_text("record\n2\n")
    assert _read_selection(description) is None
    assert _read_selection({}) is None
    assert _read_selection({"made_from": {"table": str(tmp_path / "gone.csv")}}) is None


@pytest.mark.parametrize(
    "changes", [{"start": {"text": "x", "ecgs": "9", "patients": 4}}, {"labels": [3]}]
)
def test_a_damaged_flow_is_refused_by_name(tmp_path, changes):
    with pytest.raises(ValueError, match=r"cohort\.flow\.json is damaged: "):
        _read_selection(selection_beside(tmp_path, **changes))


def test_checklists_have_their_items_and_every_answer_is_a_fact(sweep):
    lists, comparison = read_checklists(), compare(sweep, 60)
    numbers = [number for number, _, _ in lists["lists"]["TRIPOD+AI"]["items"]]
    assert len(numbers) == len(set(numbers)) == 52 and {"12b", "12g", "24"} <= set(numbers)
    items = fill_checklists(comparison, "not readable")
    assert {item["checklist"] for item in items} == {"TRIPOD+AI", "PROBAST+AI", "EHRA AI checklist"}
    used = {fact for about in lists["lists"].values() for _, _, fact in about["items"]}
    assert set(lists["facts"]) <= used
    for item in items:
        assert item["is_known"] == (item["text"] != "for the authors")
    by_number = {item["number"]: item for item in items if item["checklist"] == "TRIPOD+AI"}
    assert by_number["12g"]["is_known"] and not by_number["17"]["is_known"]
    assert not by_number["20a"]["is_known"]  # without shards, the flow is not known
    assert "afib_5y" in by_number["21"]["text"]
    assert not by_number["18c"]["is_known"]  # there was no protocol
    locked = replace(comparison, protocol={"text": "fixed", "is_warning": False})
    flow = CohortFlow(
        **{"in_table": 9, "left_out": {}, "splits": [], "labels": [], "flags": {}, "signal": ""},
        index_sha256="",
        on_censoring="264 ECGs left out",
    )
    by_number = {item["number"]: item["text"] for item in fill_checklists(locked, flow)}
    assert by_number["18c"].startswith("protocol.json") and "264 ECGs" in by_number["11"]


@pytest.mark.parametrize(("dates", "is_said"), [("shift", True), ("keep", False)])
def test_shifted_dates_are_said_beside_the_periods(sweep, dates, is_said):
    flow = CohortFlow(
        in_table=1, left_out={}, splits=[], labels=[], flags={}, signal="", index_sha256=""
    )
    period = {"label": "afib_5y", "period": "2015", "n": 3, "reason": "too few"}
    more = {"periods": [period], "errors": []}
    about = compare(sweep, 60), {}, sweep, replace(flow, dates=dates), {}, (), more
    assert ("neighbouring years mix" in render_report(*about)) == is_said


def test_one_strategy_with_baselines_is_compared_with_them(tmp_path):
    test_set = make_test_set(150)
    make_sweep(tmp_path, {"keep": 2.5}, (0, 1), test_set)
    make_baselines(tmp_path, test_set, 0.5)
    sentences = headline(compare(tmp_path, 60))
    assert sentences[0].endswith("there is no other strategy to compare it with.")
    assert sentences[1].startswith(
        "Compared with models that need no network, it beats age and sex"
    )
