"""The doctor: a run that would work is found well, each thing that would go wrong is named."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, words_for
from forks import free_port
from ranks import end_on_ranks, run_on_ranks, variables_of
from safetensors.torch import load_file

from hpc_ecg.cli import main
from hpc_ecg.config.load import load_config, to_yaml
from hpc_ecg.data.dataset import DataConfig, open_shards
from hpc_ecg.distributed.ranks import Ranks
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.preflight import cluster_checks, disk_checks, doctor, training_checks
from hpc_ecg.preflight.cluster_checks import Finding, attempt, check_gpus, merged, raise_on_errors
from hpc_ecg.preflight.doctor import _open, diagnose, doctor_before_training
from hpc_ecg.preflight.training_checks import check_amplitude, check_time
from hpc_ecg.training.choose_kernels import KernelChoice
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig, TrainConfig
from hpc_ecg.training.step_result import StepResult
from hpc_ecg.version import __version__

pytestmark = pytest.mark.slow

GOOD = ["versions", "gpus", "run_dir", "data", "amplitude", "digests", "weights", "space"]
GOOD += ["folder", "clock", "ranks", "kernels", "step", "time"]


def config_of(shards, run_dir, *more) -> FinetuneConfig:
    return load_config(FinetuneConfig, [], words_for(shards, run_dir, *more))


def found(config) -> dict[str, Finding]:
    """What is not as it should be, by name."""
    return {f.name: f for f in diagnose(config) if f.level != "ok"}


def test_a_run_that_would_work_is_found_well_and_nothing_of_it_is_made(shards, tmp_path, capsys):
    assert main(["doctor", *words_for(shards, tmp_path / "run")]) == 0
    *lines, sums = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"ok      {name}" for name in GOOD]
    assert sums == f"{len(GOOD)} ok"
    assert list(tmp_path.iterdir()) == []


def test_as_json_it_says_the_same_and_the_version(shards, tmp_path, capsys):
    assert main(["doctor", "--json", *words_for(shards, tmp_path / "run")]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["hpc_ecg"] == __version__
    assert [finding["name"] for finding in written["findings"]] == GOOD
    assert {finding["level"] for finding in written["findings"]} == {"ok"}


def test_the_step_leaves_the_weights_as_they_were(shards, tmp_path):
    prepared, _ = _open(config_of(shards, tmp_path / "run", "train.freeze=none"))
    before = {name: value.clone() for name, value in prepared.start.model.state_dict().items()}
    engine = Engine(EngineConfig(device="cpu"))
    try:
        [step], seconds = training_checks.check_step(engine, prepared)
    finally:
        engine.close()
    assert step.level == "ok" and seconds > 0
    after = prepared.start.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_two_processes_find_the_same_and_the_first_one_speaks(shards, tmp_path):
    first, second = run_on_ranks(2, ["doctor", *words_for(shards, tmp_path / "run")])
    assert second == ""
    assert "rendezvous: 2 processes joined at 127.0.0.1:" in first
    assert "ranks: 2 on 1 node; all-reduce of a number in " in first
    assert f"{len(GOOD) + 1} ok" in first
    assert list(tmp_path.iterdir()) == []


def fail_in_the_step():
    training_checks.train_step = lambda *_: (_ for _ in ()).throw(ValueError("record 7 is odd"))


def have_no_digest():
    training_checks._check_shard = lambda *_: [Finding("error", "digests", "shard-000001.tar")]


@pytest.mark.slow
def test_what_one_process_lacks_is_said_by_all_at_once(shards, tmp_path):
    words = ["doctor", *words_for(shards, tmp_path / "run")]
    ended = end_on_ranks(tmp_path, [words, [*words, "engine.precision=fp16"]])
    assert ended.codes == [2, 2] and ended.logs[1] == ""
    lines = ended.logs[0].splitlines()
    assert any(line.startswith("error   hardware: engine.precision=fp16 needs") for line in lines)
    names = [line.split(":")[0] for line in lines]
    for name in ("ok      space", "ok      digests", "ok      clock", "skipped the rest"):
        assert names.count(name) == 1


@pytest.mark.slow
def test_a_damage_that_one_process_reads_is_named_once(shards, tmp_path):
    words = ["doctor", *words_for(shards, tmp_path / "run")]
    ended = end_on_ranks(tmp_path, [words, words], partial(on_rank, 1, have_no_digest))
    assert ended.codes == [2, 2] and ended.logs[1] == ""
    lines = [line for line in ended.logs[0].splitlines() if " digests: " in line]
    assert lines == ["error   digests: shard-000001.tar"]


@pytest.mark.slow
def test_a_step_that_fails_on_one_process_ends_all_with_its_reason_and_host(shards, tmp_path):
    words = ["doctor", *words_for(shards, tmp_path / "run")]
    ended = end_on_ranks(tmp_path, [words, words], partial(on_rank, 1, fail_in_the_step))
    host = socket.gethostname()
    assert ended.codes == [2, 2]
    assert f"error   engine: on {host}: step: record 7 is odd" in ended.logs[1]
    assert f"error   engine: on {host}: process 1: step: record 7 is odd" in ended.logs[0]


def on_rank(rank, harm):
    if os.environ["RANK"] == str(rank):
        harm()


@pytest.mark.slow
def test_a_process_that_cannot_join_says_all_that_it_found(shards, tmp_path, monkeypatch):
    def cannot(*_):
        raise ValueError("2 of 3 processes did not join")

    monkeypatch.setattr(doctor, "Engine", cannot)
    monkeypatch.setattr(doctor, "read_ranks", lambda _: Ranks(rank=1, world_size=3))
    monkeypatch.setattr(disk_checks, "FEW_INODES", 10**18)
    texts = [f.text for f in diagnose(config_of(shards, tmp_path / "run")) if f.name == "engine"]
    host = socket.gethostname()
    assert texts[0].startswith(f"on {host}: space: only ")
    assert texts[1:] == [f"on {host}: 2 of 3 processes did not join"]


# Each process is a node with a name and a folder of its own, another clock and another version.
OTHER_NODE = """
import sys, time
from hpc_ecg.preflight import cluster_checks, disk_checks
disk_checks.VISIBLE_WITHIN_S, cluster_checks.SLOW_GB_S = 1.0, 1e9
if sys.argv.pop(1) == "1":
    cluster_checks.__version__ = "0.0"
    ours = time.time
    time.time = lambda: ours() + 400
