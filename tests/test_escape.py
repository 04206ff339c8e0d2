"""A name from a table cannot become markup, a formula or a control sequence where it is written."""

import csv
import io
import os
import re
import stat
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from conftest import plan_for
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from test_compare import edit_evaluation, make_run, make_sweep, make_test_set

from hpc_ecg.cli import main
from hpc_ecg.cohort.privacy import read_key
from hpc_ecg.cohort.table import Columns, read_table
from hpc_ecg.comparison.report import write_report
from hpc_ecg.evaluation.predictions import read_predictions, write_predictions
from hpc_ecg.log import printable, say
from hpc_ecg.reporting.ecg_paper import draw_ecg
from hpc_ecg.reporting.escape import code, csv_text, from_csv, markdown
from hpc_ecg.reporting.plots import Group, line_plot
from hpc_ecg.shards.sharding import shard_ecgs

NASTY = '=2+3<script>x</script> |*b*_i_`c`[l](http://x.y)\x1b[31m\n# $\\frac{$ &lt; "\x07'
SVG = "{http://www.w3.org/2000/svg}"
FORMULAS = ["=2+3", "+cmd|' /C calc'!A0", "-1+2", "@SUM(A1)", "\t=2", "\r=2", "\n=2", "＝2+3", "-x"]
KEPT = [
    "-1.5",
    "+3",
    "-1e-5",
    "1e5",
    "-1,5",
    "2019-01-31",
    "a=b",
    "-",
    "",
    "'",
    "it's",
    " =2",
    "-3 %",
]


def rendered(text):
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.mark.parametrize(
    "name",
    [
        NASTY,
        "<b>x</b>",
        "<!-- x",
        "<http://x.y>",
        "**x**",
        "_x_",
        "__x__",
        "~~x~~",
        "![x](y)",
        "# x",
        "- x",
        "+ x",
        "> x",
        "1. x",
        "2) x",
        "---",
        "===",
        "    x",
        "`x`",
        "a|b",
        "\\*x\\*",
        "&copy;",
        "&#60;",
        "[x]: y",
        "x\n\n# y",
        "ssl_new_head",
        "R&D",
        "p < 0.05",
        "-1.5",
        "x #",
    ],
)
@pytest.mark.parametrize("frame", ["{}", "## {}", "- {}", "| a |\n|---|\n| {} |", "{}\n{}"])
def test_a_name_is_the_text_that_it_is_in_markdown(name, frame):
    harmless = rendered(frame.replace("{}", "Q"))
    page = rendered(frame.replace("{}", markdown(name)))
    text = printable(name).replace("\n", " ").strip()
    shown = escapeHtml(text)
    assert page == harmless.replace("Q", shown)


def test_a_usual_name_stays_readable_in_markdown_and_is_code_where_that_is_wanted():
    assert markdown("ssl_new_head is best (p < 0.001): 0.1 to −0.2") == (
        "ssl_new_head is best (p < 0.001): 0.1 to −0.2"
    )
    assert code("ssl_new_head,lr=1e-5") == "`ssl_new_head,lr=1e-5`"
    assert code("a`<b>") == "a&#96;&#60;b>"


@pytest.mark.parametrize("text", [*FORMULAS, "'=2+3", "''=2", "'-x", "'-1.5"])
def test_a_formula_is_text_to_a_spreadsheet_and_comes_back_as_it_was(text):
    table = pd.DataFrame({text: [text, "x"], "n": [-1.5, 2]})
    header, first, _ = csv.reader(io.StringIO(csv_text(table), newline=""))
    assert header == ["'" + text, "n"] and first == ["'" + text, "-1.5"]
    read = pd.DataFrame([first], columns=header, dtype=str)
    assert from_csv(read).columns[0] == text and from_csv(read).iloc[0, 0] == text


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_formula_stays_as_it_is(text):
    _, row = csv.reader(io.StringIO(csv_text(pd.DataFrame({"a": [text], "b": [1]})), newline=""))
    assert row[0] == text
    assert from_csv(pd.DataFrame({"a": [text]}, dtype=str))["a"][0] == text


