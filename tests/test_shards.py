"""The shard format: what plain tools read, the same bytes each time, damage named in one line."""

import json
import re
import shutil
import subprocess
import tarfile

import numpy as np
import pandas as pd
import pytest
from conftest import plan_for

from hpc_ecg.ecg.files import ArrayLayout, find_recording, read_recording
from hpc_ecg.ecg.preprocess import prepare
from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.format import ARRAY_SUFFIX, key_of_row, read_shard_set, shard_name
from hpc_ecg.shards.sharding import shard_ecgs


@pytest.fixture
def copied(shards, tmp_path):
    """A set of shards to damage."""
    return shutil.copytree(shards, tmp_path / "copied")


def tars_of(folder):
    return sorted(folder.glob("*.tar"))


def samples_of(folder):
    """Key -> sample, as plain webdataset reads them."""
    webdataset = pytest.importorskip("webdataset")
    samples = {}
    for path in tars_of(folder):  # one by one: webdataset objects to a shard without records
        for sample in webdataset.WebDataset(
            str(path), shardshuffle=False, empty_check=False
        ).decode():
            assert sample["__key__"] not in samples
            samples[sample["__key__"]] = sample
    return samples


# What lies in a shard


@pytest.mark.slow
def test_plain_webdataset_reads_the_arrays_and_what_they_mean(shards, cohort):
    samples = samples_of(shards)
    index = pd.read_parquet(shards / "index.parquet")
    table = pd.read_csv(cohort)
    assert list(samples) == index["key"].tolist()
    for key, sample in samples.items():
        row = table.iloc[int(key)]
        recording = read_recording(find_recording(cohort.parent, row["file"]), ArrayLayout())
        expected_LS = prepare(recording, SignalSpec())[0].counts_LS
        array = sample["ecg.npy"]
        assert array.dtype == np.int16 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected_LS)
        assert sample["json"] == {
            "leads": ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"],
            "sample_rate_hz": 250,
            "num_samples": 2500,
            "unit": "mV",
            "amplitude": "calibrated",
            "preprocessing": SignalSpec().preprocessing,
            "window": "first",
            "microvolts_per_count": 1.0,
        }


