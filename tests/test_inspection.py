"""`hpc-ecg data inspect`: numbers that are true, damage that is named, plots without names."""

import json
import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from conftest import plan_for

from hpc_ecg.cli import main
from hpc_ecg.cohort.table import Columns
from hpc_ecg.shards.format import read_shard_set
from hpc_ecg.shards.inspection import REMOTE_REPAIR, inspect_shards, write_page
from hpc_ecg.shards.integrity import find_damage
from hpc_ecg.shards.sharding import shard_ecgs


@pytest.fixture
def copied(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "set")


def inspect(capsys, *words):
    """Exit code, lines of standard output, lines of standard error."""
    code = main(["data", "inspect", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


def test_the_numbers_are_those_of_the_index(shards):
    facts = inspect_shards(shards).facts
    index = pd.read_parquet(shards / "index.parquet")
    for people in facts["splits"]:
        part = index if people["split"] == "all" else index[index["split"] == people["split"]]
        assert people["records"] == len(part) and people["patients"] == part["patient"].nunique()
        assert people["age"]["median"] == part["age"].median()
        assert sum(people["sex"].values()) == len(part)
        (label,) = [a for a in facts["labels"] if a["split"] == people["split"]]
        assert label["positive"] == part["label.af"].sum()
        assert label["prevalence"] == pytest.approx(part["label.af"].mean())
        assert label["missing"] == part["label.af"].isna().sum()
    assert [people["split"] for people in facts["splits"]] == ["train", "valid", "test", "all"]
    assert facts["left_out"] == read_shard_set(shards).description["left_out"] != {}
    assert facts["damaged"] == []


def test_one_split_is_counted_and_drawn_alone(shards, tmp_path, capsys):
    code, lines, _ = inspect(capsys, shards, "--split", "test", "--out", tmp_path / "x.html")
    assert code == 0 and any(line.startswith("test: ") for line in lines)
    assert not any(line.startswith(("train: ", "all: ")) for line in lines)
    index = pd.read_parquet(shards / "index.parquet").set_index("key")
    keys = keys_on(tmp_path / "x.html")
    assert len(keys) == 12 and set(index.loc[keys, "split"]) == {"test"}


def test_an_unknown_split_is_one_line(shards, capsys):
    code, lines, (complaint,) = inspect(capsys, shards, "--split", "exam")
    assert code == 2 and not lines and "no records in split exam; there are" in complaint


@pytest.mark.slow
def test_missing_labels_and_ages_are_counted_and_numeric_labels_summarized(
    cohort, tmp_path, capsys
):
    table = pd.read_csv(cohort)
    table["lvef"] = np.linspace(20, 70, len(table))
    table.loc[::3, "lvef"] = np.nan
    table.loc[::5, "af"] = np.nan
    table.loc[::4, ["age", "sex"]] = np.nan
    table.to_csv(cohort.with_name("gaps.csv"), index=False)
    columns = Columns(labels=["af", "lvef"], patient="patient_id")
    out = tmp_path / "set"
    shard_ecgs(plan_for(cohort.with_name("gaps.csv"), out, columns=columns))
    _, lines, _ = inspect(capsys, out)
    index = pd.read_parquet(out / "index.parquet")
    missing = index.isna().sum()
    everyone = lines.index(next(line for line in lines if line.startswith("all: ")))
    assert f"{missing['age']} missing)" in lines[everyone]
    assert f"missing {(index['sex'].fillna('') == '').sum()}" in lines[everyone]
    assert lines[everyone + 1].endswith(f"%), {missing['label.af']} missing")
    median = index["label.lvef"].median()
    assert lines[everyone + 2].startswith(f"  lvef: {median:.3g} (90 %: ")
    assert lines[everyone + 2].endswith(f"), {missing['label.lvef']} missing")


def shard_names(folder):
    return sorted(path.name for path in folder.glob("*.tar"))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_every_damaged_shard_is_named_in_one_line(copied, capsys):
    first, second, third, *_ = shard_names(copied)
    flip(copied / first)
    (copied / second).unlink()
    whole = (copied / third).read_bytes()
    (copied / third).write_bytes(whole[:-1000])
    code, lines, complaints = inspect(capsys, copied)
    assert code == 1 and not complaints
    assert [line for line in lines if line.startswith("damaged: ")] == [
        f"damaged: {first} is damaged (its SHA-256)",
        f"damaged: {second} is missing",
        f"damaged: {third} is cut off: {len(whole) - 1000} of {len(whole)} bytes",
    ]
    assert lines[-1] == f"repair with: hpc-ecg data repair {copied}"


@pytest.fixture
def remote(shards):
    """The shards in fsspec's file system in memory: their URL, and the file system."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{shards}/", "/looked/into", recursive=True)
    yield "memory://looked/into", filesystem
    filesystem.rm("/looked", recursive=True)


def test_shards_at_a_url_are_inspected_like_those_in_a_folder(remote, shards, tmp_path, capsys):
    (url, _), local_page, remote_page = remote, tmp_path / "a.html", tmp_path / "b.html"
    local = inspect(capsys, shards, "--out", local_page)
    code, lines, complaints = inspect(capsys, url, "--out", remote_page)
    assert (code, lines[1:], complaints) == (0, local[1][1:], [])
    assert keys_on(remote_page) == keys_on(local_page)
    assert "Shards: into" in remote_page.read_text()


def test_damage_at_a_url_is_named_and_repaired_where_the_shards_were_written(
    remote, shards, capsys
):
    url, files = remote
    first, second, third, *_ = shard_names(shards)
    files.rm(f"/looked/into/{first}")
    files.pipe(f"/looked/into/{second}", (shards / third).read_bytes())
    files.pipe(f"/looked/into/{third}", (shards / third).read_bytes()[:-9])
    code, lines, _ = inspect(capsys, url)
    size = (shards / third).stat().st_size
    assert code == 1 and [line for line in lines if line.startswith("damaged: ")] == [
        f"damaged: {first} is missing",
        f"damaged: {second} is swapped: it holds {third}",
        f"damaged: {third} is cut off: {size - 9} of {size} bytes",
    ]
    assert lines[-1] == f"repair with: {REMOTE_REPAIR}"
    code, _, (complaint,) = inspect(capsys, "memory://looked/elsewhere")
    assert code == 2 and complaint.endswith("memory://looked/elsewhere: dataset.json is missing")


@pytest.mark.parametrize(
    ("leave", "why"), [(Path.mkdir, "cannot be read: Is a directory"), (str, "is missing")]
)
def test_a_shard_that_cannot_be_read_is_one_line(copied, tmp_path, capsys, leave, why):
    """A folder is in its place, or nothing."""
    for name in shard_names(copied):
        (copied / name).unlink()
        leave(copied / name)
    code, lines, _ = inspect(capsys, copied)
    assert code == 1 and lines[-2].endswith(f"shard-000003.tar {why}")
    code, _, (complaint,) = inspect(capsys, copied, "--no-verify", "--out", tmp_path / "x.html")
    assert code == 2 and complaint.endswith(why)


def test_swapped_shards_are_reported_as_swapped(copied):
    first, second, *_ = shard_names(copied)
    (copied / first).rename(copied / "x")
    (copied / second).rename(copied / first)
    (copied / "x").rename(copied / second)
    assert find_damage(read_shard_set(copied, check_sizes=False)) == {
        0: f"{first} is swapped: it holds {second}",
        1: f"{second} is swapped: it holds {first}",
    }


def test_without_verification_damage_is_not_searched_and_the_answer_says_so(copied, capsys):
    flip(copied / shard_names(copied)[0])
    code, lines, _ = inspect(capsys, copied, "--no-verify")
    assert code == 0 and lines[-1] == "digests: not verified"


@pytest.mark.slow
def test_a_damaged_record_is_never_drawn(copied, tmp_path, capsys):
    name = shard_names(copied)[0]
    index = pd.read_parquet(copied / "index.parquet")
    spoilt = index[index["shard"] == 0]
    data = bytearray((copied / name).read_bytes())
    for offset in spoilt["offset"]:
        data[offset + 100] ^= 1
    (copied / name).write_bytes(data)
    page = tmp_path / "x.html"
    code, _, _ = inspect(capsys, copied, "--out", page, "--plots", 1000)
    assert code == 1 and len(keys_on(page)) == len(index) - len(spoilt)
    assert f"{name} is damaged" in page.read_text()
    code, _, (complaint,) = inspect(capsys, copied, "--no-verify", "--out", page, "--plots", 1000)
    assert code == 2 and f"{name} is damaged (key 0" in complaint


def test_json_is_written_also_when_there_is_damage(copied, capsys):
    name = shard_names(copied)[-1]
    (copied / name).unlink()
    code, lines, _ = inspect(capsys, copied, "--json")
    facts = json.loads("\n".join(lines))
    assert code == 1 and facts["damaged"] == [f"{name} is missing"]
    assert facts["splits"][-1]["records"] == len(pd.read_parquet(copied / "index.parquet"))


def keys_on(page):
    return re.findall(r">Key (\S+),", page.read_text())


def test_the_page_names_neither_records_nor_patients_and_needs_no_network(shards, tmp_path):
    page = tmp_path / "x.html"
    write_page(page, inspect_shards(shards, verify=False), num_plots=20)
    text, index = page.read_text(), pd.read_parquet(shards / "index.parquet")
    assert len(keys_on(page)) == 20 and set(keys_on(page)) <= set(index["key"])
    for name in [*index["record"], *index["patient"]]:
        assert name not in text
    assert not re.search(r"src=|href=\"[^#]|https?://|@import", text)


def test_the_sample_is_the_same_every_time_and_another_with_another_seed(shards, tmp_path):
    inspection = inspect_shards(shards, verify=False)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_page(tmp_path / name, inspection, num_plots=4, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert keys_on(tmp_path / "a") != keys_on(tmp_path / "c") and len(keys_on(tmp_path / "c")) == 4


def test_plots_show_the_values_of_the_first_label_in_turn(shards, tmp_path):
    inspection = inspect_shards(shards, verify=False)
    label = inspection.index.set_index("key")["label.af"]
    for seed in range(3):
        write_page(tmp_path / "x.html", inspection, num_plots=6, seed=seed)
        drawn = label[keys_on(tmp_path / "x.html")].value_counts()  # missing ones are a third
        assert len(drawn) == 2 and drawn.max() - drawn.min() <= 1


def test_a_negative_number_of_plots_is_one_line(shards, capsys):
    code, _, (complaint,) = inspect(capsys, shards, "--plots", "-1")
    assert code == 2 and "--plots must be at least 0, got -1" in complaint


def test_a_plot_ends_where_the_recording_ended(shards, tmp_path):
    inspection = inspect_shards(shards, verify=False)
    write_page(tmp_path / "whole", inspection, num_plots=1)
    inspection.index.loc[:, "samples"] = 1250
    write_page(tmp_path / "half", inspection, num_plots=1)
    assert "V4: no samples" in (tmp_path / "half").read_text()
    assert "no samples" not in (tmp_path / "whole").read_text()


def test_plots_without_a_page_are_refused(capsys, shards):
    code, _, (complaint,) = inspect(capsys, shards, "--plots", 3)
    assert code == 2 and "also give --out FILE.html" in complaint


def test_a_class_that_a_split_lacks_is_highlighted_with_what_follows(shards, tmp_path):
    inspection = inspect_shards(shards, verify=False)
    write_page(tmp_path / "x.html", inspection, num_plots=0)
    assert 'class="lack"' not in (tmp_path / "x.html").read_text()
    train, valid, test, _ = inspection.facts["labels"]
    train["prevalence"], valid["prevalence"], test["prevalence"] = 0.0, 1.0, None
    write_page(tmp_path / "x.html", inspection, num_plots=0)
    text = (tmp_path / "x.html").read_text()
    assert re.findall(r'<tr class="lack">.*?<strong>(.*?)</strong>', text, re.DOTALL) == [
        "no positive record: the label cannot be learned",
        "no negative record: no step and no threshold can be chosen by this label",
        "no record with this label: the label cannot be scored",
    ]
    assert re.search(r"<h1>Shards: set, \d{4}-\d\d-\d\d</h1>", text)
