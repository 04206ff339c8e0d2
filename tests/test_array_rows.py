"""Which row of an array belongs to which row of the table, from the command line."""

import h5py
import numpy as np
import pandas as pd
import pytest

from hpc_ecg.cli import main
from hpc_ecg.shards import quality_report
from hpc_ecg.shards.format import read_shard_set

IDS = [500, 501, 502, 503, 504, 505]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(quality_report, "NUM_PICTURES", 0)
    monkeypatch.setattr(quality_report, "draw_amplitudes", lambda values: None)


@pytest.fixture(scope="module")
def signals():
    """Recordings of 500 Hz in which row n peaks at n + 1 mV."""
    time_S = np.arange(5000) / 500
    one_LS = np.stack([np.sin(2 * np.pi * (1 + lead / 12) * time_S) for lead in range(12)])
    return ((np.arange(8)[:, None, None] + 1) * one_LS).astype(np.float32)


def write(folder, signals, ids, kind="h5", **more):
    """The array, with its identifiers beside it."""
    if kind == "h5":
        with h5py.File(folder / "x.h5", "w") as file:
            file["tracings"] = signals[: len(ids)]
            for name, values in ({"exam_id": ids} | more).items():
                file[name] = values
    else:
        np.save(folder / "x.npy", signals[: len(ids)])
        np.save(folder / "exam_id.npy", np.array(ids))
    return folder / f"x.{kind}"


def table_of(folder, ids, **more):
    rows = {"exam_id": ids, "record": [f"r{i}" for i in ids], "af": np.arange(len(ids)) % 2}
    pd.DataFrame(rows | more).to_csv(folder / "t.csv", index=False)


def shard(folder, array, *more):
    words = ["data", "shard", folder / "t.csv", "--out", folder / "out", "--array", array]
    words += ["--label", "af", "--one-patient-per-record", "--rate", 500, "--workers", 1]
    words += ["--fractions", "0,0,1", *more]
    return main([str(word) for word in words])


def rows_taken(folder):
    """Record -> the row of the array that its signal comes from."""
    index = read_shard_set(folder / "out").index
    rows = (index["amplitude_mv"] / 2).round().astype(int) - 1  # peak to peak
    return dict(zip(index["record"], rows, strict=True))


def said(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", ["h5", "npy"])
def test_unequal_counts_are_refused_and_identifiers_beside_the_array_named(
    tmp_path, signals, capsys, kind
):
    array = write(tmp_path, signals, [*IDS, 0], kind)
    table_of(tmp_path, IDS)
    name = "exam_id.npy" if kind == "npy" else "exam_id"
    assert shard(tmp_path, array) == 2
    line = said(capsys)
    assert f"--array x.{kind} has 7 recordings and the table 6 rows" in line
    assert "give --array-row COLUMN" in line
    assert f"its array {name} holds what column exam_id does: join by --array-id {name}" in line
    assert shard(tmp_path, array, "--array-id", name) == 0


@pytest.mark.parametrize("kind", ["h5", "npy"])
def test_identifiers_in_another_order_stop_a_join_by_position(tmp_path, signals, capsys, kind):
    array = write(tmp_path, signals, IDS[::-1], kind)
    table_of(tmp_path, IDS)
    assert shard(tmp_path, array) == 2
    line = said(capsys)
    assert "6 of 6 rows would get another's signal" in line and "--array-id exam_id" in line
    table_of(tmp_path, [*IDS[:4], 505, 504], place=[5, 4, 3, 2, 1, 0])
    assert shard(tmp_path, array, "--array-row", "place") == 2
    assert "2 of 6 rows would get another's signal" in said(capsys)


@pytest.mark.parametrize(
    "ids", [IDS[::-1], [503, 500, 505, 501, 504, 502, 0, 0], [b"500", b"502", b"504", b"501"]]
)
def test_an_array_of_identifiers_joins_each_row_to_its_own_recording(tmp_path, signals, ids):
    own = [i for i in IDS if i in [int(value) for value in ids]]
    array = write(tmp_path, signals, ids)
    table_of(tmp_path, own)
    assert shard(tmp_path, array, "--array-id", "exam_id") == 0
    expected = {f"r{i}": [int(value) for value in ids].index(i) for i in own}
    assert rows_taken(tmp_path) == expected
    tar = tmp_path / "out" / "shard-000000.tar"
    before = tar.read_bytes()
    tar.unlink()
    assert main(["data", "repair", str(tmp_path / "out")]) == 0
    assert tar.read_bytes() == before


def column_of_a_table(ids):
    rows = [(str(i).encode(), 40) for i in ids]
    return {"meta": np.array(rows, [("exam_id", "S8"), ("age", "i4")])}


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (lambda ids: {"one_row": np.array([ids])}, "one_row"),
        (column_of_a_table, "meta/exam_id"),
        (lambda ids: {"g/ids": [f"{i}" for i in ids]}, "g/ids"),
    ],
)
def test_identifiers_in_any_form_beside_the_array_are_found(
    tmp_path, signals, capsys, beside, name
):
    array = write(tmp_path, signals, np.zeros(6), **beside(IDS[::-1]))
    table_of(tmp_path, IDS)
    assert shard(tmp_path, array) == 2
    assert f"6 of 6 rows would get another's signal; its array {name} holds" in said(capsys)
    assert shard(tmp_path, array, "--array-id", f"{name}x") == 2
    assert f"did you mean {name}?" in said(capsys)
    assert shard(tmp_path, array, "--array-id", name) == 0
    assert rows_taken(tmp_path) == {f"r{i}": 5 - row for row, i in enumerate(IDS)}


