"""The user's table: every format gives the same cohort, every mistake one line that says where."""

import bz2
import gzip
import io
import lzma
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hpc_ecg.cohort import table_files
from hpc_ecg.cohort.table import Columns, read_cohort
from hpc_ecg.cohort.table_files import read_table

ROWS = {
    "record": ["a", "b", "c"],
    "file": ["x/a", "x/b", "x/c"],
    "patient_id": ["17", "", " 4 "],
    "af": ["1", "0", ""],
    "lvef": ["0.5", "61", "-3e1"],
    "fold": ["train", "test", "train"],
    "hz": ["500", "", "250.0"],
    "age": ["61", "", "300"],
    "time": ["2020-05-31", "", "10:00"],
}
COLUMNS = Columns(labels=["af", "lvef"], patient="patient_id", split="fold", rate="hz")


def write_table(folder, kind, rows=ROWS):
    path = folder / f"table.{kind}"
    table = pd.DataFrame(rows)
    if kind == "parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_every_format_gives_the_same_cohort(tmp_path, kind):
    cohort = read_cohort(write_table(tmp_path, kind), COLUMNS)
    assert len(cohort) == 3
    assert cohort.records.tolist() == ["a", "b", "c"]
    assert cohort.files.tolist() == ["x/a", "x/b", "x/c"]
    assert cohort.patients.tolist() == ["17", "", "4"]
    assert cohort.splits.tolist() == ["train", "test", "train"]
    assert cohort.rates_hz.tolist() == pytest.approx([500, np.nan, 250], nan_ok=True)
    assert cohort.label_names == ["af", "lvef"]
    np.testing.assert_array_equal(cohort.labels_NK, [[1, 0.5], [0, 61], [np.nan, -30]])
    assert cohort.extra.to_dict("list") == {"age": ["61", "", "90"], "time": ROWS["time"]}


