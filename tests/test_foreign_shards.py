"""Shards that come from somebody else: every edit is one line, and nothing outside is touched."""

import copy
import json
import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from conftest import reseal
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import V0_1, copy_of_0_1, hpc_ecg

from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.loader import prefetch, prefetch_in_order
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.source import ShardSource
from hpc_ecg.ecg.signal import SignalSpec, spec_from_dict
from hpc_ecg.safe_reading import read_json, sha256_of
from hpc_ecg.shards.format import read_shard_set, shard_name
from hpc_ecg.shards.remote import open_shard_set

LABELS = ["af", "old", "score"]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Shards as 0.1 wrote them: no digest of the description."""
    return copy_of_0_1(tmp_path_factory.mktemp("old")) / "shards"


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    folder = copy_of_0_1(tmp_path_factory.mktemp("new")) / "shards"
    reseal(folder, pd.read_parquet(folder / "index.parquet"))
    return folder


@pytest.fixture
def copied(old, tmp_path):
    return shutil.copytree(old, tmp_path / "set")


def refusal(folder) -> str:
    with pytest.raises(ValueError) as caught:
        open_shard_set(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def meaning(shards):
    return shards.signal, shards.microvolts_per_count, shards.label_names, shards.index.to_json()


# dataset.json


ABOUT = json.loads((V0_1 / "shards/dataset.json").read_text())
VALUES = [None, True, -1, -5, 0, 1, 2, 99, 0.5, 10**12, 10**400, 1e308, float("nan"), float("inf")]
VALUES += ["", "x", "0", "../../x", "é" * 500, [], [1], [[]], {}, {"a": {}}, "DROP"]


def places(value, at=()):
    """The path of each value in a JSON value."""
    yield at
    pairs = dict(enumerate(value)) if isinstance(value, list) else value
    for key, below in pairs.items() if isinstance(pairs, dict) else ():
        if key not in ("made_from", "tool"):
            yield from places(below, (*at, key))


PLACES = [place for place in places(ABOUT) if place]


def edited(about, place, value):
    about = copy.deepcopy(about)
    inside = about
    for key in place[:-1]:
        inside = inside[key]
    if value == "DROP":
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return about


def with_description(folder, about):
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(json.dumps(about))
    try:
        return open_shard_set(folder)
    except ValueError as error:
        assert "\n" not in str(error)
        return None
    finally:
        (folder / "dataset.json").write_text(text)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(place=st.sampled_from(PLACES), value=st.sampled_from(VALUES))
def test_an_edit_of_the_description_is_refused_or_means_nothing(old, new, place, value):
    """Where the index holds its digest every edit is refused, elsewhere every one with meaning."""
    for folder in (old, new):
        about = read_json(folder / "dataset.json")
        changed = edited(about, place, value)
        if json.dumps(changed) == json.dumps(about):
            continue
        opened = with_description(folder, changed)
        if opened is not None:
            assert folder == old
            assert meaning(opened) == meaning(open_shard_set(old))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("microvolts_per_count",), 2, "microvolts_per_count is 2, but 1.0 in shard-000000.tar"),
        (("microvolts_per_count",), 0, "microvolts_per_count is 0, expected a number between 0"),
        (("microvolts_per_count",), "1", "microvolts_per_count is '1', expected a number"),
        (("signal", "sample_rate_hz"), 500, "sample_rate_hz is 500, but 100 in shard-000000.tar"),
        (("signal", "sample_rate_hz"), 1e3, "signal.sample_rate_hz cannot be 1000.0"),
        (("signal", "num_samples"), -5, "signal.num_samples cannot be -5"),
        (("signal", "leads"), ["I"] * 12, "signal.leads cannot be ['I', 'I'"),
        (("signal", "leads", 0), "II2", "leads is ['II2', "),
        (("signal",), [1], "a signal spec has the fields"),
        (("labels",), ["af", "old", "nope"], "column label.nope is missing"),
        (("labels",), "af", "labels is 'af', expected a list of different names"),
        (("labels",), ["af", "af"], "labels is ['af', 'af'], expected"),
        (("records", "train"), 32, "records by split"),
        (("patients", "train"), 18, "patients by split"),
        (("label_counts", "af", "train", "positive"), 1, "label af: {'train': "),
        (("shards", 1, "name"), "../x.tar", "shards[1].name is '../x.tar', expected shard-000001"),
        (("shards", 1, "name"), shard_name(0), "shards[1].name is 'shard-000000.tar'"),
        (("shards", 1, "bytes"), 10**12, "has 286720 bytes, dataset.json says 1000000000000"),
        (("shards", 1, "sha256"), "abc", "shards[1].sha256 is 'abc', expected a SHA-256"),
        (("shards", 1, "records"), 19, "records by shard"),
        (("shards",), {}, "shards is {}, expected a list"),
        (("index_sha256",), "0" * 64, "is not the one that dataset.json describes"),
        (("format",), "x", "not a description of hpc_ecg-shards/2"),
    ],
)
def test_the_line_names_the_field(copied, place, value, said):
    about = edited(ABOUT, place, value)
    (copied / "dataset.json").write_text(json.dumps(about))
    assert said in refusal(copied)


def test_a_description_with_a_digest_is_not_edited_unseen_and_one_without_is_said(
    old, new, caplog, capsys
):
    for place in (("dates",), ("split", "hash_of"), ("left_out", "leads")):
        changed = edited(
            read_json(new / "dataset.json"), place, 3 if place[0] == "left_out" else "x"
        )
        assert with_description(new, changed) is None, place
    caplog.set_level("INFO", logger="hpc_ecg")
    open_shard_set(new)
    assert "unverified" not in caplog.text
    open_shard_set(old)
    assert "dataset.json is unverified" in caplog.text
    for folder in (old, new):
        assert hpc_ecg(folder, "data", "inspect", ".") == 0
        assert ("dataset.json: unverified" in capsys.readouterr().out) == (folder == old)


@pytest.mark.parametrize(
    "text", ["", "[" * 10**5, "{", "[]", "null", "\xff", "NaN", '{"format":1}']
)
def test_a_description_that_is_no_object_of_json_is_one_line(copied, text):
    (copied / "dataset.json").write_bytes(text.encode("latin-1"))
    refusal(copied)


def test_a_signal_has_types_and_bounds():
    good = {name: getattr(SignalSpec(), name) for name in SignalSpec.__dataclass_fields__}
    assert spec_from_dict(good, "x") == SignalSpec()
    for name, like in good.items():
        for value in VALUES:
            if type(value) is type(like) and (value or value == "") and name != "leads":
                continue
            with pytest.raises(ValueError):
                spec_from_dict(good | {name: value}, "x")
    for bounds in (0, -1, 2**40):
        with pytest.raises(ValueError, match="num_samples"):
            spec_from_dict(good | {"num_samples": bounds}, "x")


# index.parquet


def rehash(folder, index):
    index.to_parquet(folder / "index.parquet", index=False)
    about = read_json(folder / "dataset.json")
    about["index_sha256"] = sha256_of(folder / "index.parquet")
    (folder / "dataset.json").write_text(json.dumps(about))


def at_row(row, value):
    return lambda column: [value if n == row else v for n, v in enumerate(column)]


EDITS = {
    "text": lambda column: [f"x{v}" for v in column],
    "floats": lambda column: np.arange(len(column)) + 0.5,
    "negative": lambda column: -5 - np.arange(len(column)),
    "huge": lambda column: 10**12 + np.arange(len(column)),
    "missing": lambda column: [None] * len(column),
    "nested": lambda column: [[1]] * len(column),
    "objects": lambda column: [{"a": 1}] * len(column),
    "true": lambda column: [True] * len(column),
    "times": lambda column: pd.date_range("2020", periods=len(column)),
    "bytes": lambda column: [b"\xff"] * len(column),
    "one missing": at_row(3, None),
}
COLUMNS = [
    *(f"label.{name}" for name in LABELS),
    "amplitude_mv",
    "flags",
    "key",
    "shard",
    "offset",
    "record",
    "patient",
    "split",
    "samples",
    "sha256",
]
HARMLESS = {("record", "text"), ("patient", "text"), ("flags", "text"), ("amplitude_mv", "floats")}
HARMLESS |= {("amplitude_mv", "huge")}


@pytest.mark.parametrize(
    "name", [*COLUMNS, "amplitude_mv", "flags", *(f"label.{n}" for n in LABELS)]
)
def test_an_index_with_a_wrong_column_is_refused_by_its_name(copied, name):
    before = pd.read_parquet(copied / "index.parquet")
    rehash(copied, before.drop(columns=name))
    assert f"column {name} is missing" in refusal(copied)
    for edit, change in EDITS.items():
        if (name, edit) in HARMLESS:
            continue
        rehash(copied, before.assign(**{name: change(before[name])}))
        said = refusal(copied)
        assert name.removeprefix("label.") in said or "by split" in said, edit


ROWS = {
    "a shard that is not there": ("shard", 0, 99),
    "an offset in another record": ("offset", 1, 642),
    "an odd offset": ("offset", 0, 641),
    "an offset at the shard's end": ("offset", 19, 286_718),
    "an offset twice": ("offset", 1, 640),
    "a record twice": ("record", 1, "r000"),
    "a key twice": ("key", 1, "00000000"),
    "a key with a dot": ("key", 1, "0000000.1"),
    "no patient": ("patient", 1, ""),
    "an unknown split": ("split", 1, "Train"),
    "another split": ("split", 0, "test"),
    "no sample": ("samples", 1, 0),
    "too many samples": ("samples", 1, 501),
    "no digest": ("sha256", 1, "abc"),
    "another label": ("label.af", 0, 1.0),
    "an infinite label": ("label.score", 0, np.inf),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_is_refused(copied, case):
    index = pd.read_parquet(copied / "index.parquet")
    name, row, value = ROWS[case]
    index.loc[row, name] = value
    rehash(copied, index)
    refusal(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.iloc[::-1],
        lambda index: index.iloc[1:],
        lambda index: pd.concat([index, index]),
        lambda index: index.iloc[:0],
        lambda index: index[["key"]],
        lambda index: pd.DataFrame(),
    ],
)
def test_rows_in_another_number_or_order_are_refused(copied, change):
    rehash(copied, change(pd.read_parquet(copied / "index.parquet")))
    refusal(copied)


def test_an_index_of_many_equal_rows_is_refused_before_it_is_read(copied, monkeypatch):
    index = pd.read_parquet(copied / "index.parquet")
    rehash(copied, pd.concat([index, index.iloc[[-1] * 100_000]]))
    monkeypatch.setattr(pd, "read_parquet", None)
    said = refusal(copied)
    assert f"{len(index) + 100_000:,} in all, but {len(index)} in dataset.json" in said


@pytest.mark.parametrize("names", [["key"], ["offset", "sha256"]])
@pytest.mark.parametrize("read", ["map", "stream", "remote"])
def test_records_that_were_swapped_in_the_index_with_all_digests_made_anew_are_noticed(
    copied, tmp_path, capsys, names, read
):
    index = pd.read_parquet(copied / "index.parquet")
    train = index.index[(index["split"] == "train") & (index["shard"] == 0)]
    for name in names:  # offsets have an order: then the rows go along
        index.loc[train[[0, 1]], name] = index.loc[train[[1, 0]], name].to_numpy()
    if "offset" in names:
        index = index.sort_values(["shard", "offset"], ignore_index=True)
    rehash(copied, index)
    location = copied
    if read == "remote":
        location = f"memory://swapped-{tmp_path.name}"
        fsspec.filesystem("memory").put(f"{copied}/", location, recursive=True)
    dataset, _ = opened(location, read="stream" if read == "stream" else "map")
    with pytest.raises(ValueError, match=shard_name(0)) as refused:
        if read == "stream":
            list(prefetch_in_order(dataset, slice(0, len(dataset)), 6))
        dataset.read(np.arange(len(dataset)))
    assert "\n" not in str(refused.value)
    if read == "map":
        assert "index.parquet names" in str(refused.value)
        for verb in ("inspect", "repair"):
            assert hpc_ecg(tmp_path, "data", verb, str(copied)) == 2
            assert "index.parquet is damaged" in capsys.readouterr().err.splitlines()[-1]


def test_an_index_that_is_no_table_is_one_line_and_other_columns_do_no_harm(copied, old):
    (copied / "index.parquet").write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    about = read_json(copied / "dataset.json")
    digest = sha256_of(copied / "index.parquet")
    (copied / "dataset.json").write_text(json.dumps(about | {"index_sha256": digest}))
    refusal(copied)
    index = pd.read_parquet(old / "index.parquet")
    rehash(copied, index.assign(extra=[[1]] * len(index)))
    assert len(open_shard_set(copied).index) == len(index)


# Names, links, pipes


def test_repair_staging_and_inspection_touch_nothing_outside(copied, tmp_path, capsys):
    secret = tmp_path / "id_ed25519"
    secret.write_text("mine")
    about = read_json(copied / "dataset.json")
    about["shards"][0]["name"] = "../id_ed25519"
    (copied / "dataset.json").write_text(json.dumps(about))
    for verb in ("repair", "inspect"):
        assert hpc_ecg(tmp_path, "data", verb, str(copied)) == 2
        assert "shards[0].name is '../id_ed25519'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"shards\[0\].name"):
        open_shards(DataConfig(shards=str(copied), stage_dir=str(tmp_path), labels=["af"]))
    assert secret.read_text() == "mine" and not list(tmp_path.glob("hpc_ecg-stage"))


@pytest.mark.parametrize("name", [shard_name(0), "dataset.json", "index.parquet"])
def test_a_link_out_of_the_folder_a_pipe_or_a_device_is_refused_not_read(
    copied, tmp_path, capsys, name
):
    (copied / name).rename(tmp_path / "elsewhere")
    for make in (
        lambda path: path.symlink_to(tmp_path / "elsewhere"),
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
    ):
        make(copied / name)
        for check_sizes in (True, False):
            with pytest.raises(
                ValueError, match=f"{name} is a (link out|folder, a device or a pipe)"
            ):
                read_shard_set(copied, check_sizes)
        for verb in ("inspect", "repair"):
            assert hpc_ecg(tmp_path, "data", verb, str(copied)) == 2
        (copied / name).unlink()
    assert "copy the file there" in capsys.readouterr().err


def test_a_link_to_the_whole_folder_and_one_within_it_are_read(copied, tmp_path, old):
    (copied / shard_name(0)).rename(copied / "first.tar")
    (copied / shard_name(0)).symlink_to("first.tar")
    (tmp_path / "link").symlink_to(copied)
    assert meaning(open_shard_set(tmp_path / "link")) == meaning(open_shard_set(old))
    assert meaning(open_shard_set(f"file://{copied}")) == meaning(open_shard_set(old))


def test_pipes_elsewhere_are_refused_too(tmp_path, capsys):
    os.mkfifo(tmp_path / "x")
    pipe = str(tmp_path / "x")
    home = copy_of_0_1(tmp_path)
    for words in (
        ["finetune", pipe],
        ["weights", "inspect", pipe],
        ["data", "inspect", pipe],
        ["data", "shard", pipe, "--signals", ".", "--out", "o", "--label", "af", "--patient", "p"],
        ["cohort", pipe, "events.csv", "--within", "5y", "--out", "o.csv", "--any-event"],
    ):
        assert hpc_ecg(home, *words) == 2, words
    (home / "runs/finished/finished.json").unlink()
    os.mkfifo(home / "runs/finished/finished.json")
    assert hpc_ecg(home, "evaluate", "runs/finished") == 2
    assert "device or a pipe" in capsys.readouterr().err


# While a run is at work


def opened(folder, **more):
    config = DataConfig(shards=str(folder), labels=["af"], batch_size=6, **more)
    shards, names = open_shards(config)
    dataset = open_split(shards, "train", names, ShardSource(shards, config))
    return dataset, EpochSampler.for_split(dataset, config, 0)


def change(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        os.truncate(path, 4096)
    elif how == "overwritten":
        with path.open("r+b") as file:  # without a moment in which the file is empty
            file.seek(1000)
            file.write(bytes([content[1000] ^ 1]))
    elif how == "removed":
        path.unlink()
    else:
        path.with_name("new").write_bytes(content)
        path.with_name("new").replace(path)


def test_a_mapped_shard_that_was_cut_off_is_named_before_it_is_read(copied):
    dataset, _ = opened(copied)
    everything = np.arange(len(dataset))
    dataset.read(everything)
    change(copied / shard_name(0), "cut")
    with pytest.raises(ValueError, match=f"{shard_name(0)} was cut off while it was in use"):
        dataset.read(everything)


@pytest.mark.parametrize(
    ("read", "how"),
    [
        *(("stream", "cut"), ("map", "overwritten"), ("stream", "overwritten")),
        *(("map", "removed"), ("stream", "removed")),
    ],
)
def test_a_shard_that_changes_stops_the_run_at_the_next_epoch_at_the_latest(copied, read, how):
    dataset, sampler = opened(copied, read=read)
    batches = prefetch(dataset, range(3 * sampler.steps_per_epoch), sampler, RankSlice())
    for _ in range(sampler.steps_per_epoch - 2):
        next(batches)
    change(copied / shard_name(0), how)
    with pytest.raises(ValueError, match=shard_name(0)) as caught:
        for _ in range(sampler.steps_per_epoch + 2):
            next(batches)
    assert "\n" not in str(caught.value)
    dataset.source.close()


@pytest.mark.parametrize("read", ["map", "stream"])
def test_the_same_bytes_copied_again_do_not_stop_it(copied, read):
    dataset, sampler = opened(copied, read=read)
    batches = prefetch(dataset, range(3 * sampler.steps_per_epoch), sampler, RankSlice())
    first = [next(batches).step for _ in range(3)]
    change(copied / shard_name(0), "replaced")
    rest = [batch.step for batch in batches]
    assert first + rest == list(range(3 * sampler.steps_per_epoch))


def test_an_evaluation_looks_at_the_shards_too(copied):
    dataset, _ = opened(copied)
    list(prefetch_in_order(dataset, slice(0, len(dataset)), 6))
    change(copied / shard_name(0), "overwritten")
    with pytest.raises(ValueError, match=f"{shard_name(0)} was changed"):
        list(prefetch_in_order(dataset, slice(0, len(dataset)), 6))