def test_whole_numbers_stay_whole_beside_empty_cells():
    table = pd.DataFrame({"n": [3, None], "=a": ["=b", None]}, dtype=object)
    assert csv_text(table) == "n,'=a\n3,'=b\n,\n"


def test_a_table_that_was_escaped_is_read_as_it_was(tmp_path):
    table = pd.DataFrame({"=a": [*FORMULAS, *KEPT], "b": "x"}, dtype=str)
    (tmp_path / "t.csv").write_text(csv_text(table), newline="")
    read = read_table(tmp_path / "t.csv")
    assert read.columns.tolist() == ["=a", "b"]
    assert read["=a"].tolist() == table["=a"].tolist()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (NASTY, "=2+3<script>x</script> |*b*_i_`c`[l](http://x.y)\ufffd[31m"),
        ("$x^2$", "$x^2$"),
        ("$\\evil$", "$\\evil$"),
        ("_hidden", "_hidden"),
        ("a < b & c", "a < b & c"),
        ("\x00\ufffe", "\ufffd\ufffd"),
    ],
)
def test_a_figure_with_any_name_is_well_formed_and_shows_it(name, shown, recwarn):
    svg = line_plot([Group(name=name, bold=([0, 1], [0, 1]))], name="n", xlabel=name, ylabel="y")
    texts = [t.text or "" for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert [t.strip() for t in texts].count(shown) == 2 and not len(recwarn)
    ElementTree.fromstring(draw_ecg(np.zeros((1, 2500)), ["II"], 250, name))


def test_what_is_printed_or_logged_steers_no_terminal(capsys):
    say(f"a\x1b[2J{NASTY}\u202eb\u00a0c")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out and "b c\n" in out


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nasty")
    # as the name of a folder, which cannot hold control characters
    strategy = "".join(c if c.isprintable() else " " for c in NASTY.replace("/", "÷"))
    make_sweep(
        folder,
        {strategy: 1.0, "x": 0.5},
        (0, 1),
        make_test_set(80, (NASTY, "b")),
        task="multilabel",
    )
    for path in folder.glob("*/seed-*/predictions/*.parquet"):
        made = read_predictions(path)
        made.groups["sex"] = np.where(made.groups["sex"] == "male", NASTY, "f").astype(object)
        write_predictions(path, made)
    for run in folder.glob("*/seed-*"):
        edit_evaluation(run, dict)  # changes nothing, vouches for it
    return write_report(folder, replicates=50)


@pytest.mark.slow
def test_every_file_of_a_report_shows_a_nasty_name_as_text(report):
    folder = report.page.parent
    for path in folder.rglob("*"):
        if path.is_dir():
            continue
        text = path.read_text()
        assert "\x1b" not in text or path.suffix == ".csv", path
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                cells = [cell for row in csv.reader(file) for cell in row]
            assert not [c for c in cells if re.match(r"[=@\t\r]|[+-](?![\d.])", c)], path
        elif path.suffix == ".svg":
            ElementTree.fromstring(text)
        elif path.suffix == ".md":
            page = rendered(text)
            assert "<script" not in page and "<a " not in page and "<em>" not in page, path
            assert page.count("<h1>") == 1
        elif path.suffix == ".html":
            links = re.findall(r"<a [^>]*>", text)
            assert "<script" not in text
            assert all(re.match(r'<a href="(#|[\w./%-]+")', link) for link in links), path
    card = next(path for path in report.cards if path.name == "MODEL_CARD.md")
    assert "&lt;script&gt;x&lt;/script&gt; |*b*_i_`c`[l](http://x.y)?[31m # $" in rendered(
        card.read_text()
    )


@pytest.fixture
def open_umask():
    before = os.umask(0o002)
    yield
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_files_of_shards_show_nasty_names_as_text_and_are_not_for_others(
    cohort, tmp_path, open_umask
):
    table = pd.read_csv(cohort, dtype=str, keep_default_na=False).rename(columns={"af": NASTY})
    table["record"] = [f"={n}<b>|\x1b{row}" for row, n in enumerate(table["file"])]
    table["site"] = "@SUM(A1)"
    (tmp_path / "t.csv").write_text(csv_text(table), newline="")
    out = tmp_path / "out"
    columns = Columns(labels=[NASTY], patient="patient_id", file="file")
    shard_ecgs(plan_for(tmp_path / "t.csv", out, signals=cohort.parent, columns=columns))
    assert read_table(tmp_path / "t.csv")[NASTY].tolist() == table[NASTY].tolist()
    with (out / "left_out.csv").open(newline="") as file:
        records = [row["record"] for row in csv.DictReader(file)]
    assert records and all(record.startswith("'=") for record in records)
    assert main(["data", "inspect", str(out), "--out", str(tmp_path / "page.html")]) == 0
    for page in (tmp_path / "page.html", out / "quality.html"):
        assert "<script" not in page.read_text() and mode_of(page) == 0o640
    assert "&lt;script&gt;" in (tmp_path / "page.html").read_text()
    for name in ("index.parquet", "left_out.csv", "quality.csv"):
        assert mode_of(out / name) == 0o640, name
    assert mode_of(out / "shard-000000.tar") == 0o664 and mode_of(out) == 0o775


def test_the_files_of_a_cohort_show_nasty_names_as_text_and_the_table_is_read_as_it_was(
    tmp_path, open_umask, capsys
):
    ecgs = pd.DataFrame(
        {
            "record": ["=1+1", "-x", "+y"],
            "patient": ["@a", "b", "c"],
            "time": ["2020-01-01"] * 3,
            NASTY: [*FORMULAS[:2], "-1.5"],
            "end": ["2025-01-01"] * 3,
        }
    )
    (tmp_path / "ecgs.csv").write_text(csv_text(ecgs), newline="")
    code_of_event = "I48\x1b[2J<b>"
    events = pd.DataFrame({"patient": ["@a"], "time": ["2020-06-01"], "code": [code_of_event]})
    (tmp_path / "events.csv").write_text(csv_text(events), newline="")
    out = tmp_path / "out.csv"
    words = ["cohort", tmp_path / "ecgs.csv", tmp_path / "events.csv", "--out", out, "--event"]
    words += [code_of_event, "--event", "\x1b[31mX", "--within", "1y", "--followed-until", "end"]
    assert main([*map(str, words), "--censored", "exclude"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert "\x1b" not in (tmp_path / "out.flow.txt").read_text()
    ElementTree.parse(tmp_path / "out.flow.svg")
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == ["'=1+1", "'-x", "'+y"] and rows[3][3] == "-1.5"
    assert rows[0][3] == f"'{NASTY}"
    pd.testing.assert_frame_equal(read_table(out)[[*ecgs]], ecgs, check_dtype=False)
    assert mode_of(out) == 0o640


def test_predictions_are_for_owner_and_group_at_most(tmp_path, open_umask):
    path = tmp_path / "predictions" / "test.parquet"
    make_run(tmp_path, make_test_set(20), 1.0, 0)
    assert mode_of(path) == 0o640
    os.umask(0o077)
    write_predictions(path, read_predictions(path))
    assert mode_of(path) == 0o600


@pytest.mark.parametrize(("mode", "is_open"), [(0o600, False), (0o400, False), (0o644, True)])
def test_a_key_that_others_can_read_is_said_in_a_line(tmp_path, caplog, mode, is_open):
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(mode)
    assert read_key(key) == b"k" * 32
    assert (f"--key {key} can be read by others: chmod 600 {key}" in caplog.text) == is_open