def test_numbers_in_parquet_are_read_as_the_same_text_as_in_csv(tmp_path):
    """A patient's split hangs on the text: a gap in the column must not make 17 into 17.0."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table(
        {
            "record": [1, 2, 3],
            "patient_id": [17, None, 4],
            "af": [1.0, None, 0.0],
            "age": [None] * 3,
        }
    )
    parquet.write_table(table, tmp_path / "table.parquet")
    cohort = read_cohort(tmp_path / "table.parquet", Columns(labels=["af"], patient="patient_id"))
    assert cohort.records.tolist() == ["1", "2", "3"]
    assert cohort.patients.tolist() == ["17", "", "4"]
    np.testing.assert_array_equal(cohort.labels_NK[:, 0], [1, np.nan, 0])
    assert cohort.extra["age"].tolist() == ["", "", ""]


def test_an_empty_label_is_missing_and_not_zero(tmp_path):
    cohort = read_cohort(write_table(tmp_path, "csv"), COLUMNS)
    assert np.isnan(cohort.labels_NK[2, 0]) and cohort.labels_NK[1, 0] == 0


def test_names_that_look_like_missing_values_stay_names(tmp_path):
    rows = ROWS | {"record": ["NA", "nan", "None"], "patient_id": ["a", "b", "-"]}
    cohort = read_cohort(write_table(tmp_path, "csv", rows), COLUMNS)
    assert cohort.records.tolist() == ["NA", "nan", "None"]


def test_texts_that_programs_write_into_empty_cells_are_not_patients(tmp_path):
    for cells in ([" NULL", "n/a", "-"], ["#N/A", "\\N", "unknown"], ["?", "NaT", "#VALUE!"]):
        cohort = read_cohort(write_table(tmp_path, "csv", ROWS | {"patient_id": cells}), COLUMNS)
        assert cohort.patients.tolist() == ["", "", ""]
    cohort = read_cohort(write_table(tmp_path, "csv", ROWS | {"patient_id": list("0x1")}), COLUMNS)
    assert cohort.patients.tolist() == ["0", "x", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record,patient_id,af,af\na,1,0,1\n", "its header names column 'af' twice"),
        ("record,patient_id,af\n\xe4,1,0\n", "is not text in UTF-8"),
    ],
)
def test_a_table_that_would_be_misread_is_refused(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_cohort(path, COLUMNS)


COMMAS = "record,patient_id,af\n0012,a b,1\nü,,\n"
KINDS = {
    "t.txt": COMMAS.replace(",", "\t").encode(),
    "tabs.csv": COMMAS.replace(",", "\t").encode(),
    "excel.txt": COMMAS.replace(",", "\t").encode("utf-16"),
    "semicolons.csv": COMMAS.replace(",", ";").encode("utf-8-sig"),
    "t.csv.gz": gzip.compress(COMMAS.encode()),
    "t.tsv.gz": gzip.compress(COMMAS.replace(",", "\t").encode()),
    "gzip.csv": gzip.compress(COMMAS.encode()),
    "t.csv.bz2": bz2.compress(COMMAS.encode()),
    "T.CSV": COMMAS.encode(),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_pandas_reads_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(KINDS[name])
    table = read_table(tmp_path / name)
    assert table.to_dict("list") == {
        "record": ["0012", "ü"],
        "patient_id": ["a b", ""],
        "af": ["1", ""],
    }


def test_a_parquet_file_is_known_by_its_content(tmp_path):
    write_table(tmp_path, "parquet").rename(tmp_path / "table.pq")
    assert read_table(tmp_path / "table.pq").to_dict("list") == ROWS


def test_the_only_sheet_of_a_spreadsheet_is_read_as_text(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    frame = pd.DataFrame(
        {"record": ["0012", "b"], "af": [1, None], "lvef": [61.5, 60], "n": [7, 8]}
    )
    frame.to_excel(path, index=False)
    expected = {"record": ["0012", "b"], "af": ["1", ""], "lvef": ["61.5", "60"], "n": ["7", "8"]}
    assert read_table(path).to_dict("list") == expected
    with pd.ExcelWriter(path) as book:
        frame.to_excel(book, sheet_name="one", index=False)
        frame.to_excel(book, sheet_name="two", index=False)
    assert "it must have one sheet with a table, it has one, two" in refusal(path)


def test_without_openpyxl_a_spreadsheet_is_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path = tmp_path / "t.xlsx"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    assert "to read .xlsx, pip install openpyxl (.xls: xlrd, .ods: odfpy), or save it" in refusal(
        path
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"<!DOCTYPE html><html><body>Log in</body></html>\n", "it is HTML or XML"),
        (b"  <html>\n<table>\n", "it is HTML or XML"),
        (b"record,patient_id,af\n", "the table has no rows"),
        (b"record;af;af\n1;2;3\n", "its header names column 'af' twice"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt"])
def test_a_file_without_a_table_says_what_it_is(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refusal(path)


def test_a_comma_is_a_decimal_comma_unless_it_could_mean_thousands(tmp_path):
    path = tmp_path / "t.csv"
    columns = Columns(labels=["lvef"], patient=None, rate="hz")
    path.write_text("record;lvef;hz\na;61,5;499,98\nb;-0,25;500\nc;;1000\n")
    cohort = read_cohort(path, columns)
    np.testing.assert_array_equal(cohort.labels_NK[:, 0], [61.5, -0.25, np.nan])
    np.testing.assert_array_equal(cohort.rates_hz, [499.98, 500, 1000])
    for cells in (("1,234", "5"), ("1,234", "0,5"), ("1,5", "2.5")):
        path.write_text(f"record;lvef;hz\na;{cells[0]};500\nb;{cells[1]};500\n")
        assert f"column lvef, row 1: '{cells[0]}' is not a number" in refusal(path, columns)


def test_a_rate_in_the_form_of_a_float_is_read(tmp_path):
    rows = ROWS | {"hz": ["5e2", "", "2.5E+2"]}
    assert read_cohort(write_table(tmp_path, "csv", rows), COLUMNS).rates_hz[[0, 2]].tolist() == [
        500,
        250,
    ]


def test_leading_zeros_of_identifiers_stay(tmp_path):
    rows = ROWS | {"record": ["0010", "010", "10"], "patient_id": ["007", "07", "7"]}
    columns = replace(COLUMNS, ids_as_written=True)
    cohort = read_cohort(write_table(tmp_path, "csv", rows), columns)
    assert cohort.records.tolist() == rows["record"]
    assert cohort.patients.tolist() == rows["patient_id"]


def test_a_table_saved_by_excel_is_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbfrecord,patient_id,af\r\n\xc3\xa4,1,1\r\n")
    cohort = read_cohort(path, Columns(labels=["af"], patient="patient_id"))
    assert cohort.records.tolist() == ["ä"]


def test_by_default_the_file_is_the_column_file_or_else_the_record(tmp_path):
    few = Columns(labels=["af"], patient=None)
    assert read_cohort(write_table(tmp_path, "csv"), few).files.tolist() == ["x/a", "x/b", "x/c"]
    rows = {name: ROWS[name] for name in ("record", "af")}
    cohort = read_cohort(write_table(tmp_path, "csv", rows), few)
    for column in (cohort.files, cohort.records, cohort.patients):
        assert column.tolist() == ["a", "b", "c"]
    assert cohort.splits is None and cohort.rates_hz is None
    rows = {name: ROWS[name] for name in ("file", "af")}
    cohort = read_cohort(write_table(tmp_path, "csv", rows), few)
    assert cohort.records.tolist() == ["x/a", "x/b", "x/c"]


def test_other_columns_can_name_file_and_record(tmp_path):
    columns = Columns(labels=["af"], patient=None, file="record", record="age")
    cohort = read_cohort(write_table(tmp_path, "csv"), columns)
    assert cohort.files.tolist() == ["a", "b", "c"] and cohort.records.tolist() == ["61", "", "300"]


def refusal(path, columns=COLUMNS):
    with pytest.raises(ValueError) as caught:
        read_cohort(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_table_is_named(tmp_path):
    assert "none.csv: no such table" in refusal(tmp_path / "none.csv")
    assert "no such table" in refusal(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["sex"]},
        {"patient": "sex"},
        {"file": "sex"},
        {"record": "sex"},
        {"split": "sex"},
        {"rate": "sex"},
    ],
)
def test_a_missing_column_is_named_with_those_of_the_table(tmp_path, changes):
    columns = Columns(**({"labels": ["af"], "patient": "patient_id"} | changes))
    message = refusal(write_table(tmp_path, "csv"), columns)
    assert "no column 'sex'; the table has record, file, patient_id, af" in message


def test_without_a_usual_name_the_option_for_the_paths_is_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("ecg_file,patient,af\na,1,0\n")
    message = refusal(path, Columns(labels=["af"], patient="patient"))
    assert message.endswith("has ecg_file, patient, af; name the column of paths with --file")
    assert "--file" not in refusal(path, Columns(labels=["af"], patient="patient", file="path"))


@pytest.mark.parametrize("name", ["patient", "file", "record", "split", "rate"])
def test_an_empty_column_name_is_a_mistake_and_not_a_default(tmp_path, name):
    """`--patient "$UNSET"` must not mean one patient per record."""
    columns = Columns(**({"labels": ["af"], "patient": "patient_id"} | {name: ""}))
    assert "no column ''" in refusal(write_table(tmp_path, "csv"), columns)


def test_a_label_named_twice_is_refused(tmp_path):
    columns = Columns(labels=["af", "af"], patient=None)
    assert "names a column twice" in refusal(write_table(tmp_path, "csv"), columns)


def test_an_empty_table_is_refused(tmp_path):
    rows = {name: [] for name in ROWS}
    assert "the table has no rows" in refusal(write_table(tmp_path, "csv", rows))
    (tmp_path / "table.csv").write_text("")
    assert "cannot be read as a table" in refusal(tmp_path / "table.csv")


@pytest.mark.parametrize("text", ["yes", "True", "inf", "nan", "1,500", "AF"])
@pytest.mark.parametrize("column", ["af", "hz"])
def test_a_label_or_rate_that_is_not_a_number_is_refused_with_its_row(tmp_path, column, text):
    message = refusal(write_table(tmp_path, "csv", ROWS | {column: ["1", text, text]}))
    assert f"column {column}, row 2: {text!r} is not a number (2 such rows)" in message


def test_a_record_that_is_listed_twice_is_refused_with_its_row(tmp_path):
    message = refusal(write_table(tmp_path, "csv", ROWS | {"record": ["a", "b", "a"]}))
    assert "column record, row 3 repeats an earlier row (1 such rows)" in message


def test_rows_with_more_cells_than_the_header_are_not_shifted(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("record,af\na,1,\nb,0,\n")
    assert "more cells than its header" in refusal(path, Columns(labels=["af"], patient=None))
    path.write_text("record,af\na,1\nb,0,\n")
    assert "Expected 2 fields in line 3" in refusal(path, Columns(labels=["af"], patient=None))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("content", [b"\x00\xff\xfe\x80" * 50, b"PAR1", b'a,"b\n1,2\n'])
def test_a_file_that_is_not_a_table_is_named(tmp_path, kind, content):
    path = tmp_path / f"table.{kind}"
    path.write_bytes(content)
    assert f"{path}: " in refusal(path)


def test_a_long_table_is_read_in_chunks_as_if_in_one(tmp_path, monkeypatch):
    names = [f"r{n}" for n in range(7)]
    patients = ["007", "", "1e3", "x", "", "NA", "8"]
    rows = {"record": names, "patient_id": patients, "af": [""] * 6 + ["oops"]}
    path, columns = write_table(tmp_path, "csv", rows), Columns(labels=["af"], patient="patient_id")
    monkeypatch.setattr(table_files, "ROWS_PER_CHUNK", 3)
    whole = pd.read_csv(path, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(read_table(path), whole)
    assert isinstance(read_table(path).index, pd.RangeIndex)
    with pytest.raises(ValueError, match=r"column af, row 7: 'oops'"):
        read_cohort(path, columns)


def packed(kind, content):
    """The bytes of a table, packed."""
    if kind == "xlsx":
        with zipfile.ZipFile(stream := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("xl/worksheets/sheet1.xml", content)
        return stream.getvalue()
    return {"csv.gz": gzip.compress, "csv.bz2": bz2.compress, "csv.xz": lzma.compress}[kind](
        content
    )


@pytest.mark.parametrize("kind", ["xlsx", "csv.gz", "csv.bz2", "csv.xz"])
def test_a_small_table_that_would_fill_memory_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(table_files, "MAX_UNPACKED", 1 << 20)
    path = tmp_path / f"t.{kind}"
    path.write_bytes(packed(kind, b"record,af\n" + b"1,0\n" * 500_000))
    with pytest.raises(ValueError, match=r"t\..*unpacks to more than 1 MB"):
        read_table(path)
    if kind != "xlsx":
        path.write_bytes(packed(kind, b"record,af\na,0\n"))
        assert read_table(path).to_dict("list") == {"record": ["a"], "af": ["0"]}


def test_a_parquet_that_states_more_cells_than_it_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "MAX_UNPACKED", 1 << 10)
    pd.DataFrame({"record": np.zeros(1_000_000, np.int8)}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_table(tmp_path / "t.parquet")


def test_a_header_of_a_million_columns_is_refused_at_once(tmp_path):
    header = ",".join(f"c{k}" for k in range(200_000))
    (tmp_path / "t.csv").write_text(f"{header}\n{',' * 199_999}\n")
    with pytest.raises(ValueError, match="its first line has 256 kB or more"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("content", [b"\0" * 100, "record,af\na,0\n".encode("utf-32")])
def test_what_is_not_text_is_said_to_be_so(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_table(tmp_path / "t.csv")


def test_identifiers_that_are_bytes_in_parquet_are_text(tmp_path):
    pd.DataFrame({"record": [b"012", None]}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["record"].tolist() == ["012", ""]


@pytest.mark.parametrize(("cells", "said"), [(["500 Hz", "500"], "write a plain number")])
def test_a_rate_that_is_no_number_is_not_advised_as_a_label(tmp_path, cells, said):
    path = tmp_path / "t.csv"
    pd.DataFrame({"record": ["a", "b"], "af": [0, 1], "hz": cells}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=f"column hz, row 1: '500 Hz' is not a number.*{said}"):
        read_cohort(path, Columns(labels=["af"], patient=None, rate="hz"))
