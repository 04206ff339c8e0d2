"""What the package asks of the machine: which GPU, its memory and energy, who shares it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import words_for
from gpu_runs import SLOWLY, config_of, curve, events, held_bytes, needs_cuda, start
from ranks import run_on_ranks

import hpc_ecg
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.jobs.job import Job
from hpc_ecg.jobs.local_jobs import run_locally
from hpc_ecg.model.flops import peak_flops
from hpc_ecg.preflight.cluster_checks import check_gpus, check_gpus_not_shared, check_ranks
from hpc_ecg.preflight.devices import card_name
from hpc_ecg.preflight.doctor import diagnose
from hpc_ecg.safe_reading import read_json
from hpc_ecg.sweep.dry_run import _gpu_of
from hpc_ecg.sweep.local_runs import visible_gpus
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.meter import gpu_kwh, memory_gb

pytestmark = pytest.mark.gpu


# Memory that is given back


KEPT = "DeepSpeed keeps a model for ever: in FWD_MODULE_STACK and in caches of its coordinator"
ZERO3 = pytest.param("zero3", marks=pytest.mark.xfail(reason=KEPT))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero2", ZERO3])
def test_a_run_gives_its_memory_back(gpu, shards, tmp_path, kind):
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    words = (f"engine.parallel={kind}", "train.max_steps=2", "engine.precision=bf16")
    start(shards, tmp_path / "first", gpu, *words)  # libraries keep what they take at first
    before = held_bytes(gpu)
    start(shards, tmp_path / "second", gpu, *words)
    assert held_bytes(gpu) <= before


def test_a_run_that_fails_gives_its_memory_back(gpu, shards, tmp_path, monkeypatch):
    words = ("train.max_steps=2", "engine.precision=bf16")
    start(shards, tmp_path / "first", gpu, *words)
    before = held_bytes(gpu)
    monkeypatch.setattr(Engine, "take_step", lambda *_, **__: torch.zeros(3)[9])
    with pytest.raises(IndexError):
        start(shards, tmp_path / "second", gpu, *words)
    assert held_bytes(gpu) <= before


def test_a_predictor_gives_its_memory_back_when_closed(gpu, cohort, shards, tmp_path):
    folder = start(shards, tmp_path / "run", gpu, "train.max_steps=2")
    names = sorted((cohort.parent / "records").glob("*.hea"))[:2]
    held = []
    for _ in range(2):
        with hpc_ecg.load_predictor(folder.path) as model:
            model.predict(names)
        del model
        held.append(held_bytes(gpu))
    assert held[1] <= held[0]


# The meter


@pytest.fixture(scope="module")
def run(gpu, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return start(shards, folder, gpu, "engine.precision=bf16", SLOWLY)


def test_memory_is_the_peak_of_the_device(gpu, run):
    logged = [line["memory_gb"] for line in events(run, "step")]
    assert logged == sorted(logged) and 0 < logged[-1] <= memory_gb()
    if gpu.type == "cuda":
        assert memory_gb() == torch.cuda.max_memory_allocated() / 2**30
        assert memory_gb() < torch.cuda.get_device_properties(gpu).total_memory / 2**30


def test_a_run_names_its_card_and_logs_mfu_if_that_is_known(gpu, run):
    name = torch.cuda.get_device_name(gpu) if gpu.type == "cuda" else "CPU"
    assert read_json(run.finished)["device"] == events(run, "started")[0]["device"] == name
    peak = peak_flops(name, "bf16")
    for line in events(run, "step"):
        assert line["tflops_per_s"] > 0
        assert ("mfu" in line) == (peak is not None), f"add {name} to hpc_ecg/model/flops.py"
        if peak:
            assert line["mfu"] == pytest.approx(line["tflops_per_s"] * 1e12 / peak)
            assert 0 < line["mfu"] < 1


def test_energy_is_counted_where_nvml_is(gpu, run):
    needs_cuda(gpu, "a CPU has no counter of energy")
    now = gpu_kwh(gpu)
    if now is None:
        pytest.skip("NVML (nvidia-ml-py) is not installed, or does not answer here")
    (torch.randn(4096, 4096, device=gpu) @ torch.randn(4096, 4096, device=gpu)).sum().item()
    assert gpu_kwh(gpu) >= now > 0
    assert read_json(run.finished)["energy_kwh"] >= 0


# The doctor


def test_the_doctor_finds_a_run_well(gpu, shards, tmp_path):
    findings = {f.name: f for f in diagnose(config_of(shards, tmp_path / "run", gpu))}
    wrong = [str(f) for f in findings.values() if f.level not in ("ok", "warning")]
    assert not wrong and {"gpus", "kernels", "step", "time"} <= findings.keys()
    assert "kernels in" in findings["kernels"].text and f"on {gpu.type} in" in str(findings)
    if gpu.type == "cuda":
        total = torch.cuda.get_device_properties(gpu).total_memory / 2**30
        assert f"of {total:.0f} GB for a process" in findings["step"].text
        assert f"CUDA {torch.version.cuda}" in findings["versions"].text


def test_the_doctor_counts_gpus(gpu):
    needs_cuda(gpu, "there is none to count")
    count = torch.cuda.device_count()
    (found,) = check_gpus(EngineConfig(device="cuda"))
    assert found.level == ("ok" if count == 1 else "warning")
    assert f"1 task and {count} GPU" in found.text
    (idle,) = check_gpus(EngineConfig(device="cpu"))
    assert idle.level == "warning" and "which idle: engine.device=cpu" in idle.text


def test_one_process_shares_its_gpu_with_nobody(gpu):
    assert check_gpus_not_shared(gpu) == []
    assert check_ranks(gpu)[0].text == "a single process"


# Which GPU


@pytest.mark.parametrize(("variable", "expected"), [("2,5", [2, 5]), ("", []), (None, None)])
def test_a_sweep_deals_the_gpus_that_it_may_use(monkeypatch, gpu, variable, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    everything = list(range(torch.cuda.device_count()))
    assert visible_gpus() == (everything if expected is None else expected)


def test_a_dry_run_plans_for_this_card_if_its_data_sheet_is_known(gpu):
    name = torch.cuda.get_device_name(gpu) if gpu.type == "cuda" else "CPU"
    assert card_name(_gpu_of(None)) == (card_name(name) or "H100")


def note_gpus(path: str) -> None:
    engine = Engine(EngineConfig(device="auto"))
    seen = os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.device_count(), engine.device.type
    engine.close()
    Path(path).write_text(" ".join(map(str, seen)))


def test_a_job_of_a_sweep_sees_its_gpu_alone(gpu, tmp_path):
    job = Job(name="a", function=note_gpus, arguments=(str(tmp_path / "seen"),))
    (outcome,) = run_locally([job], tmp_path / "jobs", 1, timeout_min=2, gpus=[0])
    assert outcome.error is None
    on_gpu = gpu.type == "cuda"
    assert (tmp_path / "seen").read_text() == f"0 {int(on_gpu)} {gpu.type}"


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero2"])
def test_two_gpus_over_nccl_have_the_curve_of_one(gpu, shards, tmp_path, kind):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs for NCCL, found {torch.cuda.device_count()}")
    words = (SLOWLY, "engine.precision=fp32", f"engine.parallel={kind}", "engine.device=cuda")
    one = start(shards, tmp_path / "one", gpu, *words)
    run_on_ranks(2, ["finetune", *words_for(shards, tmp_path / "two", *words)])
    two = type(one)(tmp_path / "two")
    assert read_json(two.finished)["processes"] == 2
    np.testing.assert_allclose(curve(two), curve(one), rtol=1e-3)
