"""A run is opened from any working directory, also after it was moved with its data."""

import json
import shutil

import pytest
from conftest import FIXTURES, words_for

from hpc_ecg.cli import main
from hpc_ecg.training.open_run import load_run


@pytest.fixture(scope="module")
def project(shards, tmp_path_factory):
    """A working directory with shards, weights and a finished run that names them by relative
    paths."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(shards, folder / "shards")
    shutil.copy(FIXTURES / "tiny_base_ssl.pt", folder / "base.pt")
    words = words_for("shards", "runs/x", "files.base=base.pt", "init.checkpoint=${files.base}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["finetune", *words, "train.max_steps=1"]) == 0
    return folder


def test_settings_stay_as_they_were_typed(project):
    text = (project / "runs" / "x" / "config.yaml").read_text()
    assert "shards: shards\n" in text and "checkpoint: base.pt\n" in text
    environment = json.loads((project / "runs" / "x" / "environment.json").read_text())
    assert environment["working_directory"]["path"] == str(project)


def test_a_run_is_evaluated_from_another_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(project / "runs" / "x")]) == 0


def test_paths_of_this_call_start_in_this_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_run(str(project / "runs" / "x"), ["data.shards=mine"])
    assert config.data.shards == "mine"
    assert config.init.checkpoint == str(project / "base.pt")


def test_a_run_that_was_moved_with_its_data_is_evaluated(project, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    config = load_run(str(moved / "runs" / "x"), [])
    assert config.data.shards == str(moved / "shards")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "moved/runs/x"]) == 0


def test_a_report_from_another_folder_describes_the_cohort(project, tmp_path, monkeypatch):
    """config.yaml names the shards by a relative path."""
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    (moved / "sweep").mkdir()
    (moved / "runs").rename(moved / "sweep" / "ssl_new_head")
    (moved / "sweep" / "ssl_new_head" / "x").rename(moved / "sweep" / "ssl_new_head" / "seed-0")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "moved/sweep/ssl_new_head/seed-0"]) == 0
    assert main(["report", "moved/sweep"]) == 0
    comparison = json.loads((moved / "sweep" / "report" / "comparison.json").read_text())
    assert comparison["flow"]["in_table"] > 0
