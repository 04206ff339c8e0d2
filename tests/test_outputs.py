"""Every verb that writes: what we did not make is never removed, and replaced only with --force."""

import os
import shutil
import subprocess
import sys

import benchmark
import pytest
from recorded import WORDS, copy_of_0_1, hpc_ecg

from hpc_ecg import atomic_io
from hpc_ecg.atomic_io import check_may_write, write_json, write_text
from hpc_ecg.comparison.report import FIGURES, TABLES
from hpc_ecg.data.node_cache import NodeCache

pytestmark = pytest.mark.slow

RUN = "runs/finished"
SEEDS = [f"sweeps/finished/random/seed-{seed}" for seed in (0, 1)]
# Verbs that write a file: words before OUT, the ending of OUT, and words after it.
FILES = {
    "cohort": ([*WORDS["cohort"], "--out"], ".csv", []),
    "inspect": (["data", "inspect", "shards", "--plots", "1", "--out"], ".html", []),
    "convert": (["weights", "convert", RUN], ".safetensors", []),
    "convert_pt": (["weights", "convert", RUN], ".pt", []),
    "reset_head": (["weights", "reset-head", RUN], ".safetensors", ["--seed", "0"]),
    "soup": (["weights", "soup"], ".safetensors", SEEDS),
}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return copy_of_0_1(tmp_path_factory.mktemp("outputs"))


def words_for_file(verb, out, *more):
    before, ending, after = FILES[verb]
    return [*before, out + ending, *after, *more], out + ending


def refusal(capsys, folder, *words):
    capsys.readouterr()
    assert hpc_ecg(folder, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if not line.endswith("no digests of its files")]
    assert len(said) == 1, lines
    return said[0]


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("verb", FILES)
def test_a_folder_is_never_a_place_for_a_file(old, tmp_path, capsys, verb, force):
    words, out = words_for_file(verb, str(tmp_path / "thesis"), *force)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "chapter.txt").write_text("mine")
    for place in (tmp_path / "real").rename, lambda out: out.symlink_to(tmp_path / "moved"):
        place(tmp_path / out)
        assert "is a folder; give the name of a file" in refusal(capsys, old, *words)
        assert (tmp_path / out / "chapter.txt").read_text() == "mine"
        if not (tmp_path / out).is_symlink():
            (tmp_path / out).rename(tmp_path / "moved")
    assert (tmp_path / out).is_symlink()


@pytest.mark.parametrize("verb", FILES)
def test_a_file_of_the_users_is_replaced_only_with_force(old, tmp_path, capsys, verb):
    words, out = words_for_file(verb, str(tmp_path / "thesis"))
    (tmp_path / out).write_text("mine")
    assert "exists; give --force to replace it" in refusal(capsys, old, *words)
    assert (tmp_path / out).read_text() == "mine"
    assert hpc_ecg(old, *words, "--force") == 0
    assert (tmp_path / out).read_bytes()[:4] != b"mine"


@pytest.mark.parametrize("verb", FILES)
def test_a_pipe_or_a_link_to_nothing_is_not_replaced(old, tmp_path, capsys, verb):
    words, out = words_for_file(verb, str(tmp_path / "thesis"))
    os.mkfifo(tmp_path / out)
    for more in ([], ["--force"]):
        assert "is a device or a pipe" in refusal(capsys, old, *words, *more)
    assert (tmp_path / out).is_fifo()
    (tmp_path / out).unlink()
    (tmp_path / out).symlink_to("nowhere")
    assert "exists; give --force" in refusal(capsys, old, *words)
    assert (tmp_path / out).readlink().name == "nowhere"


def test_files_beside_a_cohorts_table_are_replaced_only_with_force(old, tmp_path, capsys):
    words = [*WORDS["cohort"], "--out", str(tmp_path / "c.csv")]
    (tmp_path / "c.flow.txt").write_text("mine")
    assert "c.flow.txt exists" in refusal(capsys, old, *words)
    assert not (tmp_path / "c.csv").exists()
    assert hpc_ecg(old, *words, "--force") == 0


def test_an_inspection_is_a_page_and_replaces_an_earlier_one(old, tmp_path, capsys):
    words = ["data", "inspect", "shards", "--plots", "0", "--out"]
    for name in ("x.pdf", "x", "x.csv", ".html"):
        assert "must end in .html" in refusal(capsys, old, *words, str(tmp_path / name))
    for _ in range(2):
        assert hpc_ecg(old, *words, str(tmp_path / "x.html")) == 0
    assert "is a file, not a folder of shards" in refusal(
        capsys, old, "data", "inspect", "cohort.csv"
    )


