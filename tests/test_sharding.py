"""From a table and recordings to shards: no lost row, no leak, no incomplete output."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import plan_for, words_for
from failing_writers import die, note_and_fail
from filelock import FileLock
from synthetic import BROKEN, write_wfdb

from hpc_ecg.cohort.privacy import Privacy
from hpc_ecg.cohort.table import Columns
from hpc_ecg.config.load import load_config
from hpc_ecg.data.dataset import open_split
from hpc_ecg.ecg.files import ArrayLayout
from hpc_ecg.ecg.signal import LEADS, SignalSpec
from hpc_ecg.shards import quality_report, shard_task, sharding
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.shards.index import describe_outcome
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig

REASONS = ("unreadable", "flat lead", "NaN", "leads", "not found")  # in the order of BROKEN
EXPLICIT = Columns(labels=["af"], patient="patient", split="split")
BESIDE = ["dataset.json", "index.parquet", "left_out.csv", "quality.csv", "quality.html"]
ALL_TRAIN = (1.0, 0.0, 0.0)


def counts_of(seed, rate_hz=500):
    """10 s of noise in place of an ECG; each seed gives another recording."""
    rng = np.random.default_rng(seed)
    return rng.integers(-900, 900, (12, 10 * rate_hz)).astype(np.int16)


def write_recordings(folder, rows):
    """Write a WFDB record and a line of the table for each row; `seed` makes the signal."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        write_wfdb(folder / row["record"], counts_of(row.pop("seed")), LEADS, 500)
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def row(record, patient, split, seed, af=1):
    return {"record": record, "patient": patient, "split": split, "seed": seed, "af": af}


SOUND = [
    ("a1", "anna", "train", 1),
    ("a2", "anna", "train", 2),
    ("b1", "ben", "valid", 3),
    ("c1", "cem", "test", 4),
]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures have their own tests, and would take longer than the shards."""
    skip_pictures(monkeypatch)


def skip_pictures(monkeypatch):
    monkeypatch.setattr(quality_report, "NUM_PICTURES", 0)
    monkeypatch.setattr(quality_report, "draw_amplitudes", lambda values: None)


@pytest.fixture
def table(tmp_path):
    return write_recordings(tmp_path / "in", [row(*values) for values in SOUND])


@pytest.fixture(scope="module")
def undisturbed_bytes(tmp_path_factory):
    """What the shards of `table` hold, two records each, if nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    table = write_recordings(folder / "in", [row(*values) for values in SOUND])
    with pytest.MonkeyPatch.context() as patch:
        skip_pictures(patch)
        shard_ecgs(plan(table, folder / "out", records_per_shard=2))
    return bytes_in(folder / "out")


def plan(table, out, **changes):
    return plan_for(table, out, **({"columns": EXPLICIT} | changes))


