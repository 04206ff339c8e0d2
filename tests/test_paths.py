"""Relative paths of a run start where the run was started, wherever it is opened from."""

import pytest

from hpc_ecg.config.paths import resolve_paths
from hpc_ecg.training.environment import base_folders, describe_working_directory
from hpc_ecg.training.settings import FinetuneConfig


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with shards and a run; the test stands in another one."""
    project = tmp_path / "project"
    (project / "shards").mkdir(parents=True)
    (project / "runs" / "x").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(project)
    environment = {"working_directory": describe_working_directory(project / "runs" / "x")}
    monkeypatch.chdir(tmp_path / "elsewhere")
    return project, environment


def resolve(folder, environment, **values):
    keys = {name.replace("__", "."): value for name, value in values.items()}
    return resolve_paths(keys, FinetuneConfig, base_folders(folder, environment))


def test_a_relative_path_starts_where_the_run_was_started(project):
    folder, environment = project
    resolved = resolve(folder / "runs" / "x", environment, data__shards="shards", optim__lr=1.0)
    assert resolved == {"data.shards": str(folder / "shards"), "optim.lr": 1.0}


def test_what_was_moved_as_a_whole_is_found_in_its_new_place(project, tmp_path):
    folder, environment = project
    moved = folder.rename(tmp_path / "moved")
    resolved = resolve(moved / "runs" / "x", environment, data__shards="shards")
    assert resolved == {"data.shards": str(moved / "shards")}


def test_a_run_that_was_moved_alone_still_finds_its_data(project, tmp_path):
    folder, environment = project
    moved = (folder / "runs" / "x").rename(tmp_path / "x")
    resolved = resolve(moved, environment, data__shards="shards")
    assert resolved == {"data.shards": str(folder / "shards")}


@pytest.mark.parametrize(
    "value",
    ["/data/shards", "s3://bucket/set", "pipe:cat {name}", "$TMP/x", "~/x", "auto", "", None],
)
def test_what_is_no_relative_path_stays_as_it_is(project, value):
    folder, environment = project
    run = folder / "runs" / "x"
    values = {"data__shards": value, "train__feature_cache": value, "files__base": value}
    assert set(resolve(run, environment, **values).values()) == {value}


def test_names_of_files_are_paths_too(project):
    folder, environment = project
    resolved = resolve(folder / "runs" / "x", environment, files__base_ssl="base.pt")
    assert resolved == {"files.base_ssl": str(folder / "base.pt")}


def test_from_the_same_folder_paths_stay_as_they_were_written(project, monkeypatch):
    folder, environment = project
    monkeypatch.chdir(folder)
    run = folder / "runs" / "x"
    assert resolve(run, environment, data__shards="shards") == {"data.shards": "shards"}


def test_a_folder_of_version_0_1_says_nothing_and_nothing_is_changed(project):
    folder, _ = project
    assert resolve(folder / "runs" / "x", {}, data__shards="shards") == {"data.shards": "shards"}


@pytest.mark.parametrize("key", ["path", "from_this_folder"])
def test_a_damaged_record_of_the_working_directory_is_reported(tmp_path, key):
    recorded = describe_working_directory(tmp_path)
    rest = {name: value for name, value in recorded.items() if name != key}
    for damaged in (rest, recorded | {key: 7}):
        with pytest.raises(ValueError, match=f"environment.json is damaged: {key} cannot be"):
            base_folders(tmp_path, {"working_directory": damaged})