@pytest.mark.parametrize(
    "words",
    [
        [*WORDS["shard"], "--out"],
        ["finetune", *WORDS["run"], "run_dir="],
        ["sweep", *WORDS["sweep"], "sweep_dir="],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("name", ["chapter.txt", "sweep.yaml", "config.yaml", "lock"])
def test_a_folder_with_other_files_becomes_no_run_sweep_or_set(old, tmp_path, capsys, words, name):
    (tmp_path / name).write_text("mine: 1\n")
    last = [words[-1] + str(tmp_path)] if words[-1].endswith("=") else [words[-1], str(tmp_path)]
    refusal(capsys, old, *words[:-1], *last)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine: 1\n"


@pytest.mark.parametrize("place", ["", "shards", "notes"])
def test_the_folder_of_unfinished_work_is_not_deleted_with_other_files_in_it(
    old, tmp_path, capsys, place
):
    mine = tmp_path / ".set.unfinished" / place / "chapter.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    words = [*WORDS["shard"], "--out", str(tmp_path / "set")]
    assert "chapter.txt, which is not ours" in refusal(capsys, old, *words)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["predictions.parquet", "evaluation.json"])
def test_an_evaluation_replaces_only_an_evaluation(old, tmp_path, capsys, name):
    words = ["evaluate", RUN, "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "chapter.txt").write_text("mine")
    for _ in range(2):
        assert hpc_ecg(old, *words) == 0
    (tmp_path / "out" / "predictions.parquet").unlink()
    (tmp_path / "out" / name).write_text("[1]")
    assert f"{name} exists; it is not ours" in refusal(capsys, old, *words)
    assert (tmp_path / "out" / name).read_text() == "[1]"
    assert (tmp_path / "out" / "chapter.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert "is a file; give a folder" in refusal(
        capsys, old, "evaluate", RUN, "--out", str(tmp_path / "file")
    )


def test_a_report_deletes_nothing_but_what_reports_write(old, tmp_path, capsys):
    sweep = shutil.copytree(old / "sweeps/finished", tmp_path / "sweep")
    report = sweep / "report"
    report.mkdir()
    (report / "index.html").write_text("mine")
    words = ["report", str(sweep), "--replicates", "200", "--no-baselines"]
    assert "index.html exists; it is not ours" in refusal(capsys, old, *words)
    (report / "index.html").unlink()
    assert hpc_ecg(old, *words) == 0
    assert {path.stem for path in report.glob("*.csv")} <= {*TABLES}
    assert all(any(path.match(p) for p in FIGURES) for path in report.glob("figures/*"))
    mine = [report / name for name in ("mine.csv", "figures/mine.svg", "cards/random/notes.md")]
    stale = [report / name for name in ("tuning.csv", "figures/roc-old.svg")]
    for path in (*mine, *stale, report / "cards/old/RUN_CARD.md"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert hpc_ecg(old, *words) == 0
    assert [path.exists() for path in (*mine, *stale)] == [True] * 3 + [False] * 2
    assert not (report / "cards/old").exists()


def test_a_benchmark_replaces_only_its_own_numbers(tmp_path, monkeypatch):
    path = tmp_path / "numbers.json"
    path.write_text('{"thesis": "mine"}')
    with pytest.raises(SystemExit):
        benchmark.main(["statistics", "--json", str(path)])
    assert path.read_text() == '{"thesis": "mine"}'


def test_a_checkpoint_folder_is_replaced_by_its_own_kind_only(tmp_path):
    def write(partial):
        partial.mkdir()
        (partial / "COMPLETE").touch()

    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "chapter.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"chapter.txt, which is not ours"):
        atomic_io.write_atomically(tmp_path / "step", write, ("COMPLETE",))
    assert [path.name for path in tmp_path.rglob("*")] == ["step", "chapter.txt"]
    atomic_io.remove_made(tmp_path / "step", "COMPLETE")
    assert (tmp_path / "step" / "chapter.txt").exists()


def test_a_node_cache_deletes_only_copies_and_follows_no_link(tmp_path):
    def cache():
        NodeCache(disk, "ab" * 32, [], lambda shard: None, []).close()

    disk, mine = tmp_path / "disk", tmp_path / "mine"
    base = disk / "hpc_ecg-stage"
    for folder in (base / "thesis", base / ("0" * 16), mine / ("0" * 16) / "users"):
        folder.mkdir(parents=True)
        (folder / "chapter.txt").write_text("mine")
    (mine / ("0" * 16) / "users" / "a.lock").touch()
    cache()
    assert len(list(base.rglob("chapter.txt"))) == 2
    shutil.rmtree(base / ("0" * 16))
    (base / ("0" * 16)).symlink_to(mine / ("0" * 16))
    cache()
    shutil.rmtree(base)
    base.symlink_to(mine)
    with pytest.raises(ValueError, match="is a link"):
        cache()
    assert sorted(p.name for p in mine.rglob("*") if p.is_file()) == ["a.lock", "chapter.txt"]


KILLED = """
import os, sys
from pathlib import Path
from hpc_ecg.atomic_io import write_atomically
def write(partial):
    partial.write_text("half")
    os.kill(os.getpid(), 9)
write_atomically(Path(sys.argv[1]), write)
"""


def test_what_a_killed_writer_left_goes_with_the_next_call_and_nothing_else_does(tmp_path):
    path = tmp_path / "x.pt"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert len(list(tmp_path.glob(".x.pt.*.partial"))) == 1
    alive, host = os.getppid(), atomic_io._host()
    kept = [f".x.pt.{alive}-{host}.partial", f".x.pt.{alive}.partial", ".x.pt.1-0badhost.partial"]
    kept += [".x.pt.0x1.partial", ".y.pt.999999999.partial"]
    kept += [".x.pt.partial"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    write_text(path, "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "x.pt"])


def test_a_folder_is_listed_once_however_many_files_are_written_into_it(tmp_path, monkeypatch):
    listed = []
    real = atomic_io.Path.glob
    monkeypatch.setattr(
        atomic_io.Path, "glob", lambda path, pattern: listed.append(path) or real(path, pattern)
    )
    for name in ("a", "b", "a"):
        write_text(tmp_path / name, "x")
    assert listed == [tmp_path]


def test_one_function_decides(tmp_path):
    write_json(tmp_path / "a.json", 1)
    check_may_write(tmp_path / "a.json")
    check_may_write(tmp_path / "new.json", replace=False)
    for path in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(ValueError):
            check_may_write(path, replace=False)
    for device in ("/dev/null", "/dev/zero"):
        with pytest.raises(ValueError, match="is a device or a pipe"):
            check_may_write(atomic_io.Path(device))
    with pytest.raises(ValueError, match="is a folder"):
        write_text(tmp_path, "x")
