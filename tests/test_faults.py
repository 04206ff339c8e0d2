"""What breaks on one machine costs a run at most the steps since its last checkpoint, never its
result; and it says what happened, in a line."""

import os
import shutil
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path

import faults
import pytest
from conftest import words_for
from faults import at_step, finetune_on_ranks, get
from ranks import Ended
from test_finetune import events, same_tensors

from hpc_ecg.data.dataset import DataConfig, open_shards
from hpc_ecg.safe_reading import read_json
from hpc_ecg.sweep.folder import read_events

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """Two processes, 8 steps, one checkpoint before each validation (every 4 steps)."""
    folder = tmp_path_factory.mktemp("whole")
    assert on_two(folder, words_for(shards, folder / "run")).codes == [0, 0]
    return folder / "run"


def on_two(folder: Path, words: list[str], *harms, **named) -> Ended:
    return finetune_on_ranks(folder, [words, words], *harms, **named)


def assert_as(whole: Path, run: Path, resumed_at: list[int]) -> None:
    """Bitwise the same, and it was resumed at these steps."""
    lines = read_events(run / "metrics.jsonl")
    assert [line["step"] for line in lines if line["event"] == "resumed"] == resumed_at
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert len(files) == 5, "best weights and two checkpoints"
    for file in files:
        if "step-0000004" not in str(file):  # another cadence keeps another one before the last
            assert same_tensors(run / file, whole / file), file
    assert curve(run) == curve(whole)


def curve(run: Path) -> dict[int, tuple[float, float]]:
    """The last line of a step counts."""
    steps = [line for line in read_events(run / "metrics.jsonl") if line["event"] == "step"]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in steps}


def flip_a_bit(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_is_killed_the_others_end_and_the_run_goes_on(whole, shards, tmp_path, rank):
    words = words_for(shards, tmp_path / "run")
    ended = on_two(tmp_path, words, partial(at_step, 6, rank, partial(get, signal.SIGKILL)))
    left = 1 - rank
    assert ended.codes[rank] == -signal.SIGKILL and ended.codes[left] == 76
    assert f"process {left} has lost the others" in ended.logs[left]
    assert "Traceback" not in ended.logs[left]
    assert on_two(tmp_path, words).codes == [0, 0]
    assert_as(whole, tmp_path / "run", [4])


@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGTERM, (0, 1)), (signal.SIGUSR2, (0, 1)), (signal.SIGUSR2, (1,))],
)
def test_a_signal_to_any_process_has_all_of_them_save_and_stop_at_one_step(
    whole, shards, tmp_path, number, ranks
):
    words = words_for(shards, tmp_path / "run")
    harms = [partial(at_step, 4, rank, partial(get, number)) for rank in ranks]
    ended = on_two(tmp_path, words, *harms)
    assert ended.codes == [75, 75]
    assert "saved and stopped by " in ended.logs[0]
    assert on_two(tmp_path, words).codes == [0, 0]
    assert_as(whole, tmp_path / "run", [7])


def test_files_in_the_folder_ask_for_saving_and_for_stopping(whole, shards, tmp_path):
    run = tmp_path / "run"
    words = words_for(shards, run)
    save = partial(at_step, 0, 0, partial(Path.touch, run / "SAVE"))
    stop = partial(at_step, 3, 0, partial(Path.touch, run / "STOP"))
    keep_all = "train.keep_checkpoints=9"
    ended = on_two(tmp_path, [*words, keep_all], faults.look_often, save, stop)
    assert ended.codes == [0, 0]
    assert "stopped by the file STOP; start again to go on" in ended.logs[0]
    assert not (run / "SAVE").exists() and not (run / "STOP").exists()
    saved = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
    assert saved == [3, 4, 6]
    assert on_two(tmp_path, words).codes == [0, 0]
    assert_as(whole, run, [6])


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here (not root, or a container)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_a_line_and_the_checkpoint_before_holds(
    whole, shards, tmp_path, disk
):
    words = words_for(shards, disk / "run")
    fill = partial(at_step, 7, 0, partial(faults.fill_disk, disk / "big"))
    ended = on_two(tmp_path, words, fill, partial(faults.read_failures_late, 1, 3.0))
    assert ended.codes == [2, 2]
    assert f"{disk}/run/" in ended.logs[0] and "Traceback" not in "".join(ended.logs)
    assert "No space left on device; free some space" in ended.logs[0]
    (disk / "big").unlink()
    assert on_two(tmp_path, words).codes == [0, 0]
    assert_as(whole, disk / "run", [4])


@pytest.mark.parametrize("rank", [0, 2])
def test_what_one_process_refuses_ends_all_with_its_reason(shards, tmp_path, rank):
    words = words_for(shards, tmp_path / "run")
    late = [partial(faults.read_failures_late, other, 3.0) for other in {0, 1, 2} - {rank}]
    ended = finetune_on_ranks(
        tmp_path, [words] * 3, partial(at_step, 3, rank, faults.refuse), *late
    )
    assert ended.codes == [2, 2, 2]
    for log in ended.logs:
        assert "a planted mistake" in log and "Traceback" not in log