def test_a_counter_is_compared_with_its_namesake_alone(tmp_path, signals, capsys):
    table_of(tmp_path, range(6)[::-1], number=range(6))
    assert shard(tmp_path, write(tmp_path, signals, range(6))) == 2
    assert "6 of 6 rows would get another's signal; its array exam_id" in said(capsys)
    other = write(tmp_path, signals, np.zeros(6), index=range(6))
    assert shard(tmp_path, other) == 0
    assert rows_taken(tmp_path) == {f"r{5 - row}": row for row in range(6)}


def test_positions_that_the_identifiers_confirm_or_do_not_know_are_taken(tmp_path, signals):
    array = write(tmp_path, signals, IDS, counter=range(1, 7), noise=[9, 9, 9, 9, 9, 8])
    table_of(tmp_path, IDS, turn=[5, 4, 3, 2, 1, 0])
    assert shard(tmp_path, array) == 0
    assert list(rows_taken(tmp_path).values()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("ids", "own", "expected"),
    [
        (IDS, [500, 501, 777], "1 of 3 rows have no recording of their own, like row 3: exam_id"),
        ([500, 501, 501, 503], [500, 501, 503], "like row 2: exam_id holds its exam_id 2 times"),
        (IDS, [500, 500, 501], "2 of 3 rows have no recording of their own, like row 1"),
        (IDS, [500, "", 501], "like row 2: exam_id holds its exam_id 0 times"),
        (IDS, ["0500", "0501", "0502"], "identifiers in more than one spelling: 3"),
    ],
)
def test_identifiers_that_are_missing_or_stand_twice_are_one_line(
    tmp_path, signals, capsys, ids, own, expected
):
    array = write(tmp_path, signals, ids)
    table_of(tmp_path, own)
    table = pd.read_csv(tmp_path / "t.csv", dtype=str)
    table.assign(record=["a", "b", "c"]).to_csv(tmp_path / "t.csv", index=False)
    assert shard(tmp_path, array, "--array-id", "exam_id") == 2
    assert expected in said(capsys)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--array-id", "none"], "--array-id none: arrays of 6 values in x.h5: exam_id"),
        (["--array-id", "exam_id", "--array-row", "af"], "is for --array without --array-row"),
        (["--array-row", "one_based"], "has the rows 0 to 5, but column one_based, row 6, says 6"),
    ],
)
def test_a_mistake_about_rows_is_one_line(tmp_path, signals, capsys, more, expected):
    array = write(tmp_path, signals, IDS)
    table_of(tmp_path, IDS, one_based=[1, 2, 3, 4, 5, 6])
    assert shard(tmp_path, array, *more) == 2
    assert expected in said(capsys)


def test_an_array_needs_no_folder_of_signals(tmp_path, signals, monkeypatch):
    write(tmp_path, signals, IDS)
    table_of(tmp_path, IDS)
    monkeypatch.chdir(tmp_path)
    assert shard(tmp_path, "x.h5::tracings") == 0
    assert list(rows_taken(tmp_path).values()) == [0, 1, 2, 3, 4, 5]