def left_out_of(out):
    with (out / "left_out.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def everything_in(folder):
    return sorted(folder.rglob("*")) if folder.exists() else []


def refusal(given, folder=None):
    """The message for a plan that is refused: one line. Nothing but unfinished work is left."""
    folder = folder or given.out.parent
    before = everything_in(folder)
    with pytest.raises(ValueError) as caught:
        shard_ecgs(given)
    assert [p for p in everything_in(folder) if ".out.unfinished" not in p.parts] == before
    message = str(caught.value)
    assert "\n" not in message
    return message


# Nothing is lost


def test_every_row_is_in_a_shard_or_left_out_with_its_reason(shards, cohort):
    table = pd.read_csv(cohort)
    index, left_out = pd.read_parquet(shards / "index.parquet"), left_out_of(shards)
    taken = index["key"].astype(int).tolist()
    assert sorted(taken + [int(item["row"]) - 1 for item in left_out]) == list(range(len(table)))
    assert [item["reason"] for item in left_out] == list(REASONS)
    assert len(BROKEN) == len(REASONS)
    for item in left_out:
        assert item["record"] == table["record"][int(item["row"]) - 1]
        assert item["message"]


def test_the_outcome_says_what_is_in_the_shards_and_what_was_left_out(shards):
    description = read_shard_set(shards).description
    assert not description["flags"]
    lines = describe_outcome(description | {"flags": {"saturated": 1}}, shards)
    index = pd.read_parquet(shards / "index.parquet")
    train = index[index["split"] == "train"]
    said = f"train: {len(train)} records of {train['patient'].nunique()} patients; af: "
    assert lines[0].startswith(said)
    positive, missing = (train["label.af"] == 1).sum(), train["label.af"].isna().sum()
    assert lines[0].endswith(f"{positive} positive, {missing} missing")
    assert lines[3].startswith("left out: 5 (") and "1 flat lead" in lines[3]
    assert lines[4] == f"flags: 1 (1 saturated); see {shards}/quality.html"
    assert lines[5] == f"written: {shards}, number of shards: 4"


def test_a_record_without_patient_is_left_out(tmp_path):
    rows = [*SOUND, ("x1", "", "train", 5), ("x2", "  ", "test", 6)]
    table = write_recordings(tmp_path / "in", [row(*values) for values in rows])
    description = shard_ecgs(plan(table, tmp_path / "out"))
    assert description["records"] == {"train": 2, "valid": 1, "test": 1}
    assert description["left_out"] == {"no patient": 2}
    assert [item["record"] for item in left_out_of(tmp_path / "out")] == ["x1", "x2"]


def test_with_a_key_no_file_name_that_could_identify_a_patient_is_written(tmp_path):
    rows = [row(*values) for values in [*SOUND, ("miller_jane", "jane", "test", 5)]]
    table = write_recordings(tmp_path / "in", rows)
    (tmp_path / "in" / "miller_jane.dat").unlink()
    (tmp_path / "key").write_text("a secret of the hospital")
    privacy = Privacy(key_file=tmp_path / "key")
    shard_ecgs(plan(table, tmp_path / "out", privacy=privacy))
    (item,) = left_out_of(tmp_path / "out")
    assert (item["row"], item["reason"], item["message"]) == ("5", "not found", "")
    assert not any(b"miller" in path.read_bytes() for path in (tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_the_same_command_then_succeeds(
    tmp_path, table, monkeypatch
):
    given = plan(table, tmp_path / "out", records_per_shard=1, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(shard_task, "write_shard", die)
        with pytest.raises(ValueError, match="a worker process was killed"):
            shard_ecgs(given)
    shard_ecgs(given)
    assert len(read_shard_set(tmp_path / "out").index) == 4


@pytest.mark.slow
def test_a_full_disk_is_one_line(tmp_path, table):
    """In another process, so that messages during its exit are seen, too."""
    code = (
        "import sys; from hpc_ecg.cli import main; from hpc_ecg.shards import format as f\n"
        "def fill(stream, *a): raise OSError(28, 'No space left on device')\n"
        "f.ShardWriter.write = fill; sys.exit(main(sys.argv[1:]))"
    )
    words = f"data shard {table} --signals {table.parent} --out {tmp_path / 'out'} --label af"
    words += " --patient patient --split split --workers 1"
    command = [sys.executable, "-c", code, *words.split()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    *before, line = result.stderr.splitlines()
    assert "No space left on device" in line
    assert all("at work" in earlier for earlier in before), "a line of progress may come before"


def test_numeric_labels_are_summarized_by_their_mean(tmp_path):
    rows = [row(*values, af=40 + k) for k, values in enumerate(SOUND)]
    table = write_recordings(tmp_path / "in", rows)
    lines = describe_outcome(shard_ecgs(plan(table, tmp_path / "out")), tmp_path / "out")
    assert lines[0] == "train: 2 records of 1 patients; af: mean 40.5, 0 missing"


@pytest.mark.parametrize("name", ["record", "patient", "split", "sha256", "label.af", "fold.0"])
def test_a_column_that_the_index_has_already_cannot_be_kept_from_the_table(tmp_path, table, name):
    rows = pd.read_csv(table)
    rows[name] = rows.get(name, "x")
    rows.to_csv(table, index=False)
    columns = Columns(labels=["af"], patient="patient", split="split", keep=[name])
    message = refusal(plan(table, tmp_path / "out", columns=columns))
    assert message.startswith(f"--keep {name}: the index has a column {name} of its own")


def test_a_requested_amplitude_factor_is_not_reported_as_a_mistake(table, tmp_path):
    signal = SignalSpec(amplitude="calibrated*4")
    facts = shard_ecgs(plan(table, tmp_path / "out", signal=signal))["amplitude"]
    assert facts["suggested_factor"] is None


def test_if_no_record_has_a_patient_the_message_names_the_option_for_it(tmp_path):
    table = write_recordings(tmp_path / "in", [row("a", "", "train", 1), row("b", "", "test", 2)])
    message = refusal(plan(table, tmp_path / "out"))
    assert message.startswith("column patient names no patient in any row")
    assert "--one-patient-per-record" in message


def test_one_patient_per_record_is_recorded_as_such(tmp_path, table):
    columns = Columns(labels=["af"], patient=None, split="split")
    description = shard_ecgs(plan(table, tmp_path / "out", columns=columns))
    assert description["patient"] == "none: each record taken for a patient of its own"
    assert read_shard_set(tmp_path / "out").index["patient"].nunique() == 4


def test_the_description_records_how_the_split_was_made(tmp_path, table, shards):
    assert shard_ecgs(plan(table, tmp_path / "out"))["split"] == {"column": "split"}
    assert read_shard_set(shards).description["split"] == {
        "hash_of": "patient",
        "fractions": [0.5, 0.25, 0.25],
        "seed": 0,
    }


# Declared sampling rates


def test_a_rate_that_the_file_contradicts_leaves_the_record_out(tmp_path):
    rates = ["500", "400", "", "500.2"]  # 500.2 is within half a thousandth
    rows = [row(*v) | {"hz": hz} for v, hz in zip(SOUND, rates, strict=True)]
    table = write_recordings(tmp_path / "in", rows)
    columns = Columns(labels=["af"], patient="patient", split="split", rate="hz")
    shard_ecgs(plan(table, tmp_path / "out", columns=columns))
    (left_out,) = left_out_of(tmp_path / "out")
    assert (left_out["record"], left_out["reason"]) == ("a2", "rate")
    assert left_out["message"] == "the file says 500 Hz, but 400 Hz was declared"


def test_a_declared_rate_that_no_file_has_is_refused(tmp_path, table):
    message = refusal(plan(table, tmp_path / "out", rate_hz=250.0))
    assert "4 rate; first: the file says 500 Hz, but 250 Hz was declared" in message


@pytest.mark.parametrize("rate_hz", [0.0, -500.0, float("nan"), float("inf"), 1e6])
def test_a_rate_at_which_no_ecg_is_recorded_is_refused(tmp_path, table, rate_hz):
    assert "--rate must be 50 to 10000 Hz" in refusal(
        plan(table, tmp_path / "out", rate_hz=rate_hz)
    )


# Bare arrays


@pytest.mark.parametrize(
    ("layout", "store"),
    [
        (ArrayLayout(sample_rate_hz=500), lambda mv_LS: mv_LS),
        (ArrayLayout(sample_rate_hz=500, axes="samples,leads"), lambda mv_LS: mv_LS.T),
        (ArrayLayout(sample_rate_hz=500, unit="uV"), lambda mv_LS: mv_LS * 1000),
        (ArrayLayout(sample_rate_hz=500, leads=LEADS[::-1]), lambda mv_LS: mv_LS[::-1]),
    ],
)
def test_arrays_become_the_same_shards_as_wfdb_records(tmp_path, table, layout, store):
    folder = tmp_path / "arrays"
    folder.mkdir()
    shutil.copy(table, folder)
    for record, _, _, seed in SOUND:
        np.save(folder / f"{record}.npy", store(counts_of(seed) / 1000.0))
    shard_ecgs(plan(table, tmp_path / "wfdb"))
    shard_ecgs(plan(folder / "table.csv", tmp_path / "npy", layout=layout, rate_hz=500.0))
    names = ("shard-000000.tar", "index.parquet")
    for name in names:
        assert (tmp_path / "npy" / name).read_bytes() == (tmp_path / "wfdb" / name).read_bytes()


def test_arrays_take_their_rates_from_a_column(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "fast.npy", counts_of(1, 1000) / 1000.0)
    np.save(folder / "slow.npy", counts_of(2, 250) / 1000.0)
    np.save(folder / "none.npy", counts_of(3, 500) / 1000.0)
    (folder / "table.csv").write_text(
        "record,af,patient,split,hz\nfast,1,a,train,1000\nslow,0,b,test,250\nnone,0,c,test,\n"
    )
    columns = Columns(labels=["af"], patient="patient", split="split", rate="hz")
    shard_ecgs(plan(folder / "table.csv", tmp_path / "out", columns=columns))
    shards = read_shard_set(tmp_path / "out")
    slow_CS = open_split(shards, "test", ["af"]).read(np.array([0]))[0]
    np.testing.assert_array_equal(slow_CS, counts_of(2, 250))
    (left_out,) = left_out_of(tmp_path / "out")
    assert (left_out["record"], left_out["reason"]) == ("none", "rate")


def test_the_message_for_transposed_arrays_names_the_option_for_them(tmp_path, table):
    for record, _, _, seed in SOUND:
        (table.parent / f"{record}.hea").unlink()
        np.save(table.parent / f"{record}.npy", counts_of(seed).T / 1000.0)
    layout = ArrayLayout(sample_rate_hz=500)
    message = refusal(plan(table, tmp_path / "out", layout=layout, rate_hz=500.0))
    assert "4 leads" in message and "--axes samples,leads" in message


# Nothing leaks


def test_a_patient_in_two_given_splits_is_refused(tmp_path):
    rows = [*SOUND, ("a3", "anna", "test", 9)]
    table = write_recordings(tmp_path / "in", [row(*values) for values in rows])
    assert refusal(plan(table, tmp_path / "out")) == (
        "one patient in two splits: row 1 is train, row 5 is test (1 such rows); "
        "put all of one patient in one split"
    )


def test_blanks_around_a_name_do_not_make_another_patient(tmp_path):
    rows = [*SOUND, ("a3", " anna ", "test", 9)]
    table = write_recordings(tmp_path / "in", [row(*values) for values in rows])
    assert "one patient in two splits" in refusal(plan(table, tmp_path / "out"))


def test_rows_without_a_patient_are_not_treated_as_one_patient(tmp_path):
    rows = [*SOUND, ("x1", "", "train", 5), ("x2", "", "test", 6)]
    table = write_recordings(tmp_path / "in", [row(*values) for values in rows])
    assert shard_ecgs(plan(table, tmp_path / "out"))["left_out"] == {"no patient": 2}


def test_an_identical_signal_in_two_splits_is_refused(tmp_path):
    rows = [*SOUND, ("d1", "dora", "test", 2)]  # the recording of a2 under another name and patient
    table = write_recordings(tmp_path / "in", [row(*values) for values in rows])
    listed = tmp_path / "out.duplicates.csv"
    with pytest.raises(ValueError) as caught:
        shard_ecgs(plan(table, tmp_path / "out"))
    assert str(caught.value) == (
        "an identical signal in two splits: row 2 is train, row 5 is test (1 such rows); "
        f"put all of one signal in one split; all of them are listed in {listed}"
    )
    assert not (tmp_path / "out").exists()
    assert pd.read_csv(listed)[["row", "split"]].values.tolist() == [[2, "train"], [5, "test"]]


def test_an_identical_signal_in_one_split_is_kept(tmp_path):
    rows = [*SOUND, ("d1", "dora", "train", 2)]
    table = write_recordings(tmp_path / "in", [row(*values) for values in rows])
    assert shard_ecgs(plan(table, tmp_path / "out"))["records"]["train"] == 3


def test_an_unknown_split_in_the_table_is_named(tmp_path):
    table = write_recordings(tmp_path / "in", [row("a", "anna", "dev", 1)])
    assert "column split, row 1: split 'dev'" in refusal(plan(table, tmp_path / "out"))


def test_an_empty_split_is_refused(tmp_path, table):
    columns = Columns(labels=["af"], patient="patient")
    given = plan(table, tmp_path / "out", columns=columns, fractions=(0.9999, 0.0001, 0.0))
    message = refusal(given)
    assert message.startswith("split valid would be empty (4 records") and "--split-seed" in message


# The output folder


def test_an_output_folder_that_is_not_empty_is_refused_before_any_work(
    tmp_path, table, monkeypatch
):
    monkeypatch.setattr(sharding, "read_cohort", None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("do not touch")
    assert "exists and is not an empty folder" in refusal(plan(table, out))
    assert (out / "mine.txt").read_text() == "do not touch"
    assert "exists and is not an empty folder" in refusal(plan(table, out / "mine.txt"))


def test_an_empty_output_folder_is_filled(tmp_path, table):
    (tmp_path / "out").mkdir()
    shard_ecgs(plan(table, tmp_path / "out"))
    assert read_shard_set(tmp_path / "out").label_names == ["af"]


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path, table):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    shard_ecgs(plan(table, tmp_path / "out"))
    assert (tmp_path / "out").is_symlink() and read_shard_set(tmp_path / "scratch")


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path, table):
    assert "cannot be written" in refusal(plan(table, table / "below_a_file"), tmp_path)


def test_the_set_appears_only_when_it_is_complete(tmp_path, table):
    shard_ecgs(plan(table, tmp_path / "out", records_per_shard=3))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    shards = ["shard-000000.tar", "shard-000001.tar"]
    assert names == [*BESIDE, *shards]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def unfinished(tmp_path):
    return tmp_path / ".out.unfinished"


@pytest.mark.parametrize("place", ["build_index", "write_metadata", "_publish"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_no_output_but_the_shards_for_the_next_try(
    tmp_path, table, monkeypatch, undisturbed_bytes, place, error
):
    def fail(*_):
        raise error

    given = plan(table, tmp_path / "out", records_per_shard=2)
    with monkeypatch.context() as patch:
        patch.setattr(sharding, place, fail)
        with pytest.raises(type(error)):
            shard_ecgs(given)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.unfinished", "in"]
    with monkeypatch.context() as patch:
        patch.setattr(shard_task, "write_shard", None)  # nothing is written again
        shard_ecgs(given)
    assert bytes_in(tmp_path / "out") == undisturbed_bytes
    assert not unfinished(tmp_path).exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_in_the_first_shard_leaves_nothing(tmp_path, table, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(shard_task, "prepare_row", fail)
    with pytest.raises(type(error)):
        shard_ecgs(plan(table, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def bytes_in(folder):
    """The files of a set of shards, without the paths that it was made from."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    found["dataset.json"] = json.loads(found["dataset.json"]) | {"made_from": None}
    return found


def stop_after_the_first_shard(given, monkeypatch):
    write = shard_task.write_shard

    def write_one(task):
        if task.shard > 0:
            raise KeyboardInterrupt
        return write(task)

    with monkeypatch.context() as patch:
        patch.setattr(shard_task, "write_shard", write_one)
        with pytest.raises(KeyboardInterrupt):
            shard_ecgs(given)


def note_what_is_written(monkeypatch):
    """A list that fills with the numbers of the shards that are written."""
    written, write = [], shard_task.write_shard
    monkeypatch.setattr(
        shard_task, "write_shard", lambda task: written.append(task.shard) or write(task)
    )
    return written


@pytest.mark.parametrize("damage", ["none", "flip", "cut", "lose", "lose note", "cut note"])
def test_finished_shards_are_verified_before_they_are_kept(
    tmp_path, table, monkeypatch, undisturbed_bytes, damage
):
    given = plan(table, tmp_path / "out", records_per_shard=2)
    stop_after_the_first_shard(given, monkeypatch)
    tar = unfinished(tmp_path) / "shards" / "shard-000000.tar"
    note = unfinished(tmp_path) / "notes" / "shard-000000.json"
    content = bytearray(tar.read_bytes())
    content[5000] ^= 1
    {
        "none": lambda: None,
        "flip": lambda: tar.write_bytes(content),
        "cut": lambda: tar.write_bytes(content[:-5000]),
        "lose": tar.unlink,
        "lose note": note.unlink,
        "cut note": lambda: note.write_bytes(note.read_bytes()[:50]),
    }[damage]()
    with monkeypatch.context() as patch:
        written = note_what_is_written(patch)
        shard_ecgs(given)
    assert written == ([1] if damage == "none" else [0, 1])
    assert bytes_in(tmp_path / "out") == undisturbed_bytes


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"seed": 7}, True),
        ({"dates": "drop"}, True),
        ({"window": "centre"}, False),
        ({"missing_leads": "zero"}, False),
    ],
)
def test_a_shard_is_kept_if_its_signals_do_not_depend_on_what_changed(
    tmp_path, table, monkeypatch, changes, kept
):
    stop_after_the_first_shard(plan(table, tmp_path / "out", records_per_shard=2), monkeypatch)
    if "window" in changes:
        changes = {"signal": SignalSpec(**changes)}
    written = note_what_is_written(monkeypatch)
    shard_ecgs(plan(table, tmp_path / "out", records_per_shard=2, **changes))
    assert written == ([1] if kept else [0, 1])


def test_the_shards_of_an_earlier_try_with_smaller_shards_are_removed(tmp_path, table, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "build_index", None)
        with pytest.raises(TypeError):
            shard_ecgs(plan(table, tmp_path / "out", records_per_shard=1))
    shard_ecgs(plan(table, tmp_path / "out", records_per_shard=3))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]


def test_two_processes_do_not_write_one_output(tmp_path, table):
    unfinished(tmp_path).mkdir()
    with (
        FileLock(unfinished(tmp_path) / "lock"),
        pytest.raises(ValueError, match="another process is writing it"),
    ):
        shard_ecgs(plan(table, tmp_path / "out"))
    assert unfinished(tmp_path).exists()


def is_running(process: str) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] not in "ZX"


@pytest.mark.slow
def test_killed_without_warning_and_started_again_writes_the_same_bytes(
    tmp_path, cohort, monkeypatch
):
    words = [sys.executable, "tools/shard_ecgs.py", str(cohort), "--signals", str(cohort.parent)]
    words += ["--label=af", "--patient=patient_id", "--shard-size=5", "--workers=2"]
    words += ["--fractions=0.5,0.25,0.25"]
    root = Path(__file__).parent.parent
    process = subprocess.Popen([*words, f"--out={tmp_path / 'out'}"], cwd=root)
    while not list(unfinished(tmp_path).glob("notes/*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    deadline = time.monotonic() + 30
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the process that was killed"
        time.sleep(0.1)
    done = subprocess.run([*words, f"--out={tmp_path / 'out'}"], cwd=root, capture_output=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.undo()  # the other process draws pictures
    shard_ecgs(plan_for(cohort, tmp_path / "undisturbed", records_per_shard=5))
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "undisturbed")


@pytest.mark.slow
def test_after_a_failure_with_workers_the_shards_that_still_wait_are_not_written(
    tmp_path, table, monkeypatch
):
    """The first shard fails; those of the 400 that still wait must not be written."""
    (tmp_path / "log").mkdir()
    rows = [f"r{i},p{i},train,1,{tmp_path / 'log' / str(i)}" for i in range(400)]
    (table.parent / "many.csv").write_text(
        "\n".join(["record,patient,split,af,file", *rows]) + "\n"
    )
    monkeypatch.setattr(shard_task, "write_shard", note_and_fail)
    given = plan(table.parent / "many.csv", tmp_path / "out", records_per_shard=1, workers=2)
    with pytest.raises(OSError, match="disk full"):
        shard_ecgs(given)
    assert 1 <= len(list((tmp_path / "log").iterdir())) < 50
    assert not (tmp_path / "out").exists()


# Other arguments


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"records_per_shard": 0}, "--shard-size must be at least 1, got 0"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
    ],
)
def test_numbers_below_one_are_refused(tmp_path, table, changes, expected):
    assert refusal(plan(table, tmp_path / "out", **changes)) == expected


def test_a_missing_folder_of_signals_is_named(tmp_path, table):
    given = plan(table, tmp_path / "out", signals=tmp_path / "none")
    assert refusal(given) == f"--signals {tmp_path / 'none'}: no such folder"


# Real recordings


@pytest.mark.slow
def test_all_records_of_ptbxl_are_used(real_data, tmp_path):
    folder = real_data / "ecg" / "ptbxl"
    columns = Columns(labels=["af"], patient="patient_id")
    description = shard_ecgs(plan_for(folder / "table.csv", tmp_path / "out", columns=columns))
    assert sum(description["records"].values()) == 220 and description["left_out"] == {}
    index, table = read_shard_set(tmp_path / "out").index, pd.read_csv(folder / "table.csv")
    assert index["record"].tolist() == table["record"].tolist()
    assert index["patient"].nunique() == table["patient_id"].nunique()


def test_georgia_names_no_patients_and_needs_one_patient_per_record(real_data, tmp_path):
    folder = real_data / "ecg" / "georgia"

    def given(patient):
        columns = Columns(labels=["af"], patient=patient)
        table = folder / "table.csv"
        return plan_for(table, tmp_path / "out", columns=columns, fractions=ALL_TRAIN)

    assert "--one-patient-per-record" in refusal(given("patient_id"))
    description = shard_ecgs(given(None))
    assert description["records"] == {"train": 30, "valid": 0, "test": 0}


@pytest.mark.slow
def test_all_windows_and_padded_records_are_trained_on_and_scored(cohort, tmp_path):
    """Each recording gives 2 windows of 4 s, or one padded window of 12 s."""
    for name, samples, window in (("all", 1000, "all"), ("padded", 3000, "first+padded")):
        spec = SignalSpec(num_samples=samples, window=window)
        shards = tmp_path / name
        shard_ecgs(plan_for(cohort, shards, signal=spec))
        words = words_for(shards, tmp_path / f"run-{name}", f"init.signal.num_samples={samples}")
        folder = finetune(load_config(FinetuneConfig, [], [*words, "train.max_epochs=1"]))
        predicted = pd.read_parquet(folder.path / "predictions" / "valid.parquet")
        index = read_shard_set(shards).index
        valid = index[index["split"] == "valid"]
        assert sorted(predicted["record"]) == sorted(valid["record"])
        windows = 2 if name == "all" else 1
        assert len(index) == windows * index["key"].str[:8].nunique()
        assert (index["samples"] == min(samples, 2500)).all()