def test_a_folder_that_cannot_be_written_is_named(shards, tmp_path, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = on_two(tmp_path, words_for(shards, disk / "run"))
    assert ended.codes == [2, 2]
    assert f"{disk}/run cannot be written: Read-only file system" in ended.logs[0]
    assert "Traceback" not in "".join(ended.logs)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(whole, shards, tmp_path):
    run = tmp_path / "run"
    words = words_for(shards, run)
    harm = partial(at_step, 4, 1, partial(get, signal.SIGUSR2))
    assert on_two(tmp_path, words, harm).codes == [75, 75]
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    flip_a_bit(newest / "optimizer.safetensors", -1000)
    ended = on_two(tmp_path, words)
    assert ended.codes == [0, 0] and f"{newest.name} is damaged" in ended.logs[0]
    assert_as(whole, run, [4])


def test_a_process_that_hangs_while_it_reads_ends_all_with_their_stacks(shards, tmp_path):
    words = words_for(shards, tmp_path / "run", "engine.timeout_min=0.05")
    ended = on_two(tmp_path, words, partial(faults.hang_in_reading, 1))
    assert ended.codes == [76, 76]
    assert "in read" in ended.logs[1] and "in take_step" in ended.logs[0]


def test_a_process_that_hangs_in_an_exchange_ends_all_with_their_stacks(shards, tmp_path):
    words = words_for(shards, tmp_path / "run", "engine.timeout_min=0.05")
    ended = on_two(tmp_path, words, partial(at_step, 2, 1, faults.wait_for_what_never_comes))
    assert ended.codes == [76, 76]
    assert "in wait_for_what_never_comes" in ended.logs[1] and "in take_step" in ended.logs[0]


def test_a_loss_that_is_not_a_number_stops_all_and_the_records_are_listed(shards, tmp_path):
    run = tmp_path / "run"
    ended = on_two(tmp_path, words_for(shards, run), partial(faults.spoil_inputs, (2,), 1))
    assert ended.codes == [2, 2]
    report = run / "nonfinite-step-0000003.json"
    assert f"the 12 records of its batch, listed in {report}" in ended.logs[0]
    assert len({row["record"] for row in read_json(report)["batch"]}) == 12


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_so_many_bad_steps_are_skipped_and_the_next_one_stops(shards, tmp_path, parallel):
    run = tmp_path / "run"
    more = (f"engine.parallel={parallel}", "train.skip_nonfinite=2", "train.save_every=1")
    words = words_for(shards, run, *more)
    ended = on_two(tmp_path, words, partial(faults.spoil_inputs, (1, 2, 5), 1))
    assert ended.codes == [2, 2]
    assert [(line["step"], line["count"]) for line in events(run, "skipped")] == [(2, 1), (3, 2)]
    assert [path.name for path in run.glob("nonfinite-step-*6.json")]
    assert on_two(tmp_path, words).codes == [0, 0]
    assert [line["step"] for line in events(run, "resumed")] == [5]
    assert events(run, "step")[-1]["skipped"] == 2


@pytest.mark.parametrize(
    ("parallel", "part", "rank"),
    [("ddp", "output", 1), ("ddp", "gradient", 0), ("fsdp2", "output", 0)],
)
def test_a_step_that_does_not_repeat_is_refused_and_the_run_goes_on_as_if_undisturbed(
    whole, shards, tmp_path, parallel, part, rank
):
    words = words_for(
        shards, tmp_path / "run", "engine.verify_every=2", f"engine.parallel={parallel}"
    )
    harm = partial(at_step, 5, rank, partial(faults.compute_wrongly, part))
    ended = on_two(tmp_path, words, harm)
    assert ended.codes == [77, 77]
    assert "step 6 was computed twice with different results: the " + part in ended.logs[1]
    assert f"--exclude={socket.gethostname()}" in ended.logs[0]
    assert [line["step"] for line in events(tmp_path / "run", "step")][-1] == 5
    if part == "gradient":
        assert on_two(tmp_path, words).codes == [0, 0]
        assert_as(whole, tmp_path / "run", [4])


def test_a_damage_that_one_process_alone_meets_is_told_to_all(shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    opened, _ = open_shards(DataConfig(shards=str(broken)))
    for _, row in opened.index[opened.index["split"] == "train"].iterrows():
        flip_a_bit(opened.shard_path(int(row["shard"])), int(row["offset"]) + 1000)
    words = [words_for(folder, tmp_path / "run") for folder in (shards, broken)]
    ended = finetune_on_ranks(tmp_path, words)
    assert ended.codes == [2, 2]
    assert "is damaged: a record has changed since it was written" in ended.logs[1]
    assert "process 1: " in ended.logs[0] and "is damaged" in ended.logs[0]


def test_a_clock_that_jumps_changes_nothing(whole, shards, tmp_path):
    run = tmp_path / "run"
    assert on_two(tmp_path, words_for(shards, run), faults.jump_a_day_back_and_forth).codes == [
        0,
        0,
    ]
    assert_as(whole, run, [])
    seconds = [line["seconds"] for line in events(run, "step")]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] < 1000
    assert 0 < read_json(run / "finished.json")["train_seconds"] < 1000
