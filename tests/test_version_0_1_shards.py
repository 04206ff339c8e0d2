"""Shards and cohorts that version 0.1 wrote are sound, are mended and go on to the same bytes."""

import json
from pathlib import Path

import pandas as pd
import pytest
from recorded import V0_1, WORDS, copy_of_0_1, differences, hpc_ecg

TARS = [f"shard-{number:06d}.tar" for number in range(4)]


@pytest.fixture
def old(tmp_path):
    return copy_of_0_1(tmp_path)


def same_shards(ours: Path, theirs: Path = V0_1 / "shards") -> None:
    """But for where table and recordings lay, and the bytes of the index, which differ between
    versions of pyarrow."""
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for name in (*TARS, "left_out.csv", "quality.csv"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    index = [pd.read_parquet(folder / "index.parquet") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*index)
    about = [json.loads((folder / "dataset.json").read_text()) for folder in (ours, theirs)]
    for facts in about:
        for name in ("index_sha256", "tool"):
            facts.pop(name)
        facts["made_from"].pop("table")
        facts["made_from"]["recordings"].pop("signals")
    assert not differences(about[1], about[0], rtol=1e-9)


def test_shards_are_inspected_as_sound(old, capsys):
    assert hpc_ecg(old, "data", "inspect", "shards", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["damaged"] == []
    assert hpc_ecg(old, "data", "repair", "shards", "--table", "cohort/table.csv") == 0
    assert "nothing to mend" in capsys.readouterr().out


def test_a_missing_shard_is_made_again_byte_for_byte(old, capsys):
    (old / "shards" / TARS[1]).unlink()
    words = ["--table", "cohort/table.csv", "--signals", "cohort"]
    assert hpc_ecg(old, "data", "repair", "shards", *words) == 0
    assert f"made again: {TARS[1]}" in capsys.readouterr().out
    same_shards(old / "shards")


def test_a_sharding_in_the_middle_keeps_what_is_done_and_ends_in_the_same_bytes(old, capsys):
    done = old / ".half.unfinished/shards" / TARS[0]
    before = done.stat()
    assert hpc_ecg(old, *WORDS["shard"], "--out", "half") == 0
    assert "1 of 4 shards are done already" in capsys.readouterr().err
    after = (old / "half" / TARS[0]).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not done.exists()
    same_shards(old / "half")


def test_a_sharding_of_today_gives_the_same_bytes(old):
    assert hpc_ecg(old, *WORDS["shard"], "--out", "again") == 0
    same_shards(old / "again")


def test_a_cohort_is_made_again_and_its_table_sharded(old, capsys):
    words = [*WORDS["cohort"], "--out", "again.csv"]
    assert hpc_ecg(old, *words) == 0
    said = capsys.readouterr().out.partition("\nwritten")[0]
    assert said.startswith((old / "cohort.flow.txt").read_text())
    assert "22 ECGs left out because follow-up ended too early" in said  # not said by 0.1
    assert (old / "again.csv").read_bytes() == (V0_1 / "cohort.csv").read_bytes()
    flows = [json.loads((old / f"{name}.flow.json").read_text()) for name in ("again", "cohort")]
    for flow in flows:
        del flow["tool"], flow["table"]["file"]
    flows[0]["notes"] = flows[0]["notes"][: len(flows[1]["notes"])]
    assert {key: flows[0][key] for key in flows[1]} == flows[1]
    words = ["cohort.csv", "--signals", "cohort", "--patient", "patient_id", "--label", "label"]
    more = ["--to-rate", "100", "--seconds", "5", "--workers", "1", "--out", "labelled"]
    assert hpc_ecg(old, "data", "shard", *words, *more) == 0
    assert hpc_ecg(old, "data", "inspect", "labelled") == 0