def test_plain_webdataset_reads_all_shards_as_one_stream(shards):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in tars_of(shards)]
    keys = [s["__key__"] for s in webdataset.WebDataset(urls, shardshuffle=False)]
    assert keys == pd.read_parquet(shards / "index.parquet")["key"].tolist()


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar on this machine")
def test_the_systems_tar_lists_and_unpacks_a_shard(shards, tmp_path):
    shard = shards / shard_name(0)
    listed = subprocess.run(["tar", "tf", shard], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    names = listed.stdout.splitlines()
    assert len(names) == 60
    subprocess.run(["tar", "xf", shard, "-C", tmp_path], check=True)
    assert np.load(tmp_path / "00000000.ecg.npy").shape == (12, 2500)
    assert json.loads((tmp_path / "00000000.json").read_text())["sample_rate_hz"] == 250


def test_keys_are_row_numbers_without_dots(shards):
    assert [key_of_row(0), key_of_row(1_234_567)] == ["00000000", "01234567"]
    for path in tars_of(shards):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                assert re.fullmatch(r"\d{8}\.(ecg\.npy|json)", name)


def test_a_shard_holds_consecutive_rows_of_the_table(shards):
    for number, path in enumerate(tars_of(shards)):
        with tarfile.open(path) as tar:
            rows = {int(name[:8]) for name in tar.getnames()}
        assert rows <= set(range(30 * number, 30 * (number + 1)))


def test_no_identifier_and_no_label_is_in_a_tar(shards, cohort):
    table = pd.read_csv(cohort, dtype=str)
    for path in tars_of(shards):
        content = path.read_bytes()
        for column in ("record", "patient_id"):
            assert not any(name.encode() in content for name in table[column])
        with tarfile.open(path) as tar:
            for member in tar:
                about = (member.mtime, member.uid, member.gid, member.uname, member.gname)
                assert about == (0, 0, 0, "", "")
                if member.name.endswith(".json"):
                    fields = set(json.load(tar.extractfile(member)))
                    assert not fields & {"label", "labels", "af", "patient", "record", "age", "sex"}


# The index


def find_array_offsets(path, num_leads, num_samples):
    """Key -> byte offset of its first count in the tar, read from the headers of tar and arrays."""
    offsets = {}
    with tarfile.open(path, "r:") as tar, path.open("rb") as file:
        for member in tar:
            if not member.name.endswith(ARRAY_SUFFIX):
                continue
            file.seek(member.offset_data)
            version = np.lib.format.read_magic(file)
            assert version == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            assert shape == (num_leads, num_samples) and dtype == np.int16 and not fortran
            offsets[member.name.removesuffix(ARRAY_SUFFIX)] = file.tell()
    return offsets


def test_the_index_has_the_offset_of_the_first_count_of_each_record(shards):
    index, samples = pd.read_parquet(shards / "index.parquet"), samples_of(shards)
    for row in index.itertuples():
        array = np.fromfile(shards / shard_name(row.shard), "<i2", 12 * 2500, offset=row.offset)
        np.testing.assert_array_equal(array.reshape(12, 2500), samples[row.key]["ecg.npy"])
    found = find_array_offsets(shards / shard_name(1), 12, 2500)
    assert found == dict(index[index["shard"] == 1][["key", "offset"]].to_numpy().tolist())


def test_the_index_holds_what_the_table_says_and_pseudonyms(shards, cohort):
    index, table = pd.read_parquet(shards / "index.parquet"), pd.read_csv(cohort)
    of_index = table.iloc[index["key"].astype(int)]
    assert index["record"].tolist() == of_index["record"].tolist()
    np.testing.assert_array_equal(index["label.af"], of_index["af"])
    assert index["label.af"].isna().any(), "an empty label is missing"
    np.testing.assert_array_equal(index["age"], of_index["age"])
    assert index["sex"].tolist() == of_index["sex"].tolist()
    pairs = set(zip(index["patient"], of_index["patient_id"], strict=True))
    assert len(pairs) == index["patient"].nunique() == of_index["patient_id"].nunique()
    assert index["patient"].str.fullmatch(r"p\d{8}").all()


# The same bytes


def digests(folder):
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.slow
def test_made_twice_all_files_have_the_same_bytes(shards, cohort, tmp_path):
    shard_ecgs(plan_for(cohort, tmp_path / "again"))
    assert digests(tmp_path / "again") == digests(shards)
    assert len(digests(shards)) == 4 + 5


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(shards, cohort, tmp_path):
    shard_ecgs(plan_for(cohort, tmp_path / "two", workers=2))
    assert digests(tmp_path / "two") == digests(shards)


# Opening a set


def test_an_open_set_has_the_facts_of_its_description(shards):
    found = read_shard_set(str(shards))
    assert found.signal == SignalSpec() and found.microvolts_per_count == 1.0
    assert found.label_names == ["af"]
    assert found.index_sha256 == sha256_of(shards / "index.parquet")
    for shard in found.description["shards"]:
        assert sha256_of(shards / shard["name"]) == shard["sha256"]
    counts = found.index["split"].value_counts().to_dict()
    assert found.description["records"] == counts
    assert found.description["patients"] == {
        split: found.index[found.index["split"] == split]["patient"].nunique() for split in counts
    }
    assert found.description["left_out"] == dict.fromkeys(
        ("unreadable", "flat lead", "NaN", "leads", "not found"), 1
    )


def refusal(folder):
    with pytest.raises(ValueError) as caught:
        read_shard_set(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_shards_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert f"data.shards={tmp_path} holds no shards (no dataset.json)" in refusal(tmp_path)


def test_a_missing_shard_is_named(copied):
    (copied / shard_name(1)).unlink()
    assert f"{shard_name(1)} is missing; copy it again" in refusal(copied)


@pytest.mark.parametrize("change", [-512, 512])
def test_a_shard_of_another_size_is_named_with_both_sizes(copied, change):
    path = copied / shard_name(2)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    message = refusal(copied)
    assert shard_name(2) in message
    assert f"{len(content) + change} bytes, dataset.json says {len(content)}" in message


def test_a_missing_index_is_named(copied):
    (copied / "index.parquet").unlink()
    assert "index.parquet is missing" in refusal(copied)


def test_the_index_of_another_set_is_refused(copied):
    index = pd.read_parquet(copied / "index.parquet")
    index.loc[0, "label.af"] = 1 - index.loc[0, "label.af"]
    index.to_parquet(copied / "index.parquet", index=False)
    assert "not the one that dataset.json describes" in refusal(copied)


def test_a_cut_off_index_is_refused(copied):
    path = copied / "index.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert "index.parquet" in refusal(copied)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b'{"format": "hpc_ecg-sha', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "not a description of hpc_ecg-shards/2"),
        (b'{"format": "hpc_ecg-shards/3"}', "not a description of hpc_ecg-shards/2"),
    ],
)
def test_a_file_that_is_not_a_description_is_refused(copied, content, expected):
    (copied / "dataset.json").write_bytes(content)
    message = refusal(copied)
    assert "dataset.json" in message and expected in message


def test_a_description_with_another_signal_field_is_refused(copied):
    description = json.loads((copied / "dataset.json").read_text())
    description["signal"]["gain"] = 2
    (copied / "dataset.json").write_text(json.dumps(description))
    assert "a signal spec has the fields" in refusal(copied)
