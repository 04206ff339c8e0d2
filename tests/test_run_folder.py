"""The run folder: whole files or none, one process at a time, one configuration."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_ecg import atomic_io
from hpc_ecg.atomic_io import write_atomically, write_json
from hpc_ecg.safe_reading import read_json
from hpc_ecg.training.environment import describe_environment
from hpc_ecg.training.run_folder import RunFolder, differing_keys

CONFIG = "seed: 0\noptim:\n  lr: 0.001\nengine:\n  device: cpu\ntrain:\n  stages: {}\n"


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def killed_at(code, folder):
    """Run Python code in another process, which kills itself where the code says `die()`."""
    start = (
        "import os, shutil, signal, sys\nfrom pathlib import Path\n"
        "from hpc_ecg import atomic_io\nfrom hpc_ecg.atomic_io import *\n"
        "folder = Path(sys.argv[1])\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", start + code, folder], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()


# Whole or not at all


def test_a_file_is_written_with_its_parents_and_nothing_else_stays(tmp_path):
    write_json(tmp_path / "a/b.json", {"x": [1, None]})
    assert read_json(tmp_path / "a/b.json") == {"x": [1, None]}
    assert names_in(tmp_path) == ["a", "a/b.json"]
    write_json(tmp_path / "a/b.json", 2)
    assert read_json(tmp_path / "a/b.json") == 2


def test_a_folder_replaces_a_folder(tmp_path):
    write_atomically(tmp_path / "best", make_folder("old", "extra"))
    write_atomically(tmp_path / "best", make_folder("new"), ("old", "extra"))
    assert names_in(tmp_path) == ["best", "best/new"]


def make_folder(*names):
    def write(aside):
        aside.mkdir()
        for name in names:
            (aside / name).write_text(name)

    return write


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_failure_while_writing_leaves_the_old_and_no_rest(tmp_path, is_folder):
    def write(aside):
        make_folder("new")(aside) if is_folder else aside.write_text("new")
        raise OSError("disk full")

    path = tmp_path / "x"
    make_folder("old")(path) if is_folder else path.write_text("old")
    before = names_in(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write, ("old",))
    assert names_in(tmp_path) == before


def test_a_kill_while_writing_a_file_leaves_the_old(tmp_path):
    write_json(tmp_path / "x.json", "old")
    killed_at(
        "def write(aside):\n aside.write_text('ne')\n die()\n"
        "write_atomically(folder / 'x.json', write)",
        tmp_path,
    )
    assert read_json(tmp_path / "x.json") == "old"


@pytest.mark.parametrize(
    "place",
    [
        "atomic_io._sync = die",  # written, not yet flushed
        "shutil.rmtree = die",  # about to delete what is replaced
        "n = []\nreal = Path.rename\n"
        "def rename(*args):\n n.append(1)\n return die() if len(n) == 2 else real(*args)\n"
        "Path.rename = rename",  # the old is moved off, the new has not its name yet
    ],
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder(tmp_path, place):
    write_atomically(tmp_path / "best", make_folder("old", "old2"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    killed_at(
        f"{place}\ndef write(aside):\n aside.mkdir()\n (aside / 'new').touch()\n"
        "write_atomically(folder / 'best', write, ('old', 'old2'))",
        tmp_path,
    )
    folder = RunFolder(tmp_path)
    folder.claim()
    folder.release()
    assert names_in(tmp_path) in (
        ["best", "best/new", "config.yaml"],
        ["best", "best/old", "best/old2", "config.yaml"],
    )


def test_what_a_killed_process_of_the_same_number_left_is_no_obstacle(tmp_path):
    """In a container the process has the same number again after a restart."""
    for number in (f"{os.getpid()}", f"{os.getpid()}-{atomic_io._host()}"):  # as 0.1, as today
        make_folder("half")(tmp_path / f".step.{number}.partial")
    write_atomically(tmp_path / "step", make_folder("whole"))
    assert names_in(tmp_path) == ["step", "step/whole"]


def test_everything_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed, path = [], tmp_path / "best"
    monkeypatch.setattr(atomic_io, "_sync", lambda p: flushed.append((p.name, path.exists())))
    write_atomically(path, make_folder("a", "b"))
    aside = f".best.{os.getpid()}-{atomic_io._host()}.partial"
    assert sorted(flushed[:3]) == [(aside, False), ("a", False), ("b", False)]
    assert flushed[3:] == [(tmp_path.name, True)]


# The lock


HOLD = """
import sys
from hpc_ecg.training.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.claim()
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_kept_out_and_told_by_whom(tmp_path, holder):
    with pytest.raises(
        ValueError, match=f"is in use by process {holder.pid} on .*another folder"
    ) as caught:
        RunFolder(tmp_path / "run").claim()
    assert "\n" not in str(caught.value)


def test_a_process_that_is_kept_out_takes_nothing_away(tmp_path, holder):
    loser = RunFolder(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ValueError, match="is in use"):
            loser.claim()
        loser.release()
    assert names_in(tmp_path / "run") == ["lock", "lock.holder"]


def test_the_lock_goes_with_the_process_that_is_killed(tmp_path, holder):
    holder.kill()
    holder.wait()
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    assert str(os.getpid()) in (tmp_path / "run/lock.holder").read_text()
    folder.release()


