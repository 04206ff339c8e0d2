"""A local sweep: every cell is a process, a failed one is named and runs again; the report."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import FIXTURES, words_for

from hpc_ecg.cli import main
from hpc_ecg.safe_reading import read_json
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.training.run_folder import RunFolder

STRATEGIES = Path(__file__).parent.parent / "configs" / "strategies"


def words_of_sweep(shards: Path, folder: Path, *more: str) -> list[str]:
    shared = [w for w in words_for(shards, folder) if not w.startswith(("run_dir", "init."))]
    return [
        f"sweep_dir={folder}",
        f"strategy_dir={STRATEGIES}",
        *[f"run.{word}" for word in (*shared, "train.max_epochs=1")],
        f"run.files.base_ssl={FIXTURES / 'tiny_base_ssl.pt'}",
        f"run.files.wcr_afib_5y={FIXTURES / 'tiny_wcr_afib_5y.pt'}",
        *more,
    ]


def test_a_strategy_is_its_overrides_and_a_cell_adds_seed_and_folder(shards, tmp_path):
    words = words_of_sweep(shards, tmp_path, "strategies=[ssl_linear_probe]", "seeds=[4]")
    (cell,) = load_sweep([], words).cells
    assert cell.run.train.freeze == "backbone" and cell.run.optim.lr == 0.001
    assert cell.run.seed == 4 and cell.run.run_dir == f"{tmp_path}/ssl_linear_probe/seed-4"
    assert cell.run.data.shards == str(shards) and cell.run.train.max_epochs == 1


def test_cells_differ_only_in_what_the_strategy_sets(shards, tmp_path):
    names = "strategies=[afib_keep_head,afib_reset_head]"
    keep, reset = load_sweep([], words_of_sweep(shards, tmp_path, names, "seeds=[0]")).cells
    assert (keep.run.init.head, reset.run.init.head) == ("keep", "new")
    assert keep.run.optim == reset.run.optim and keep.run.train == reset.run.train


@pytest.mark.slow
def test_a_sweep_reports_failed_cells_and_the_next_start_runs_only_those(shards, tmp_path, capfd):
    folder = tmp_path / "sweep"
    strategies = tmp_path / "strategies"
    strategies.mkdir()
    for name in ("ssl_new_head", "afib_keep_head"):
        (strategies / f"{name}.yaml").write_text((STRATEGIES / f"{name}.yaml").read_text())
    wrong = "init: {checkpoint: '${files.wcr_afib_5y}'}\ntrain: {freeze_layers: 99}\n"
    (strategies / "afib_keep_head.yaml").write_text(wrong)
    words = words_of_sweep(
        shards, folder, "strategies=[ssl_new_head,afib_keep_head]", "seeds=[0,1]"
    )
    words += [f"strategy_dir={strategies}", "runs_at_once=2"]

    assert main(["sweep", *words]) == 1
    printed = capfd.readouterr().out
    assert printed.count("failed: afib_keep_head/seed-") == 2 and "freeze_layers" in printed
    assert "freeze_layers" in (folder / "afib_keep_head" / "seed-0" / "error.txt").read_text()
    done = folder / "ssl_new_head" / "seed-0" / "finished.json"
    first = done.stat().st_mtime_ns

    (strategies / "afib_keep_head.yaml").write_text(
        (STRATEGIES / "afib_keep_head.yaml").read_text()
    )
    assert main(["sweep", *words]) == 0
    assert done.stat().st_mtime_ns == first, "a finished cell ran again"
    assert not (folder / "afib_keep_head" / "seed-0" / "error.txt").exists()

    capfd.readouterr()
    assert main(["report", str(folder)]) == 0
    printed = capfd.readouterr().out
    assert "ssl_new_head" in printed and max(map(len, printed.splitlines()[:-1])) <= 80
    comparison = read_json(folder / "report" / "comparison.json")
    assert {s["name"] for s in comparison["strategies"]} == {"ssl_new_head", "afib_keep_head"}
    page = (folder / "report" / "index.html").read_text()
    assert "<svg" in page and "afib_keep_head" in page
    json.dumps(comparison, allow_nan=False)

    with pytest.raises(ValueError, match=r"optim.lr: 0.002 there, 0.01 now"):
        load_and_launch([*words, "run.optim.lr=0.01"])


def load_and_launch(words):
    from hpc_ecg.sweep.launch import launch

    launch(load_sweep([], words))


@pytest.fixture
def words(shards, tmp_path):
    return words_of_sweep(shards, tmp_path / "sweep", "strategies=[ssl_new_head]", "seeds=[0]")


def test_what_would_fail_in_every_cell_fails_before_the_first(words, tmp_path):
    for word, expected in {
        "run.data.shards=nope": "data.shards=nope does not exist",
        "run.files.base_ssl=nope.pt": "ssl_new_head: nope.pt: no such file",
        "run.loss.name=mse": "data.task=binary needs loss.name=",
        "run.train.best_metric=nope": "train.best_metric",
        "tune.optim.lr=[fast]": "optim.lr must be a number such as 1e-5, got 'fast'",
        "tune.optim.lrr=[0.1]": "unknown setting optim.lrr",
    }.items():
        with pytest.raises(ValueError, match=expected):
            load_and_launch([*words, word])
    assert not (tmp_path / "sweep").exists()


def test_a_foreign_folder_and_the_folder_of_a_running_sweep_are_refused(words, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and not a sweep's"):
        load_and_launch(words)
    (folder / "notes.txt").rename(folder / "sweep.yaml")
    for mine in ("mine", "strategies: [random]\nsweep_dir: sweep\n"):
        (folder / "sweep.yaml").write_text(mine)
        with pytest.raises(ValueError, match="is not empty and not a sweep's"):
            load_and_launch(words)
        assert (folder / "sweep.yaml").read_text() == mine
    shutil.copy(FIXTURES / "v0_1/sweeps/finished/sweep.yaml", folder / "sweep.yaml")
    plan = (folder / "sweep.yaml").read_text()
    other = RunFolder(folder)
    other.claim()
    with pytest.raises(ValueError, match="is in use by process"):
        load_and_launch(words)
    other.release()
    assert (folder / "sweep.yaml").read_text() == plan


def test_what_the_sweep_sets_for_each_run_cannot_be_set_for_all(words):
    with pytest.raises(ValueError, match=r"run.seed is set by the sweep"):
        load_sweep([], [*words, "run.seed=3"])


def test_a_setting_of_the_runs_is_refused_outside_of_the_run_section(words, tmp_path):
    with pytest.raises(ValueError, match=r"optim is a setting of the runs.*below run: run.optim"):
        load_sweep([], [*words, "optim.lr=0.1"])
    (tmp_path / "sweep.yaml").write_text("train: {max_epochs: 3}\n")
    with pytest.raises(ValueError, match=r"train is a setting of the runs \(.*sweep.yaml\)"):
        load_sweep([str(tmp_path / "sweep.yaml")], words)


def test_gpus_must_be_named_by_number(words, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f3a")
    with pytest.raises(ValueError, match="a sweep deals GPUs by number"):
        load_and_launch(words)