from hpc_ecg.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process a disk of its own")
def test_nodes_that_differ_are_named(shards, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    stream = "data.read=stream", "data.stream_lanes=3"
    words = ["doctor", *words_for(shards, place / "run", *stream)]
    script = 'hostname node$0; mount -t tmpfs none "$1"; shift; exec "$@"'
    alone = ["unshare", "--uts", "--mount", "sh", "-c", script]
    port = free_port()
    processes = [
        subprocess.Popen(
            [*alone, str(rank), str(place), sys.executable, "-c", OTHER_NODE, str(rank), *words],
            env=os.environ | variables_of(rank, 2, port),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [2, 2] and second == ""
    lines = [line for line in first.splitlines() if not line.startswith("ok ")]
    for line, part in zip(
        lines,
        (
            "error   data: data.stream_lanes=3 cannot be shared by 2 processes",
            "error   versions: they differ",
            f"error   folder: this node cannot read what another one writes in {place} (waited 1",
            "error   clock: node1 is +400",
            "warning ranks: 2 on 2 nodes; ",
            "skipped step: the data must be repaired first",
            "11 ok, 4 error, 1 warning, 1 skipped",
        ),
        strict=True,
    ):
        assert part in line
    assert "(1 of 2 nodes: node0)" in first and "(2 of 2 nodes)" in first


def test_findings_of_nodes_are_said_once_with_their_nodes(monkeypatch):
    fine, bad = Finding("ok", "gpus", "4"), Finding("error", "gpus", "none")
    everyone = [("a", [fine]), ("a", [fine]), ("b", [fine, bad]), ("c", [fine])]
    monkeypatch.setattr(cluster_checks, "exchange", lambda _: everyone)
    assert [f.text for f in merged([])] == ["4 (3 of 3 nodes)", "none (1 of 3 nodes: b)"]


def test_a_check_that_breaks_is_an_error_of_its_own():
    def broken():
        raise KeyError

    assert attempt("space", broken) == [Finding("error", "space", "KeyError")]


@pytest.mark.parametrize(
    ("device", "seen", "tasks", "slurm", "level", "part"),
    [
        ("auto", 4, 4, 4, "ok", "4 tasks and 4 GPUs"),
        ("auto", 1, 4, 4, "ok", "4 tasks and 4 GPUs"),  # --gpus-per-task=1
        ("auto", 1, 1, 4, "ok", "1 task and 1 GPU on"),  # several runs in one job
        ("auto", 2, 4, 2, "error", "each task needs its own: --ntasks-per-node=2"),
        ("auto", 1, 2, 1, "error", "each task needs its own: --ntasks-per-node=1"),
        ("auto", 4, 1, 4, "warning", "some idle: --ntasks-per-node=4"),
        ("cpu", 4, 4, 4, "warning", "which idle: engine.device=cpu"),
        ("cpu", 0, 2, 0, "ok", "2 tasks on the CPU"),
        ("auto", 0, 1, 0, "ok", "1 task on the CPU"),
        ("auto", 0, 2, 2, "error", "2 GPUs on a node, of which torch sees none"),
        ("cuda", 0, 1, 0, "error", "of which torch sees none"),
    ],
)
def test_gpus_are_held_against_tasks(monkeypatch, device, seen, tasks, slurm, level, part):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(cluster_checks, "DRIVER", Path("/no/driver"))
    for name, value in variables_of(0, tasks, port=1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", str(slurm))
    [finding] = check_gpus(EngineConfig(device=device))
    assert finding.level == level and part in finding.text


@pytest.mark.parametrize(
    ("name", "found"),
    [("10%test", "'%t'"), ("50%j", "'%j'"), ("a\\b", r"'\\'"), ("100%", ""), ("a b", "")],
)
def test_a_folder_in_which_a_submitted_job_has_no_log_is_named(tmp_path, monkeypatch, name, found):
    folder = tmp_path / name
    (folder / "slurm").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SBATCH_OUTPUT", raising=False)
    assert cluster_checks.check_logs() == [], "nothing is submitted here"
    (folder / "slurm" / "finetune.sh").touch()
    findings = cluster_checks.check_logs()
    assert [finding.level for finding in findings] == ["warning"] * bool(found)
    if found:
        assert f"{folder}: Slurm replaces {found} in paths of logs; rename" in findings[0].text
        assert "or source slurm/site.sh (from site.example.sh) before sbatch" in findings[0].text
    monkeypatch.setenv("SBATCH_OUTPUT", "/logs/%j")
    assert cluster_checks.check_logs() == []


def test_two_processes_on_one_gpu_are_named(monkeypatch):
    monkeypatch.setattr(cluster_checks, "exchange", lambda _: ["a", "b", "a", None])
    [finding] = cluster_checks.check_gpus_not_shared(torch.device("cpu"))
    assert finding.level == "error" and "ranks 0, 2 have a GPU in common" in finding.text


def test_a_job_of_several_tasks_without_srun_is_named(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    [finding] = cluster_checks.check_ranks(torch.device("cpu"))
    assert finding.level == "warning" and "the job has 4 tasks; start it with srun" in finding.text


def test_missing_shards_are_an_error_and_the_cluster_is_still_looked_at(tmp_path, capsys):
    assert main(["doctor", *words_for(tmp_path / "none", tmp_path / "run")]) == 2
    lines = capsys.readouterr().out.splitlines()
    names = {line.split(":")[0] for line in lines}
    assert {"error   data", "skipped weights", "skipped the rest"} <= names
    assert {"ok      ranks", "ok      folder", "ok      clock"} <= names


def test_a_damaged_shard_is_named_before_a_record_of_it_is_read(shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    name = json.loads((broken / "dataset.json").read_text())["shards"][-1]["name"]
    with (broken / name).open("r+b") as file:
        file.seek(600)
        byte = file.read(1)
        file.seek(600)
        file.write(bytes([byte[0] ^ 1]))
    wrong = found(config_of(broken, tmp_path / "run"))
    assert wrong.keys() == {"digests", "step"}
    assert f"{name} is damaged" in wrong["digests"].text and wrong["step"].level == "skipped"


@pytest.mark.parametrize(
    ("word", "part"),
    [
        (f"init.checkpoint={FIXTURES / 'golden_curve.json'}", "not a torch file"),
        ("init.signal.sample_rate_hz=500", "do not mean the same: sample_rate_hz: 250 in"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(shards, tmp_path, word, part):
    wrong = found(config_of(shards, tmp_path / "run", word))
    assert wrong.keys() == {"weights", "the rest"}
    assert wrong["weights"].level == "error" and part in wrong["weights"].text


@pytest.mark.parametrize(
    ("times", "level", "part"),
    [
        (1, "ok", "as expected"),
        (1000, "error", "µV taken for mV"),
        (0.001, "error", "V taken for mV"),
        (4.88, "warning", "mended by × 0.205"),
    ],
)
def test_an_amplitude_that_is_not_in_millivolts_is_named(shards, times, level, part):
    opened, _ = open_shards(DataConfig(shards=str(shards)))
    index = opened.index.assign(amplitude_mv=opened.index["amplitude_mv"] * times)
    [finding] = check_amplitude(replace(opened, index=index))
    assert finding.level == level and part in finding.text


@pytest.fixture
def tiny_disk(tmp_path, monkeypatch):
    """A folder with 1 MB and few files left."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M,nr_inodes=50", "none", str(place)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        yield place
        subprocess.run(["umount", str(place)], check=True)
    else:
        usage, disk = type(shutil.disk_usage("/")), os.statvfs("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 10**6))
        few = type("Disk", (), {"f_files": disk.f_files or 50, "f_favail": 49})
        monkeypatch.setattr(os, "statvfs", lambda _: few)
        yield place


def test_a_full_disk_is_an_error_unless_old_checkpoints_make_room(tiny_disk):
    train = TrainConfig(keep_checkpoints=2)
    [finding] = disk_checks.check_space(tiny_disk / "run", train, 400_000)
    assert finding.level == "error" and "for 2 + 1 checkpoints of 1.2 MB; make room" in finding.text
    [finding] = disk_checks.check_space(tiny_disk / "run", train, 40_000)
    assert finding.level == "error" and "more files can be made" in finding.text


def test_checkpoints_that_will_be_replaced_count_as_space(tmp_path, monkeypatch):
    usage = type(shutil.disk_usage("/"))(10**6, 0, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    train = TrainConfig(keep_checkpoints=2)
    assert disk_checks.check_space(tmp_path, train, 200_000)[0].level == "error"
    (tmp_path / "model.safetensors").write_bytes(bytes(1_100_000))
    assert disk_checks.check_space(tmp_path, train, 200_000)[0].level == "ok"
    ema = TrainConfig(keep_checkpoints=2, average="ema")
    assert disk_checks.check_space(tmp_path, ema, 200_000)[0].level == "error"


def test_a_place_that_cannot_be_written_is_an_error():
    [finding] = disk_checks.check_folder(Path("/proc/run"), rank=0)
    assert finding.level == "error" and finding.text.startswith("this node cannot write /proc: ")


@pytest.mark.parametrize(("seconds", "level"), [(0, "ok"), (100, "warning"), (-1000, "error")])
def test_a_clock_that_the_disk_does_not_share_is_named(tmp_path, monkeypatch, seconds, level):
    ours = time.time
    monkeypatch.setattr(time, "time", lambda: ours() + seconds)
    [finding] = disk_checks.check_clocks(tmp_path / "run", rank=0)
    assert finding.level == level
    if level != "ok":
        [skew_s] = re.findall(r"the disk of run_dir is ([+-]\d+\.\d) s from", finding.text)
        assert float(skew_s) == pytest.approx(-seconds, abs=5)  # a busy disk answers late
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "level"),
    [("data.stage_quota_gb=10", "ok"), ("data.stage_quota_gb=0.0001", "warning")],
)
def test_a_stage_that_is_too_small_is_named(shards, tmp_path, word, level):
    config = config_of(shards, tmp_path / "run", f"data.stage_dir={tmp_path}", word)
    opened, _ = open_shards(config.data)
    [finding] = disk_checks.check_stage_dir(config.data, opened)
    assert finding.level == level


def test_a_stage_that_is_nowhere_is_an_error(shards, tmp_path):
    wrong = found(config_of(shards, tmp_path / "run", "data.stage_dir=$NOT_SET_HERE"))
    assert (
        wrong.keys() == {"stage"} and "that variable is not set on this node" in wrong["stage"].text
    )


def test_a_folder_of_another_run_is_an_error(shards, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    other = to_yaml(config_of(shards, run_dir, "optim.lr=0.5"))
    (run_dir / "config.yaml").write_text(other)
    wrong = found(config_of(shards, run_dir))
    assert wrong.keys() == {"run_dir"} and "optim.lr: 0.5 there" in wrong["run_dir"].text
    (run_dir / "finished.json").write_text('{"steps": 1}')
    wrong = found(config_of(shards, run_dir, "optim.lr=0.5"))
    assert wrong["run_dir"].level == "warning" and "nothing would be done" in wrong["run_dir"].text


def test_a_wish_that_the_engine_cannot_meet_ends_the_rounds(shards, tmp_path):
    config = config_of(shards, tmp_path / "run", "engine.precision=fp16", "engine.device=cpu")
    wrong = found(config)
    assert wrong.keys() == {"hardware", "the rest"}
    assert "engine.precision=fp16 needs a GPU" in wrong["hardware"].text


def test_a_step_that_takes_too_much_memory_says_what_to_do(shards, tmp_path, monkeypatch):
    def take_step(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to\nmany lines")

    monkeypatch.setattr(Engine, "take_step", take_step)
    wrong = found(config_of(shards, tmp_path / "run"))
    assert wrong.keys() == {"step"} and wrong["step"].level == "error"
    assert "you tried to; lower engine.micro_batch_size" in wrong["step"].text
    prepared, _ = _open(config_of(shards, tmp_path / "run"))
    engine = Engine(EngineConfig(device="cpu"))
    engine.world_size = 2  # who cannot tell the others must not wait for them
    try:
        with pytest.raises(ValueError, match=r"^step: .* lower engine\.micro"):
            training_checks.check_step(engine, prepared)
    finally:
        engine.close()


@pytest.mark.parametrize(("compile_as", "steps"), [("eager", 1), ("compiled", 2)])
def test_a_step_that_compiles_is_not_the_one_that_is_timed(
    shards, tmp_path, monkeypatch, compile_as, steps
):
    prepared, _ = _open(config_of(shards, tmp_path / "run"))
    taken = []

    def train_step(*_):
        taken.append(1)
        return StepResult(torch.zeros(4), torch.zeros(()), False)

    monkeypatch.setattr(training_checks, "train_step", train_step)
    monkeypatch.setattr(training_checks, "ENOUGH_S", 0.0)
    engine = Engine(EngineConfig(device="cpu"))
    engine.kernels = KernelChoice(kernels={"compile": compile_as})
    try:
        training_checks.check_step(engine, prepared)
    finally:
        engine.close()
    assert len(taken) == steps


@pytest.mark.parametrize(("every", "seconds"), [("null", 3.0), ("2", 4.5)])
def test_steps_that_are_computed_twice_count_in_the_time(
    shards, tmp_path, monkeypatch, every, seconds
):
    asked = []
    monkeypatch.setattr(training_checks, "check_step", lambda *_: ([], 3.0))
    monkeypatch.setattr(training_checks, "check_time", lambda _, s: asked.append(s) or [])
    found(config_of(shards, tmp_path / "run", f"engine.verify_every={every}"))
    assert asked == [seconds]


def test_a_step_that_nearly_fills_the_memory_is_a_warning(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(training_checks, "memory_gb", lambda: 1e5)
    wrong = found(config_of(shards, tmp_path / "run"))
    assert wrong.keys() == {"step"} and wrong["step"].level == "warning"


def test_weights_that_give_no_number_are_an_error(shards, tmp_path):
    prepared, _ = _open(config_of(shards, tmp_path / "run"))
    with torch.no_grad():
        prepared.start.model.head.bias.fill_(float("nan"))
    engine = Engine(EngineConfig(device="cpu"))
    try:
        [finding], seconds = training_checks.check_step(engine, prepared)
    finally:
        engine.close()
    assert finding.level == "error" and "is not finite" in finding.text and seconds is None


def test_the_time_of_a_run_is_held_against_that_of_the_job(shards, tmp_path, monkeypatch):
    config = config_of(shards, tmp_path / "run", "train.max_epochs=100")
    prepared, _ = _open(config)
    epoch = prepared.data.sampler.steps_per_epoch
    validation_s = 9 / 3 * len(prepared.data.valid) / 12
    seconds = 100 * epoch * 9 + 101 * validation_s
    [finding] = check_time(prepared, 9.0)
    hours, minutes, rest = finding.text.split(" about ")[1].split(" h")[0].split(":")
    assert finding.level == "ok" and f"{100 * epoch} steps" in finding.text
    assert 3600 * int(hours) + 60 * int(minutes) + int(rest) == pytest.approx(seconds, abs=1)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 60))
    [finding] = check_time(prepared, 9.0)
    assert finding.level == "warning" and "this job ends in 0:01:00 h" in finding.text


def test_a_frozen_backbone_runs_once_however_long_the_head_trains(shards, tmp_path):
    probe = ("train.freeze=backbone", "train.max_epochs=1000")
    prepared, _ = _open(config_of(shards, tmp_path / "run", *probe))
    assert "0:00:" in check_time(prepared, 3.0)[0].text


def test_errors_stop_a_run_and_are_logged_once(caplog):
    findings = [Finding("ok", "a", "1"), Finding("error", "b", "2"), Finding("error", "c", "3")]
    with caplog.at_level(logging.INFO, "hpc_ecg"):
        raise_on_errors(findings[:1], is_rank_zero=True)
        with pytest.raises(ValueError, match="the doctor found 2 errors"):
            raise_on_errors(findings, is_rank_zero=False)
        assert caplog.messages == ["ok      a: 1"]
        with pytest.raises(ValueError, match="the doctor found 2 errors"):
            raise_on_errors(findings, is_rank_zero=True)
    assert caplog.messages[1:] == [str(finding) for finding in findings]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_run_with_the_doctor_is_the_run_without_to_the_bit(shards, tmp_path, caplog, parallel):
    words = (f"engine.parallel={parallel}", "train.freeze=none", "train.max_epochs=1")
    plain = finetune(config_of(shards, tmp_path / "plain", *words))
    assert not [m for m in caplog.messages if " step: " in m]
    caplog.set_level(logging.INFO, "hpc_ecg")
    config = config_of(shards, tmp_path / "seen", *words, "train.doctor=true")
    seen = finetune(config, before_training=doctor_before_training(config))
    assert [m for m in caplog.messages if m.startswith("ok      step: ")]
    ours, theirs = (load_file(f.best / "model.safetensors") for f in (plain, seen))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    files = [{p.relative_to(f.path) for p in f.path.rglob("*")} for f in (plain, seen)]
    assert files[0] == files[1]


def test_an_error_of_the_doctor_stops_a_run_before_it_is_one(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_checks, "FEW_INODES", 10**18)
    config = config_of(shards, tmp_path / "run", "train.doctor=true")
    with pytest.raises(ValueError, match="the doctor found 1 error"):
        finetune(config, before_training=doctor_before_training(config))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        (
            "535.154.05",
            "13.0",
            "driver 535.154, but torch's CUDA 13.0 needs 580 or newer; install "
            "torch for CUDA 12 (make install TORCH_INDEX=…) or a newer driver",
        ),
        ("390.48", "12.6", "needs 525 or newer; install a newer driver"),
        ("580.65.06", "13.0", ""),
        ("525.60.13", "12.8", ""),
        ("", "13.0", ""),
        ("535.154.05", "", ""),
    ],
)
def test_a_driver_that_is_too_old_for_torch_is_named_with_what_it_can_run(driver, cuda, said):
    findings = cluster_checks.check_driver(driver, cuda)
    assert [f.level for f in findings] == ["error"] * bool(said)
    assert said in "".join(f.text for f in findings)