def test_a_released_folder_holds_no_trace_and_can_be_claimed_again(tmp_path):
    for _ in range(2):
        folder = RunFolder(tmp_path / "run")
        folder.claim()
        assert names_in(tmp_path / "run") == ["lock", "lock.holder"]
        folder.release()
        assert names_in(tmp_path / "run") == []
        folder.release()


def test_the_lock_file_goes_before_the_lock_does(tmp_path, monkeypatch):
    """Deleted after the release it could be another process's, and two would get in."""
    folder = RunFolder(tmp_path)
    folder.claim()
    release, at_release = folder._lock.release, []
    monkeypatch.setattr(
        folder._lock, "release", lambda: (at_release.append(names_in(tmp_path)), release())
    )
    folder.release()
    assert at_release == [[]]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run cannot be written"):
        RunFolder(tmp_path / "file" / "run").claim()


def test_claiming_a_folder_that_is_no_run_deletes_nothing(tmp_path):
    for name in (".x.1.partial", ".y.2.old", ".z.old"):
        (tmp_path / name).write_text("mine")
    folder = RunFolder(tmp_path)
    folder.claim()
    folder.release()
    assert names_in(tmp_path) == [".x.1.partial", ".y.2.old", ".z.old"]


# The configuration


def check(folder, text):
    RunFolder(folder).check_same_config(text)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_the_same_configuration_is_accepted_however_it_is_written(run):
    check(run, CONFIG)
    check(run, "train: {stages: {}}\nengine: {device: cpu}\noptim: {lr: 1.0e-3}\nseed: 0\n")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("lr: 0.001", "lr: 0.01", "optim.lr: 0.001 there, 0.01 now"),
        ("seed: 0", "seed: 1", "seed: 0 there, 1 now"),
        ("seed: 0\n", "", "seed: 0 there, absent now"),
        ("seed: 0\n", "seed: 0\nengines: 2\n", "engines: absent there, 2 now"),
        ("stages: {}", "stages: {probe: {lr: 1}}", "train.stages.probe.lr: absent there, 1 now"),
    ],
)
def test_another_configuration_is_refused_with_the_key_and_both_values(run, old, new, expected):
    with pytest.raises(ValueError) as caught:
        check(run, CONFIG.replace(old, new))
    message = str(caught.value)
    assert expected in message and "belongs to another configuration" in message
    assert "\n" not in message


def test_neutral_settings_may_differ_and_no_others(run):
    check(run, CONFIG.replace("device: cpu", "device: cuda\n  cpu_threads: 2"))
    with pytest.raises(ValueError, match=r"\(engine.precision: absent there, bf16 now\)"):
        check(run, CONFIG.replace("device: cpu", "device: cuda\n  precision: bf16"))
    assert differing_keys({"files": 1}, {"files": 2}) == []
    assert differing_keys({"files.a": 1}, {"files.a": 2}) == []
    assert differing_keys({"filesystem": 1}, {"filesystem": 2}) == ["filesystem"]


def test_a_new_or_an_empty_folder_is_accepted(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    folder.check_same_config(CONFIG)
    folder.release()


@pytest.mark.parametrize("name", ["notes.txt", "locked.txt", ".git", "metrics.jsonl", "lock.d"])
def test_a_foreign_folder_is_refused_and_what_lies_there_is_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"is not a run folder .*{name}"):
        check(tmp_path, CONFIG)


def test_a_run_that_was_killed_before_its_config_was_written_starts_again(tmp_path):
    for name in ("lock", "lock.holder", "init_report.json", ".environment.json.77.partial"):
        (tmp_path / name).touch()
    check(tmp_path, CONFIG)


# What it records


def test_events_are_lines_that_are_only_added(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_event("step", step=1, loss=0.5)
    folder.append_event("valid", auroc=None)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line.pop("time")[:2] for line in lines] == ["20", "20"]
    assert lines == [{"event": "step", "step": 1, "loss": 0.5}, {"event": "valid", "auroc": None}]


def test_what_is_not_finite_is_null_and_a_torn_line_does_not_swallow_the_next(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"event": "st')
    folder.append_event("step", grad_norm=float("inf"))
    last = folder.metrics.read_text().splitlines()[-1]
    assert json.loads(last)["grad_norm"] is None


@pytest.mark.parametrize("text", ["", "- a\n"])
def test_a_damaged_config_is_named(run, text):
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml is damaged: it holds no settings"):
        check(run, CONFIG)


def test_a_half_written_finished_is_not_taken_for_whole(tmp_path):
    folder = RunFolder(tmp_path)
    assert not folder.is_finished()
    folder.finished.write_text("{")
    with pytest.raises(ValueError, match=r"finished.json is damaged"):
        folder.is_finished()


def test_a_finished_run_says_so(tmp_path):
    folder = RunFolder(tmp_path)
    assert not folder.finished.exists()
    folder.finish({"best": 3})
    assert read_json(folder.finished) == {"best": 3}


def test_the_environment_names_versions_machine_and_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    found = json.loads(json.dumps(describe_environment(tmp_path)))
    assert found["packages"]["torch"] and found["packages"]["hpc-ecg"]
    assert found["slurm"]["SLURM_JOB_ID"] == "42"
    assert found["machine"]["cpu_count"] >= 1
    git = Path(__file__).parent.parent / ".git"
    if git.is_dir() and shutil.which("git"):
        said = subprocess.run(
            ["git", "-C", git.parent, "rev-parse", "HEAD"], capture_output=True, text=True
        )
        assert found["commit"].removesuffix("-dirty") == said.stdout.strip()
