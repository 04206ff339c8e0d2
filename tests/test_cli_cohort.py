"""`hpc-ecg cohort`: from two tables to one that is ready for shards; each mistake is one line."""

import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest

from hpc_ecg.cli import main
from hpc_ecg.cohort.table import Columns, read_cohort

ECGS = """record,patient,time,age,note,end,dead
e1,SECRET1,2010-01-01,50,"kept, too",2019-01-01,
e2,SECRET1,2012-01-01,52,,2019-01-01,
e3,SECRET2,2010-01-01,60,,2012-01-01,2012-01-01
e4,SECRET2,,60,,2012-01-01,2012-01-01
e5,SECRET3,2010-01-01,17,,2019-01-01,
e6,SECRET4,2010-01-01,x,,,
e7,,2010-01-01,44,,2019-01-01,
"""
EVENTS = """patient,time,code
SECRET1,2011-06-01,I48.0
SECRET3,2009-06-01,I48.1
SECRET4,2010-06-01,I10
,2010-06-01,I48.0
SECRET9,2010-06-01,I48.9
"""
FOLLOW = """patient,end,dead
SECRET1,2019-01-01,
SECRET2,2012-01-01,2012-01-01
SECRET3,2019-01-01,
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    tables = {"ecgs": ECGS, "events": EVENTS, "follow": FOLLOW}
    tables["twice"] = ECGS.replace("e2", "e1")
    tables["yes"] = ECGS.replace("2019-01-01,\n", "2019-01-01,yes\n", 1)
    tables["dmy"] = ECGS.replace("2010-01-01", "03/04/2010")
    tables["zone"] = EVENTS.replace("2011-06-01", "2011-06-01T10:00Z")
    tables["strangers"] = EVENTS.replace("SECRET", "0")
    tables["two"] = FOLLOW + "SECRET1,2019-01-01,\n"
    tables["foreign"] = FOLLOW.replace("SECRET", "0")
    tables["labelled"] = ECGS.replace("note", "label")
    tables["none"] = "patient,time,code\n"
    tables["page"] = "<html><body>Log in</body></html>\n"
    (folder / "binary").write_bytes(b"\xd0\0I48")
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    (folder / "codes.txt").write_text("I48.0\n\nI48.1\n")
    (folder / "empty.txt").write_text("\n")
    return folder


def command_of(folder, out, changes=None):
    """A command without mistakes, but for `changes`: flag -> value, None drops the flag."""
    flags = {
        "ECGS": folder / "ecgs.csv",
        "EVENTS": folder / "events.csv",
        "--out": out,
        "--event-prefix": "I48",
        "--within": "5y",
        "--followed-until": "end",
        "--censored": "missing",
    } | (changes or {})
    command = ["cohort", *(str(flags.pop(name)) for name in ("ECGS", "EVENTS"))]
    for flag, value in flags.items():
        if value is not None:
            command += [flag] if value is True else [flag, str(value)]
    return command


def exit_code_of(command):
    try:
        return main(command)
    except SystemExit as stop:
        return stop.code


def labels_of(folder, out, **changes):
    """Record -> label, of a command that works."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    assert exit_code_of(command_of(folder, out, flags)) == 0
    table = pd.read_csv(out, dtype=str, keep_default_na=False)
    return dict(zip(table["record"], table["label"], strict=True))


