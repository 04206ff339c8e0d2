"""`hpc-ecg data shard`: each mistake in each argument is one line, exit code 2 and no output."""

import html
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import write_wfdb

from hpc_ecg.cli import main
from hpc_ecg.ecg.signal import LEADS
from hpc_ecg.shards import quality_report
from hpc_ecg.shards.format import read_shard_set

TOOL = Path(__file__).parent.parent / "tools" / "shard_ecgs.py"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures have their own tests, and would take longer than the shards."""
    monkeypatch.setattr(quality_report, "NUM_PICTURES", 0)
    monkeypatch.setattr(quality_report, "draw_amplitudes", lambda values: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight records of eight patients as WFDB in wfdb/, as arrays (samples, leads) in npy/."""
    folder = tmp_path_factory.mktemp("in")
    (folder / "wfdb").mkdir()
    (folder / "npy").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(8):
        counts_LS = rng.integers(-900, 900, (12, 5000)).astype(np.int16)
        counts_LS[2] = counts_LS[1] - counts_LS[0]  # Einthoven
        write_wfdb(folder / "wfdb" / f"r{number}", counts_LS, LEADS, 500)
        np.save(folder / "npy" / f"r{number}.npy", counts_LS.T)
        rows.append(
            {
                "record": f"r{number}",
                "who": f"p{number}",
                "af": number % 2,
                "text": "yes",
                "fold": ["train", "valid", "test"][number % 3],
                "hz": 500,
                "same": "x",
                "nobody": "",
                "day": f"20{18 + number % 3}-05-0{1 + number}",
                "place": "ABC"[number % 3],
                "empty": "",
                "position": number,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    stack_NSL = [np.load(folder / "npy" / f"r{number}.npy") for number in range(8)]
    np.save(folder / "npy" / "all.npy", np.stack(stack_NSL))
    (folder / "key").write_text("0123456789abcdef0123456789abcdef")
    (folder / "notes.txt").write_text("not a table")
    return folder


def words_of(folder, out, changes=None):
    """A correct command with `changes`: flag -> value, None drops the flag."""
    flags = {
        "--signals": folder / "wfdb",
        "--out": out,
        "--label": "af",
        "--patient": "who",
        "--split": "fold",
        "--workers": "1",
    } | (changes or {})
    table = flags.pop("TABLE", folder / "table.csv")
    words = ["data", "shard", *([] if table is None else [str(table)])]
    for flag, value in flags.items():
        if value is not None:
            words += [flag] if value is True else [flag, str(value)]
    return words


def exit_code_of(words):
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


def test_a_correct_command_says_what_it_wrote(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert exit_code_of(words_of(folder, out)) == 0
    assert capsys.readouterr().out.splitlines() == [
        *_outcome(out),
        f"written: {out}, number of shards: 1",
    ]
    assert read_shard_set(out).label_names == ["af"]


def _outcome(out):
    counts = read_shard_set(out).description["label_counts"]["af"]
    return [
        f"{split}: {number} records of {number} patients; "
        f"af: {counts[split]['positive']} positive, {counts[split]['missing']} missing"
        for split, number in (("train", 3), ("valid", 3), ("test", 2))
    ]


def test_every_flag_reaches_the_plan(folder, tmp_path):
    out = tmp_path / "out"
    changes = {
        "--signals": folder / "npy",
        "--patient": None,
        "--one-patient-per-record": True,
        "--split": None,
        "--file": "record",
        "--record": "who",
        "--fractions": "0.5,0.25,0.25",
        "--split-seed": 4,
        "--rate": 500,
        "--axes": "samples,leads",
        "--leads": ",".join(LEADS[::-1]),
        "--unit": "uV",
        "--shard-size": 3,
        "--workers": 1,
    }
    assert exit_code_of([*words_of(folder, out, changes), "--label", "hz"]) == 0
    found = read_shard_set(out)
    assert found.label_names == ["af", "hz"]
    assert found.index["record"].tolist() == [f"p{i}" for i in range(8)]
    assert [shard["records"] for shard in found.description["shards"]] == [3, 3, 2]
    assert found.description["split"] == {
        "hash_of": "patient",
        "fractions": [0.5, 0.25, 0.25],
        "seed": 4,
    }
    assert found.description["patient"].startswith("none")


def test_the_rate_may_be_a_column(folder, tmp_path):
    changes = {"--signals": folder / "npy", "--axes": "samples,leads", "--unit": "uV"}
    assert exit_code_of(words_of(folder, tmp_path / "a", changes | {"--rate": "hz"})) == 0
    assert exit_code_of(words_of(folder, tmp_path / "b", changes | {"--rate": "af"})) == 2


def index_of(folder, out, changes):
    assert exit_code_of(words_of(folder, out, changes)) == 0
    return read_shard_set(out).index


def test_the_signal_spec_states_how_recordings_were_prepared(folder, tmp_path):
    changes = {
        "--to-rate": 200,
        "--seconds": 2.5,
        "--window": "all",
        "--pad-short": True,
        "--highpass": 0.5,
        "--notch": 60,
        "--amplitude-factor": 0.82,
        "--missing-leads": "zero",
    }
    index = index_of(folder, tmp_path / "out", changes)
    signal = read_shard_set(tmp_path / "out").signal
    assert (signal.sample_rate_hz, signal.num_samples) == (200, 500)
    assert signal.preprocessing == "resample_poly/highpass-0.5/notch-60/2"
    assert (signal.window, signal.amplitude) == ("all+padded", "calibrated*0.82")
    assert index["key"].tolist()[:5] == [*(f"00000000-00{k}" for k in range(4)), "00000001-000"]
    assert index["record"].tolist()[:2] == ["r0-000", "r0-001"]
    assert index["patient"].nunique() == 8
    decimated = index_of(folder, tmp_path / "dec", {"--resampling": "decimate"})
    assert read_shard_set(tmp_path / "dec").signal.preprocessing == "decimate/2"
    assert len(decimated) == 8


def test_an_array_of_all_recordings_gives_the_same_signals_as_files(folder, tmp_path):
    changes = {"--signals": folder / "npy", "--axes": "samples,leads", "--unit": "uV"}
    changes |= {"--rate": 500}
    files = index_of(folder, tmp_path / "files", changes)
    array = index_of(folder, tmp_path / "array", changes | {"--array": "all.npy"})
    by_column = index_of(
        folder, tmp_path / "column", changes | {"--array": "all.npy", "--array-row": "position"}
    )
    assert files["sha256"].tolist() == array["sha256"].tolist() == by_column["sha256"].tolist()


def test_age_and_sex_are_understood_or_counted(folder, tmp_path, capsys):
    table = pd.read_csv(folder / "table.csv", dtype=str)
    table["age"] = ["045Y", "> 89", "63,5", "", "Unknown", "999", "018M", "72"]
    table["sex"] = ["M", "Male", "f", "F", "", "?", "männlich", "xx"]
    table["time"] = ["2020-01-01", "2020-01-01 10:00", "01/02/2020", *["20200101"] * 5]
    table.to_csv(tmp_path / "t.csv", index=False)
    index = index_of(folder, tmp_path / "out", {"TABLE": tmp_path / "t.csv"})
    np.testing.assert_equal(index["age"].tolist(), [45, 90, 63.5, *[np.nan] * 3, 1.5, 72])
    assert index["sex"].tolist() == ["M", "M", "F", "F", "", "", "M", ""]
    assert index["flags"].str.contains("age_capped").tolist() == [False, True, *[False] * 6]
    remarks = [
        "column age: 5 understood (1 capped: 90 or older), 1 empty, "
        "2 NOT understood, taken as missing (row 5: 'Unknown')",
        "column sex: 6 understood (1 as unknown), 1 empty, "
        "1 NOT understood, taken as missing (row 8: 'xx')",
        "column time: 7 understood, 1 NOT understood, taken as missing (row 3: '01/02/2020')",
    ]
    said, page = capsys.readouterr().err, (tmp_path / "out" / "quality.html").read_text()
    for remark in remarks:
        assert remark in said and remark in html.unescape(page)
    index_of(folder, tmp_path / "keyed", {"TABLE": tmp_path / "t.csv", "--key": folder / "key"})
    assert "Unknown" not in (tmp_path / "keyed" / "quality.html").read_text()


@pytest.mark.parametrize("values", [[0, 1, 2], [1, 2], [0, 1, 9], [0, 1, -1], [0, 0.5, 1]])
def test_a_yes_no_label_with_a_third_value_is_refused(folder, tmp_path, capsys, values):
    table = pd.read_csv(folder / "table.csv")
    table["af"] = [values[row % len(values)] for row in range(8)]
    table.to_csv(tmp_path / "t.csv", index=False)
    words = words_of(folder, tmp_path / "out", {"TABLE": tmp_path / "t.csv"})
    assert exit_code_of(words) == 2
    shown = ", ".join(f"{value:g}" for value in sorted(values))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"label af has the values {shown}: a yes/no label is 1, 0 or empty" in line
    assert exit_code_of([*words, "--regression"]) == 0
    assert read_shard_set(tmp_path / "out").index["label.af"].tolist() == table["af"].tolist()


def test_splits_by_time_by_site_and_in_folds_are_in_the_index(folder, tmp_path):
    by_time = {"--split": None, "--split-by-time": True, "--time": "day"}
    by_time |= {"--valid-from": "2019-01-01", "--test-from": "2020-01-01"}
    names = ["train", "valid", "test"]
    expected = [names[number % 3] for number in range(8)]
    assert index_of(folder, tmp_path / "time", by_time)["split"].tolist() == expected
    by_site = {"--split": None, "--split-by-site": True, "--site": "place"}
    by_site |= {"--valid-sites": "B", "--test-sites": "C"}
    index = index_of(folder, tmp_path / "site", by_site)
    assert index["split"].tolist() == expected
    assert index["site"].tolist() == ["ABC"[number % 3] for number in range(8)]
    folds = {"--split": None, "--folds": 4, "--repeats": 2, "--stratify": True}
    index = index_of(folder, tmp_path / "folds", folds)
    for repeat in (0, 1):
        assert index[f"fold.{repeat}"].value_counts().tolist() == [2, 2, 2, 2]


def test_with_a_key_no_name_of_a_patient_or_file_is_written(folder, tmp_path):
    out = tmp_path / "out"
    changes = {"--key": folder / "key", "--dates": "shift", "--time": "day", "--keep": "same"}
    table = pd.read_csv(folder / "table.csv")
    table.loc[3, "record"] = "secretname"
    table.to_csv(folder / "with_secret.csv", index=False)
    index = index_of(folder, out, changes | {"TABLE": folder / "with_secret.csv"})
    (folder / "with_secret.csv").unlink()
    assert len(index) == 7 and index["same"].tolist() == ["x"] * 7
    for path in out.iterdir():
        if path.suffix != ".tar":
            assert b"secretname" not in path.read_bytes(), path
    text = " ".join(index[["record", "patient"]].to_numpy().ravel())
    assert not any(f"r{n} " in text or f"p{n} " in text for n in range(8))
    assert (index["time"] < "2020-05-08").all()


def test_a_damaged_shard_is_made_again_from_the_sources(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert exit_code_of(words_of(folder, out, {"--shard-size": 3})) == 0
    tars = sorted(out.glob("*.tar"))
    before = [tar.read_bytes() for tar in tars]
    tars[0].write_bytes(before[0][:-600])
    tars[1].unlink()
    flipped = bytearray(before[2])
    flipped[5000] ^= 1
    tars[2].write_bytes(flipped)
    with pytest.raises(ValueError, match="hpc-ecg data repair"):
        read_shard_set(out)
    capsys.readouterr()
    assert exit_code_of(["data", "repair", str(out)]) == 0
    assert capsys.readouterr().out.startswith("made again: shard-000000.tar, shard-000001.tar, sh")
    assert [tar.read_bytes() for tar in tars] == before
    assert exit_code_of(["data", "repair", str(out)]) == 0
    assert capsys.readouterr().out.startswith("nothing to mend")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_layout_applies_to_the_arrays_among_other_files(folder, tmp_path):
    table = pd.read_csv(folder / "table.csv")
    table["path"] = [f"{'npy' if n == 5 else 'wfdb'}/r{n}" for n in range(8)]
    table.to_csv(folder / "mixed.csv", index=False)
    changes = {"TABLE": folder / "mixed.csv", "--signals": folder, "--file": "path"}
    changes |= {"--axes": "samples,leads", "--unit": "uV", "--rate": "500"}
    index = index_of(folder, tmp_path / "out", changes)
    (folder / "mixed.csv").unlink()
    assert len(index) == 8


def test_clipped_records_are_flagged_and_repaired_as_clipped(folder, tmp_path):
    changes = {"--signals": folder / "npy", "--axes": "samples,leads", "--unit": "V"}
    index = index_of(folder, tmp_path / "out", changes | {"--rate": "500", "--clip": True})
    assert len(index) == 8 and index["flags"].str.contains("clipped:").all()
    tar = tmp_path / "out" / "shard-000000.tar"
    before = tar.read_bytes()
    tar.unlink()
    assert exit_code_of(["data", "repair", str(tmp_path / "out")]) == 0
    assert tar.read_bytes() == before


def test_what_repair_cannot_restore_is_one_line_that_says_what_to_do(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert exit_code_of(words_of(folder, out, {"--shard-size": 3})) == 0
    first, second, *_ = sorted(out.glob("*.tar"))
    first.unlink()
    second.unlink()
    second.mkdir()

    def refusal():
        capsys.readouterr()
        assert exit_code_of(["data", "repair", str(out)]) == 2
        assert second.is_dir() and not first.exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert refusal().endswith(f"{second} is a folder in a shard's place; move it away, then repair")
    (out / "index.parquet").write_bytes(b"PAR1")
    assert "(its SHA-256); copy it again from where the shards were written, or" in refusal()
    (out / "index.parquet").unlink()
    assert "index.parquet is missing; copy it again from where" in refusal()


def test_a_shard_whose_sources_changed_is_not_replaced(folder, tmp_path, capsys):
    out, moved = tmp_path / "out", tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert exit_code_of(words_of(moved, out)) == 0
    (out / "shard-000000.tar").unlink()
    shutil.move(moved / "wfdb", tmp_path / "elsewhere")
    words = ["data", "repair", str(out)]
    assert exit_code_of(words) == 2
    assert "have changed; write the shards again" in capsys.readouterr().err
    assert exit_code_of([*words, "--signals", str(tmp_path / "elsewhere")]) == 0
    (out / "shard-000000.tar").unlink()
    write_wfdb(tmp_path / "elsewhere" / "r0", np.ones((12, 5000), np.int16), LEADS, 500)
    assert exit_code_of([*words, "--signals", str(tmp_path / "elsewhere")]) == 2
    assert not (out / "shard-000000.tar").exists()


BY_TIME = {"--split": None, "--split-by-time": True}
BY_SITE = {"--split": None, "--split-by-site": True}
MISTAKES = [
    ({"--time": "none"}, "no column 'none'"),
    ({"--site": "none"}, "no column 'none'"),
    ({"--keep": "none"}, "no column 'none'"),
    ({"--keep": "who", "--dates": "shift"}, "--dates shift needs --key FILE"),
    ({"--keep": "day", "--dates": "drop"}, "--keep day holds dates"),
    ({"--keep": "record"}, "--keep record: the index has a column record of its own"),
    ({"--fractions": "0.5,0.25,0.25"}, "--fractions is for splits by hash or --stratify"),
    ({"--key": "FOLDER/none"}, "--key FOLDER/none cannot be read"),
    ({"--key": "FOLDER/notes.txt"}, "holds 11 bytes, at least 16 are needed"),
    ({"--dates": "move"}, "--dates must be one of keep, shift, drop, got 'move'"),
    ({"--dates": "shift"}, "--dates shift needs --key FILE"),
    (BY_TIME, "no column 'time'"),
    (BY_TIME | {"--time": "day"}, "--valid-from and --test-from must be dates"),
    (BY_SITE, "no column 'site'"),
    (BY_SITE | {"--site": "place", "--test-sites": "Z"}, "each once: it has A, B, C, got Z"),
    (BY_SITE | {"--site": "place", "--test-sites": "C"}, "split valid would be empty"),
    (BY_TIME | BY_SITE, "not allowed with"),
    ({"--folds": "3"}, "not allowed with"),
    ({"--split": None, "--folds": "2"}, "--folds must be at least 3"),
    ({"--split": None, "--folds": "9"}, "8 patients cannot be dealt to 9 folds"),
    ({"--split": None, "--folds": "-3"}, "--folds must be at least 3"),
    ({"--split": None, "--folds": "3", "--repeats": "0"}, "--repeats must be 1 to 100, got 0"),
    ({"--valid-from": "2019-01-01"}, "--valid-from is for --split-by-time"),
    ({"--test-sites": "A"}, "--test-sites is for --split-by-site"),
    ({"--repeats": "3"}, "--repeats is for --folds"),
    ({"--stratify": True}, "--stratify is for --fractions or --folds"),
    ({"--array": "none.npy", "--rate": "500"}, "8 not found"),
    ({"--array-row": "position"}, "--array-row is for --array"),
    ({"--array": "all.npy", "--array-row": "text"}, "'yes' is not a number"),
    ({"--to-rate": "0"}, "must be positive numbers"),
    ({"--to-rate": "x"}, "--to-rate: invalid int value"),
    ({"--seconds": "0"}, "must be positive numbers"),
    ({"--seconds": "nan"}, "must be positive numbers"),
    ({"--seconds": "0.1"}, "the window (--seconds) must be 1 to 600 s, got 0.1"),
    ({"--to-rate": "10"}, "the rate of the shards must be 50 to 10000 Hz, got 10"),
    ({"--seconds": "11"}, "8 too short"),
    ({"--window": "last"}, "the window must be one of first, centre, all, got 'last'"),
    ({"--missing-leads": "guess"}, "--missing-leads must be leave_out or zero, got 'guess'"),
    ({"--highpass": "0"}, "high-pass must lie between 0 and 5 Hz"),
    ({"--notch": "55"}, "notch must be 50 or 60 Hz (mains), got 55"),
    ({"--resampling": "linear"}, "resampling must be resample_poly or decimate, got 'linear'"),
    ({"--resampling": "decimate", "--to-rate": "300"}, "500 Hz is not a multiple of 300 Hz"),
    ({"--amplitude-factor": "0"}, "amplitude factor must be a positive number"),
    ({"--slurm": "many"}, "--slurm: expected words like jobs=8,partition=cpu"),
    ({"--slurm": "jobs=0"}, "--slurm: expected words like jobs=8,partition=cpu"),
    ({"--slurm": "colour=red"}, "Slurm takes no job: "),
    ({"TABLE": None}, "TABLE"),
    ({"TABLE": "nowhere.csv"}, "nowhere.csv: no such table"),
    ({"TABLE": "FOLDER"}, "no such table"),
    ({"TABLE": "FOLDER/notes.txt"}, "the table has no rows"),
    ({"TABLE": "FOLDER/npy/r0.npy"}, "r0.npy"),
    ({"TABLE": ""}, "no such table"),
    ({"--signals": None}, "--signals"),
    ({"--signals": "nowhere"}, "--signals nowhere: no such folder"),
    ({"--signals": "FOLDER/table.csv"}, "no such folder"),
    ({"--signals": "FOLDER"}, "8 not found"),
    ({"--out": None}, "--out"),
    ({"--out": "FOLDER"}, "exists and is not an empty folder"),
    ({"--out": "FOLDER/table.csv"}, "exists and is not an empty folder"),
    ({"--out": "FOLDER/table.csv/x"}, "cannot be written"),
    ({"--out": "/proc/x/y"}, "cannot be written"),
    ({"--out": "x" * 300}, "cannot be written"),
    ({"--label": None}, "--label"),
    ({"--label": "none"}, "no column 'none'"),
    ({"--label": ""}, "no column ''"),
    ({"--label": "text"}, "column text, row 1: 'yes' is not a number"),
    ({"--patient": None}, "one of --patient COLUMN and --one-patient-per-record must be given"),
    ({"--patient": "none"}, "no column 'none'"),
    ({"--patient": ""}, "no column ''"),
    ({"--patient": "same"}, "one patient in two splits: row 1 is train, row 2 is valid"),
    ({"--patient": "nobody"}, "--one-patient-per-record"),
    ({"--one-patient-per-record": True}, "not allowed with"),
    ({"--file": "none"}, "no column 'none'"),
    ({"--file": ""}, "no column ''"),
    ({"--file": "who"}, "8 not found"),
    ({"--record": "none"}, "no column 'none'"),
    ({"--record": ""}, "no column ''"),
    ({"--record": "same"}, "column same, row 2 repeats an earlier row"),
    ({"--split": "none"}, "no column 'none'"),
    ({"--split": ""}, "no column ''"),
    ({"--split": "who"}, "split 'p0'; allowed are train, valid, test"),
    ({"--split": None, "--fractions": "0.7,0.3"}, "--fractions"),
    ({"--split": None, "--fractions": "0.7,0.2,0.2"}, "--fractions"),
    ({"--split": None, "--fractions": "nan,0.5,0.5"}, "--fractions"),
    ({"--split": None, "--fractions": ""}, "--fractions"),
    ({"--split": None, "--fractions": "0.98,0.01,0.01"}, "would be empty"),
    ({"--split-seed": "x"}, "--split-seed: invalid int value: 'x'"),
    ({"--rate": "none"}, "no column 'none'"),
    ({"--rate": ""}, "no column ''"),
    ({"--rate": "text"}, "column text, row 1: 'yes' is not a number"),
    ({"--rate": "500 Hz"}, "--rate 500 Hz: give Hz as a plain number, such as 500"),
    ({"--rate": "0.5kHz"}, "--rate 0.5kHz: give Hz as a plain number"),
    ({"--rate": "499,98"}, "--rate 499,98: give Hz as a plain number"),
    ({"--rate": "1 000"}, "--rate 1 000: give Hz as a plain number"),
    ({"--unit": "1e999uV"}, "unit must be one of mV, uV or V, got '1e999uV'"),
    ({"--patient": "whoo"}, "; did you mean who?"),
    (
        {"--split": None, "--stratify": True, "--regression": True},
        "--stratify is for yes/no labels",
    ),
    ({"--split": None, "--folds": "3", "--repeats": "101"}, "--repeats must be 1 to 100, got 101"),
    ({"--rate": "0"}, "--rate must be 50 to 10000 Hz"),
    ({"--rate": "-500"}, "--rate must be 50 to 10000 Hz"),
    ({"--rate": "nan"}, "--rate must be 50 to 10000 Hz"),
    ({"--rate": "250"}, "the file says 500 Hz, but 250 Hz was declared"),
    ({"--rate": "500", "--signals": "FOLDER/npy"}, "need --axes samples,leads"),
    (
        {"--signals": "FOLDER/npy", "--axes": "samples,leads"},
        "states no sampling rate",
    ),
    ({"--axes": "channels,time"}, "axes must be one of leads,samples or samples,leads"),
    ({"--axes": ""}, "axes must be one of"),
    ({"--unit": "mmHg"}, "unit must be one of mV, uV or V, got 'mmHg'"),
    ({"--unit": ""}, "unit must be one of"),
    ({"--leads": "I,II"}, "--leads: missing III, aVR"),
    ({"--leads": ",".join([*LEADS, "V6"])}, "--leads: "),
    (
        {"--signals": "FOLDER/npy", "--rate": "500", "--axes": "samples,leads", "--unit": "V"},
        "8 amplitude",
    ),
    ({"--leads": ""}, "--leads"),
    ({"--unit": "uV"}, "--unit is for arrays (.npy, .mat, .h5 …)"),
    ({"--axes": "leads,samples"}, "--axes is for arrays"),
    ({"--leads": ",".join(LEADS)}, "--leads is for arrays"),
    ({"--split-seed": "3"}, "--split-seed is for splits by hash or --folds"),
    ({"--shard-size": "0"}, "--shard-size must be at least 1, got 0"),
    ({"--shard-size": "many"}, "--shard-size: invalid int value: 'many'"),
    ({"--workers": "0"}, "--workers must be at least 1, got 0"),
    ({"--workers": "-2"}, "--workers must be at least 1, got -2"),
    ({"--workers": "1.5"}, "--workers: invalid int value: '1.5'"),
    ({"--labels": "af"}, "--labels"),
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
    before = sorted(folder.rglob("*"))
    changes = {
        flag: value.replace("FOLDER", str(folder)) if isinstance(value, str) else value
        for flag, value in changes.items()
    }
    assert exit_code_of(words_of(folder, tmp_path / "out", changes)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("hpc-ecg") and expected.replace("FOLDER", str(folder)) in line
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.rglob("*")) == before


def test_a_label_asked_for_twice_is_a_mistake(folder, tmp_path, capsys):
    words = [*words_of(folder, tmp_path / "out"), "--label", "af"]
    assert exit_code_of(words) == 2
    assert "--label: af, af names a column twice" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Run tools/shard_ecgs.py in this process: exit code, standard output, standard error."""

    def run(*words):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(TOOL), *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name="__main__")
        return stop.value.code, *capsys.readouterr()

    return run


def test_the_tool_is_the_same_command(folder, tmp_path, capsys, run_tool):
    code, out, err = run_tool(*words_of(folder, tmp_path / "tool")[2:])
    assert (code, err) == (0, "")
    assert exit_code_of(words_of(folder, tmp_path / "verb")) == 0
    said = capsys.readouterr().out
    assert out == said.replace(str(tmp_path / "verb"), str(tmp_path / "tool"))
    for path in (tmp_path / "verb").iterdir():
        assert path.read_bytes() == (tmp_path / "tool" / path.name).read_bytes()


def test_the_tool_answers_a_mistake_with_one_line_too(folder, tmp_path, run_tool):
    code, out, err = run_tool(*words_of(folder, tmp_path / "out", {"--label": "none"})[2:])
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and "no column 'none'" in err
    assert list(tmp_path.iterdir()) == []


def test_the_tool_can_be_executed_and_explains_itself():
    assert TOOL.stat().st_mode & 0o111
    command = [sys.executable, TOOL, "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "--one-patient-per-record" in result.stdout


def test_a_manifest_states_where_its_array_is_and_what_a_count_means(folder, tmp_path):
    """The reference's npy_dataset: one array N x samples x leads, its labels, a scale."""
    counts_NSL = np.load(folder / "npy" / "all.npy")
    np.save(tmp_path / "x.npy", counts_NSL)
    np.save(tmp_path / "y.npy", (np.arange(8) % 2)[:, None])
    manifest = tmp_path / "train.tsv"
    manifest.write_text(f"x_path:{tmp_path}/x.npy\ny_path:{tmp_path}/y.npy\nscale:0.00488\n")
    words = ["data", "shard", str(manifest), "--out", str(tmp_path / "out"), "--label", "label_0"]
    words += ["--one-patient-per-record", "--rate", "500", "--split", "split"]
    assert exit_code_of(words) == 0
    index = read_shard_set(tmp_path / "out").index
    assert index["split"].tolist() == ["train"] * 8
    assert index["label.label_0"].tolist() == [0, 1] * 4
    by_hand = {"--signals": folder / "npy", "--axes": "samples,leads", "--unit": "4.88uV"}
    by_hand |= {"--array": "all.npy", "--rate": 500}
    expected = index_of(folder, tmp_path / "by-hand", by_hand)
    assert index["sha256"].tolist() == expected["sha256"].tolist()