def test_two_tables_become_one_with_labels_and_its_flow(folder, tmp_path, capsys):
    out = tmp_path / "cohort.csv"
    assert exit_code_of(command_of(folder, out)) == 0
    assert out.read_text().splitlines() == [
        "record,patient,time,age,note,end,dead,label,days_to_event,days_followed",
        'e1,SECRET1,2010-01-01,50,"kept, too",2019-01-01,,1,516.0,3287.0',
        "e3,SECRET2,2010-01-01,60,,2012-01-01,2012-01-01,,,730.0",
        "e6,SECRET4,2010-01-01,x,,,,,,",
    ]
    output = capsys.readouterr().out
    files = [tmp_path / f"cohort{end}" for end in (".csv", ".flow.txt", ".flow.svg", ".flow.json")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    text = files[1].read_text()
    assert output == f"{text}\nwritten: {', '.join(map(str, files))}\n"
    assert text.splitlines()[:10] == [
        "ECGs  patients",
        "   7         4  in the table",
        "  -1         0  no patient",
        "  -1         0  no readable date of the ECG",
        "   0         0  the patient has an event without a readable date",
        "  -2        -1  prevalent: an event at or before the ECG",
        "   3         3  in the cohort",
        "   1         1    positive: an event within 5y",
        "   0         0    negative",
        "   1         1    missing, censored: the end of follow-up is unknown",
    ]
    about = json.loads(files[3].read_text())
    assert about["table"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert about["sources"]["events"]["sha256"] == hashlib.sha256(EVENTS.encode()).hexdigest()
    assert about["sources"]["events"]["file"] == "events.csv"
    assert about["sources"]["event_prefix"] == ["I48"]
    assert about["rules"]["within"] == "5y" and about["flow"]["labelled"]["ecgs"] == 3
    assert "3 of 4" in text.splitlines()[-3]
    assert "events of the outcome: 4, of 3 patients; 1 name no patient" in text.splitlines()[-2]
    assert text.splitlines()[-1].startswith("! label: 2 ECGs without a label because follow-up")


def test_no_patient_identifier_is_printed_or_drawn(folder, tmp_path, capsys):
    out = tmp_path / "cohort.csv"
    assert exit_code_of(command_of(folder, out)) == 0
    assert (
        exit_code_of(command_of(folder, out, {"ECGS": folder / "twice.csv", "--force": True})) == 2
    )
    output = capsys.readouterr()
    written = [path.read_text() for path in tmp_path.glob("*.flow.*")]
    assert len(written) == 3 and not any("SECRET" in t for t in [*written, output.out, output.err])


def test_the_labelled_table_is_read_as_a_cohort(folder, tmp_path):
    out = tmp_path / "cohort.csv"
    assert exit_code_of(command_of(folder, out)) == 0
    cohort = read_cohort(out, Columns(labels=["label", "days_to_event"], patient="patient"))
    np.testing.assert_equal(cohort.labels_NK, [[1, 516], [np.nan] * 2, [np.nan] * 2])
    assert cohort.records.tolist() == ["e1", "e3", "e6"]


@pytest.mark.slow
def test_every_option_reaches_the_rules(folder, tmp_path):
    out = tmp_path / "cohort.csv"
    labels = {"e1": "1", "e3": "", "e6": ""}
    assert labels_of(folder, out) == labels
    again = {"force": True}
    assert labels_of(folder, out, **again, within="1y") == {"e1": "0", "e3": "0", "e6": ""}
    assert labels_of(folder, out, **again, censored="exclude") == {"e1": "1"}
    death = {"died": "dead", "death": "negative"}
    assert labels_of(folder, out, **again, **death) == labels | {"e3": "0"}
    assert labels_of(folder, out, **again, follow_up=folder / "follow.csv", **death) == labels | {
        "e3": "0"
    }
    complete = {"followed_until": None, "assume_complete_follow_up": True, "censored": None}
    assert labels_of(folder, out, **again, **complete) == {"e1": "1", "e3": "0", "e6": "0"}
    assert "negative (follow-up is assumed" in (tmp_path / "cohort.flow.txt").read_text()
    kept = labels_of(folder, out, **again, keep_prevalent=True)
    assert kept == {"e1": "1", "e2": "0", "e3": "", "e5": "0", "e6": ""}
    last = labels_of(folder, out, **again, keep_prevalent=True, ecgs_per_patient="last")
    assert last == {"e2": "0", "e3": "", "e5": "0", "e6": ""}
    assert labels_of(folder, out, **again, min_age="55") == {"e3": ""}
    assert labels_of(folder, out, **again, max_age="55") == {"e1": "1"}
    assert labels_of(folder, out, **again, blanking="2y") == {"e3": "", "e6": ""}
    event = {"event_prefix": None, "event": "I10"}
    assert labels_of(folder, out, **again, **event)["e6"] == "1"
    assert labels_of(folder, out, **again, event_prefix=None, any_event=True)["e6"] == "1"
    codes = {"event_prefix": None, "event_file": folder / "codes.txt"}
    assert labels_of(folder, out, **again, **codes) == labels
    assert exit_code_of(command_of(folder, out, {"--force": True, "--label": "af"})) == 0
    assert "af" in pd.read_csv(out).columns


def test_each_table_can_have_its_own_date_format(folder, tmp_path):
    for name in ("ecgs", "events", "follow"):
        text = (folder / f"{name}.csv").read_text()
        text = re.sub(r"(\d{4})-(\d\d)-(\d\d)", r"\3.\2.\1", text)
        (tmp_path / f"{name}.csv").write_text(text)
    changes = {
        "ECGS": tmp_path / "ecgs.csv",
        "EVENTS": tmp_path / "events.csv",
        "--follow-up": tmp_path / "follow.csv",
        "--date-format": "%d.%m.%Y",
        "--event-date-format": "%d.%m.%Y",
        "--follow-up-date-format": "%d.%m.%Y",
    }
    assert exit_code_of(command_of(folder, tmp_path / "out.csv", changes)) == 0
    labelled = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert labelled["days_to_event"].tolist()[0] == "516.0"
    assert labelled["days_followed"].tolist()[:2] == ["3287.0", "730.0"]
    for flag in list(changes)[3:]:
        command = command_of(folder, tmp_path / "other.csv", changes | {flag: None})
        assert exit_code_of(command) == 2


def test_a_column_that_is_not_understood_throughout_is_named(folder, tmp_path, capsys):
    ages = ECGS.replace(",60,", ",060Y,").replace(",50,", ",90+,")
    (tmp_path / "ecgs.csv").write_text(ages.replace("2012-01-01,2012-01-01", "lost,2012-01-01"))
    changes = {"ECGS": tmp_path / "ecgs.csv", "--min-age": "18", "--max-age": "89"}
    assert exit_code_of(command_of(folder, tmp_path / "cohort.csv", changes)) == 0
    assert pd.read_csv(tmp_path / "cohort.csv")["record"].tolist() == ["e3"]
    said = capsys.readouterr().out
    for line in (
        "ecgs.csv: column age: 6 understood (1 capped: 90 or older), "
        "1 NOT understood, taken as missing (row 6)",
        "ecgs.csv: column end: 4 understood, 1 empty, 2 NOT understood, taken as missing (row 3)",
    ):
        assert f"\n{line}\n" in said
    assert "column time" not in said  # understood: nothing to say
    assert said.startswith((tmp_path / "cohort.flow.txt").read_text())


def test_codes_that_no_event_has_are_reported(folder, tmp_path, capsys):
    changes = {"--event": "I84.0"}
    assert exit_code_of(command_of(folder, tmp_path / "cohort.csv", changes)) == 0
    assert "codes that no event has: I84.0" in capsys.readouterr().out


def test_texts_for_an_empty_cell_are_not_a_patient(folder, tmp_path):
    """Otherwise all rows without a patient would share their events."""
    rows = {"ecgs": "record,patient,time\na,NULL,2010-01-01\nb,p1,2010-01-01\n"}
    rows["events"] = "patient,time,code\nNULL,2011-01-01,I48\np1,2012-01-01,I48\n"
    for name, text in rows.items():
        (tmp_path / f"{name}.csv").write_text(text)
    command = ["cohort", str(tmp_path / "ecgs.csv"), str(tmp_path / "events.csv"), "--event", "I48"]
    command += ["--within", "5y", "--assume-complete-follow-up", "--patient", "patient"]
    command += ["--time", "time", "--out", str(tmp_path / "cohort.csv")]
    assert exit_code_of(command) == 0
    assert pd.read_csv(tmp_path / "cohort.csv")["record"].tolist() == ["b"]


MISTAKES = [
    ({"ECGS": "nowhere.csv"}, "nowhere.csv: no such table"),
    ({"EVENTS": "nowhere.csv"}, "nowhere.csv: no such table"),
    ({"ECGS": "FOLDER/twice.csv"}, "column record, row 2 repeats an earlier row (1 such"),
    ({"ECGS": "FOLDER/dmy.csv"}, "column time, row 1: a date that is not YYYY-MM-DD could be"),
    ({"ECGS": "FOLDER/labelled.csv"}, "has a column label already"),
    ({"EVENTS": "FOLDER/zone.csv"}, "a date with a time zone, but"),
    ({"EVENTS": "FOLDER/strangers.csv"}, "strangers.csv: none of its patients has an ECG"),
    ({"--out": None}, "--out"),
    ({"--out": "cohort.xlsx"}, "must end in .csv"),
    ({"--out": "FOLDER/ecgs.csv"}, "ecgs.csv, an input"),
    ({"--out": "FOLDER/ecgs.csv", "--force": True}, "ecgs.csv, an input"),
    ({"--out": "/proc/x/y.csv"}, "/proc/x"),
    ({"--patient": "none"}, "no column 'none'"),
    ({"--time": "none"}, "no column 'none'"),
    ({"--record": "none"}, "no column 'none'"),
    ({"--min-age": "18", "--age": "none"}, "no column 'none'"),
    ({"--min-age": "old"}, "--min-age: invalid float value: 'old'"),
    ({"--min-age": "90", "--max-age": "18"}, "--min-age 90 must not be above --max-age 18"),
    ({"--event-patient": "none"}, "no column 'none'"),
    ({"--event-time": "none"}, "no column 'none'"),
    ({"--event-code": "none"}, "no column 'none'"),
    ({"--event-time": "code"}, "column code: no cell is a date"),
    ({"--event-prefix": None}, "the outcome: give --event"),
    ({"--event-prefix": ""}, "not empty"),
    ({"--any-event": True}, "the outcome: give --event"),
    ({"--event-prefix": "C"}, "no row of column code has such a code"),
    (
        {"--event-prefix": None, "--event": "I48"},
        "such a code; codes that begin so: I48.0, I48.1, I48.9; --event-prefix matches beginnings",
    ),
    ({"--event-prefix": None, "--event": "i480"}, "codes that begin so: I48.0; --event-prefix"),
    ({"--event-prefix": "i48."}, "codes that begin so: I48.0, I48.1, I48.9; --event-prefix"),
    ({"EVENTS": "FOLDER/none.csv"}, "none.csv: the table has no rows"),
    ({"EVENTS": "FOLDER/page.csv"}, "page.csv: cannot be read as a table: it is HTML or XML"),
    ({"--event-file": "FOLDER/empty.txt"}, "empty.txt holds no code"),
    ({"--event-file": "nowhere.txt"}, "nowhere.txt"),
    ({"--within": None}, "--within"),
    ({"--within": "5"}, "--within must be like 5y"),
    ({"--blanking": "x"}, "--blanking must be like 5y"),
    ({"--blanking": "5y"}, "--blanking 5y must be shorter than --within 5y"),
    ({"--date-format": "day"}, "a date format must hold day, month and year"),
    ({"--label": "note"}, "has a column note already"),
    ({"--label": "days_followed"}, "--label"),
    ({"--label": ""}, "--label"),
    ({"--followed-until": None}, "--followed-until --assume-complete-follow-up"),
    ({"--followed-until": None, "--assume-complete-follow-up": True}, "--censored"),
    ({"--assume-complete-follow-up": True}, "not allowed with"),
    ({"--followed-until": "none"}, "no column 'none'"),
    ({"--followed-until": ""}, "no column ''"),
    ({"--followed-until": "note"}, "column note: no cell is a date"),
    ({"--censored": None}, "--censored exclude, missing or ipcw: needed"),
    ({"--censored": "zero"}, "--censored: invalid choice: 'zero'"),
    ({"--death": "negative"}, "--died COLUMN and --death"),
    ({"--died": "dead"}, "--died COLUMN and --death"),
    ({"--died": "none", "--death": "negative"}, "no column 'none'"),
    ({"--died": "dead", "--death": "maybe"}, "--death: invalid choice: 'maybe'"),
    (
        {"--died": "dead", "--death": "negative", "ECGS": "FOLDER/yes.csv"},
        "row 1 is no date (1 such)",
    ),
    ({"--record": ""}, "no column ''"),
    ({"--follow-up": "nowhere.csv"}, "nowhere.csv: no such table"),
    ({"--follow-up": "FOLDER/two.csv"}, "column patient, row 4 repeats an earlier row"),
    ({"--follow-up": "FOLDER/foreign.csv"}, "none of its patients has an ECG"),
    ({"--follow-up": "FOLDER/follow.csv", "--follow-up-patient": "x"}, "no column 'x'"),
    ({"--ecgs-per-patient": "two"}, "--ecgs-per-patient: invalid choice: 'two'"),
    ({"--seed": "x"}, "--seed: invalid int value: 'x'"),
    ({"--seed": "0"}, "--seed is for --ecgs-per-patient random; here it would do nothing"),
    ({"--age": "age_years"}, "--age is for --min-age and --max-age; here it would do nothing"),
    ({"--follow-up-patient": "x"}, "--follow-up-patient is for --follow-up; here it would do"),
    ({"--follow-up-date-format": "%d/%m/%Y"}, "--follow-up-date-format is for --follow-up"),
    ({"--event-file": "FOLDER/binary"}, "binary is not text in UTF-8"),
    ({"--seed": "1", "--ecgs-per-patient": "first"}, "--seed is for --ecgs-per-patient random"),
    ({"--min-age": "70"}, "no ECG is left: 1 no patient; 1 no readable date"),
    ({"--unknown": "1"}, "--unknown"),
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    MISTAKES,
    ids=[" ".join(f"{k}={str(v)[:20]}" for k, v in changes.items()) for changes, _ in MISTAKES],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(
    folder, tmp_path, capsys, monkeypatch, changes, expected
):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    changes = {
        flag: value.replace("FOLDER", str(folder)) if isinstance(value, str) else value
        for flag, value in changes.items()
    }
    assert exit_code_of(command_of(folder, tmp_path / "cohort.csv", changes)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("hpc-ecg") and expected in line and "SECRET" not in line
    assert list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
