"""The plan: memory and traffic against torch, seconds against hand-computed ones, lines and errors
as a user meets them."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY, words_for
from test_sweep import words_of_sweep

from hpc_ecg.cli import main
from hpc_ecg.config.load import load_config
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.flops import PEAKS
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model, build_on_meta
from hpc_ecg.preflight import plan
from hpc_ecg.preflight.cluster_checks import advise_interface
from hpc_ecg.preflight.devices import card_name, cpu_device, device_of, with_convolution
from hpc_ecg.preflight.footprint import (
    Workload,
    kept_bytes,
    largest_micro_batch,
    memory_gb,
    part_parameters,
    traffic_bytes,
)
from hpc_ecg.preflight.step_time import (
    Network,
    all_reduce_s,
    compute_s,
    factor_of,
    read_measured,
    step_s,
)
from hpc_ecg.sweep.dry_run import _gpu_of, best_shape, describe_launch
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.prepare import prepare_run
from hpc_ecg.training.settings import FinetuneConfig, OptimConfig

FULL = "configs/finetune.yaml"
RECORDS = ("--records", "469197,68545")
MIDDLE = replace(
    TINY,
    encoder_layers=3,
    encoder_embed_dim=96,
    encoder_ffn_embed_dim=200,
    encoder_attention_heads=4,
)


def work_of(sizes=None, engine=None, device=None, model=None, **more):
    device = device or device_of("h100")
    parts = (
        sizes or Architecture(),
        2500,
        1,
        model or ModelConfig(),
        engine or EngineConfig(),
        device,
    )
    return Workload(*parts, **more)


def saved_bytes(work, num_records):
    """What torch keeps for the backward pass, on this CPU."""
    model = build_model(work.sizes, 1, work.model).train()
    model.freeze(work.freeze, work.freeze_layers)
    model.backbone.encoder.checkpoint_layers = work.engine.activation_checkpointing
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=work.device.precision == "bf16"):
            logits = model(torch.randn(num_records, 12, 2500), None, torch.arange(num_records))
        _sum = logits.sum()
    return sum(kept.values())


# Memory


@pytest.mark.parametrize("sizes", [Architecture(), TINY, MIDDLE])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_the_parameters_are_those_of_the_model(sizes, num_labels):
    built = build_on_meta(sizes, num_labels)
    assert sum(part_parameters(sizes, num_labels)) == sum(p.numel() for p in built.parameters())
    for part, layers in (("none", 0), ("stem", 0), ("backbone", 0), ("stem", 1)):
        built.freeze(part, layers)
        trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
        work = work_of(sizes, freeze=part, freeze_layers=layers)
        assert sum(part_parameters(sizes, num_labels)[work.lowest :]) == trained


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("freeze", "checkpointing", "settings"),
    [
        ("none", False, {}),
        ("stem", False, {}),
        ("stem", True, {}),
        ("stem", False, {"attention": "math"}),
        ("stem", False, {"attention_dropout": 0.1}),
        ("none", True, {"activation_dropout": 0.0}),
    ],
)
def test_what_is_kept_is_what_torch_saves_within_two_percent(
    precision, freeze, checkpointing, settings
):
    engine = EngineConfig(activation_checkpointing=checkpointing)
    device, model = cpu_device(precision, 1e11, 1e11), ModelConfig(**settings)
    work = work_of(MIDDLE, engine, device, model, freeze=freeze)
    measured = (saved_bytes(work, 4) - saved_bytes(work, 2)) / 2
    assert kept_bytes(work) == pytest.approx(measured, rel=0.02)


def test_weights_gradients_and_moments_are_those_of_torch():
    model = build_model(MIDDLE, 1, ModelConfig()).train()
    optimizer = build_optimizer(model, OptimConfig(), torch.device("cpu"))
    model(torch.randn(2, 12, 2500)).sum().backward()
    optimizer.step()
    state = [v for values in optimizer.state.values() for v in values.values() if v.ndim]
    parts = memory_gb(work_of(MIDDLE, device=cpu_device("fp32", 1e11, 1e11)), 1, 0)
    assert parts["weights"] * 1e9 == sum(p.nbytes for p in model.parameters())
    assert parts["gradients"] * 1e9 == sum(p.grad.nbytes for p in model.parameters())
    assert parts["moments"] * 1e9 == sum(v.nbytes for v in state)


@pytest.mark.parametrize(
    ("parallel", "weights", "gradients", "moments"),
    [
        ("ddp", 4, 4 + 4, 8),
        ("zero1", 4 + 1, 4, 2),
        ("zero2", 4 + 1, 1, 2),
        ("zero3", 1 + 1, 1, 2),
        ("fsdp2", 1, 1, 2),
    ],
)
def test_four_processes_share_out_what_the_backend_says(parallel, weights, gradients, moments):
    parts = part_parameters(MIDDLE)
    work = work_of(MIDDLE, EngineConfig(parallel=parallel), cpu_device("fp32", 1e11, 1e11))
    gb = memory_gb(work, 4, 0)
    gathered = 8 * parts[2] if parallel in ("zero3", "fsdp2") else 0
    assert gb["weights"] * 1e9 == pytest.approx(weights * sum(parts) + gathered)
    assert gb["gradients"] * 1e9 == pytest.approx(gradients * sum(parts))
    assert gb["moments"] * 1e9 == pytest.approx(moments * sum(parts))


def test_the_largest_micro_batch_just_fits():
    for engine in (EngineConfig(), EngineConfig(activation_checkpointing=True)):
        work = work_of(engine=engine, device=device_of("t4", "fp16"))
        most = largest_micro_batch(work, 1)
        fits = [sum(memory_gb(work, 1, n).values()) <= 0.9 * 16 for n in (most, most + 1)]
        assert fits == [True, False] and most > 50
    assert largest_micro_batch(work, 1) > largest_micro_batch(
        work._replace(engine=EngineConfig()), 1
    )
    assert largest_micro_batch(work._replace(device=work.device._replace(memory_gb=1)), 1) == 0


# Time


def test_a_step_is_products_and_traffic_at_the_rates_and_adam():
    device = cpu_device("fp32", 1e11, 1e11)._replace(bytes_per_s=1e10, adam_bytes_per_s=1e9)
    work = work_of(MIDDLE, device=device, freeze="stem")
    trained = sum(part_parameters(MIDDLE)[1:])
    records_s = 8 * (work.flops() / 1e11 + traffic_bytes(work) / 1e10)
    assert compute_s(work, 8) == pytest.approx(records_s + (36 + 12) * trained / 1e9)
    halves = work._replace(engine=EngineConfig(micro_batch_size=4))
    assert compute_s(halves, 8) == pytest.approx(records_s + (36 + 2 * 12) * trained / 1e9)
    assert traffic_bytes(work, backward=False) < traffic_bytes(work)


def test_bf16_on_a_cpu_speeds_up_products_and_casts_weights_but_moves_as_much():
    half = cpu_device("bf16", 4e11, 1e11)
    works = [work_of(MIDDLE, device=d) for d in (half, cpu_device("fp32", 1e11, 1e11))]
    assert traffic_bytes(works[0]) == traffic_bytes(works[1])
    below = works[0]._replace(sizes=replace(MIDDLE, encoder_layers=0)).flops()
    assert 0 < below < works[0].flops()
    slow = works[0]._replace(device=half._replace(conv_flops_per_s=1e11))
    assert slow.products_s() - works[0].products_s() == pytest.approx(below * (1e-11 - 2.5e-12))
    cast = 6 * sum(part_parameters(MIDDLE)) / half.adam_bytes_per_s
    saved = 8 * (works[1].products_s() - works[0].products_s())
    assert compute_s(works[1], 8) - compute_s(works[0], 8) == pytest.approx(saved - cast)


def test_what_convolutions_gain_by_bf16_is_measured_on_a_cpu_alone():
    half = cpu_device("bf16", 4e11, 1e11)
    small = replace(MIDDLE, encoder_embed_dim=64)
    assert with_convolution(half, small).conv_flops_per_s > 0
    assert with_convolution(half, small)._replace(conv_flops_per_s=4e11) == half
    for device in (cpu_device("fp32", 1e11, 1e11), device_of("h100", "bf16")):
        assert with_convolution(device, small) is device


def test_a_gpu_is_not_faster_than_it_starts_kernels():
    work = work_of(TINY)
    floor = 110 * (TINY.encoder_layers + 1) * 6e-6
    assert floor <= compute_s(work, 1) < 1.1 * floor
    halved = work._replace(engine=EngineConfig(micro_batch_size=1))
    assert 2 * floor <= compute_s(halved, 2) < 2.1 * floor


def test_an_all_reduce_by_hand():
    network = Network(gbit=80, gpus_per_node=4, link_gb_s=100, latency_us=10)
    assert all_reduce_s(1e9, 1, network) == 0
    assert all_reduce_s(1e9, 4, network) == pytest.approx(2 * 3 / 4 / 80 + 6e-5)  # at 80 GB/s
    ring = 2 * 7 / 8 / 8 + 14e-5  # 80 Gbit/s are 10 GB/s, of which 8 are reached
    assert all_reduce_s(1e9, 8, network) == pytest.approx(ring)
    assert all_reduce_s(1e3, 512, network) == pytest.approx(2 * 1e3 / 8e9 + 2 * 9 * 1e-5)


def test_a_step_waits_for_what_outlasts_the_backward_pass_and_at_least_for_the_last_bucket():
    work, inside = work_of(), Network(100, 8, 450)
    alone = step_s(work, 1, 128, inside)
    assert alone == compute_s(work, 128)
    last = all_reduce_s(25 * 2**20, 8, inside)
    assert step_s(work, 8, 128, inside) == pytest.approx(alone + last)
    slow = Network(1, 8, 450)
    sent = all_reduce_s(4 * sum(part_parameters(work.sizes)), 16, slow)
    assert step_s(work, 16, 128, slow) == pytest.approx(alone / 3 + sent)
    sharded = work._replace(engine=EngineConfig(parallel="fsdp2"))
    assert step_s(sharded, 16, 128, slow) == pytest.approx(alone / 3 + 1.5 * sent, rel=1e-3)


@pytest.mark.parametrize(
    ("gb_s", "advice"),
    [
        (0.5, ", far below the 100 Gbit/s of ib0: set NCCL_SOCKET_IFNAME=ib0 and GLOO_SOCKET_"),
        (4.0, ""),
    ],
)
def test_a_slow_all_reduce_names_the_fastest_interface(tmp_path, gb_s, advice):
    speeds = {"eth0": "1000", "ib0": "100000", "down": "-1", "odd": "x", "veth1": "400000"}
    for name, speed in (speeds | {"eth2": "400000", "bond0": "2000"}).items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "speed").write_text(f"{speed}\n")
        kind = {"veth1": "ifalias", "bond0": "bonding"}.get(
            name, "device"
        )  # a container's has none
        (tmp_path / name / kind).mkdir()
    (tmp_path / "eth2" / "master").mkdir()  # a part of bond0, without an address
    assert advise_interface(gb_s, tmp_path).startswith(advice)
    assert bool(advise_interface(gb_s, tmp_path)) == bool(advice)
    assert advise_interface(0.01, tmp_path / "nowhere") == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100", "H100"),
        ("H100 pcie", "H100 PCIe"),
        ("a6000", "RTX A6000"),
        ("RTX_4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("cpu", "CPU"),
        ("CPU", "CPU"),
        ("h1000", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_a_card_is_known_by_the_names_that_people_and_torch_use(text, name):
    assert card_name(text) == name


def test_every_card_has_a_precision_and_sizes_that_make_sense():
    for name in PEAKS:
        device = device_of(name)
        assert device.name == name and 16 <= device.memory_gb < 300 and 70 <= device.watts <= 1200
        assert device.flops_per_s < 1e12 * max(PEAKS[name][:2])


# Measured steps


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    words = words_for(shards, tmp_path_factory.mktemp("plan") / "run", "train.max_epochs=2")
    config = load_config(FinetuneConfig, [], [*words, "train.log_every=1"])
    finetune(config)
    return config


def test_the_plan_starts_from_a_finished_run(run, capsys):
    measured = read_measured(run.run_dir)
    planned = plan.open_planned(run, plan.PlanConfig(measured=run.run_dir))
    assert planned.step_s(1) == pytest.approx(measured["seconds"])
    assert measured["records"] == run.data.batch_size and measured["processes"] == 1
    assert main(["plan", f"{run.run_dir}/config.yaml", "--measured", run.run_dir]) == 0
    printed = capsys.readouterr().out
    assert "a step from a measured one, " in printed and "x the formula" in printed
    assert f"{1000 * measured['seconds']:.0f} ms" in printed


def test_what_was_planned_stands_beside_what_it_took(run, capsys, tmp_path):
    file = plan.Path(run.run_dir) / "plan.json"
    file.write_text(json.dumps({"step_s": 2 * read_measured(run.run_dir)["seconds"]}))
    assert main(["plan", f"{run.run_dir}/config.yaml"]) == 0
    assert "s: 100.0 % off" in capsys.readouterr().out
    file.unlink()


def test_a_run_on_a_known_gpu_keeps_its_plan(shards, tmp_path):
    class Engine:
        is_rank_zero, world_size, precision = True, 1, "bf16"
        device_name = "NVIDIA H100 80GB HBM3"

    config = load_config(FinetuneConfig, [], words_for(shards, tmp_path / "run"))
    prepared = prepare_run(config)
    plan.keep_plan(Engine(), prepared)
    kept = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert kept["device"] == "H100" and kept["step_s"] > 0
    asked = plan.PlanConfig(gpu="h100")
    assert kept["step_s"] == pytest.approx(plan.open_planned(config, asked).step_s(1))
    finetune(config)  # a folder that holds a plan alone is new
    Engine.device_name = "unknown"
    plan.keep_plan(Engine(), prepared)
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == kept


@pytest.mark.parametrize("name", ["unknown", "CPU", "Tesla V100-SXM2-32GB", "Tesla T4"])
def test_a_run_without_a_plan_is_not_refused(shards, tmp_path, name):
    """torch emulates bf16 on cards before Ampere, and takes it there by default."""

    class Engine:
        is_rank_zero, world_size, precision, device_name = True, 1, "bf16", name

    config = load_config(FinetuneConfig, [], words_for(shards, tmp_path / "run"))
    plan.keep_plan(Engine(), prepare_run(config))
    assert not (tmp_path / "run" / "plan.json").exists()


def test_the_doctor_prints_a_step_that_a_plan_starts_from(shards, tmp_path, capsys):
    words = words_for(shards, tmp_path / "run")
    assert main(["doctor", "--json", *words]) == 0
    file = tmp_path / "doctor.json"
    file.write_text(capsys.readouterr().out)
    assert read_measured(str(file))["device"] == "CPU"
    assert main(["plan", *words, "--measured", str(file)]) == 0
    assert "a step from a measured one" in capsys.readouterr().out


def test_a_step_in_a_json_file_is_read_and_a_damaged_one_is_refused(tmp_path):
    file, network = tmp_path / "gpu-check.json", Network(100, 8, 450)
    step = {"seconds": 0.04, "records": 128, "processes": 1, "precision": "bf16"}
    step |= {"device": "NVIDIA H100 80GB HBM3", "flops_per_ecg": work_of().flops()}
    file.write_text(json.dumps({"kind": "hpc_ecg gpu-check", "step": step}))
    factor = factor_of(read_measured(str(file)), work_of(), network)
    assert factor == pytest.approx(0.04 / compute_s(work_of(), 128))
    wrong = ["x", None, True, [], {}, 0, -1, 1e300, 1e-320]
    edited = [{"step": step | {name: value}} for name in step for value in wrong]
    edited = [e for e in edited if e["step"]["device"] != "x" and e["step"]["precision"] != "x"]
    for content in (*edited, {"step": {}}, {"step": 1}, {}, []):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="gpu-check"):
            read_measured(str(file))
    with pytest.raises(ValueError, match="a step of H100, bf16, not A100, bf16"):
        factor_of(step, work_of(device=device_of("a100")), network)
    with pytest.raises(ValueError, match="another model, input or frozen part"):
        factor_of(step, work_of(freeze="backbone"), network)


BAD = ["x", None, [], {}, 0, -1, 1e300]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *[("step", name) for name in ("step_s_p50", "tflops_per_s", "ecg_per_s")],
        *[("started", name) for name in ("processes", "device", "precision")],
    ],
)
def test_a_run_whose_log_was_edited_is_refused_as_a_measured_one(tmp_path, kind, name):
    lines = [
        {"event": "started", "processes": 2, "device": "CPU", "precision": "fp32"},
        {"event": "step", "step_s_p50": 0.5, "tflops_per_s": 0.1, "ecg_per_s": 24.0},
    ]
    (tmp_path / "finished.json").write_text(json.dumps({"steps": 1}))
    (tmp_path / "config.yaml").write_text("data: {batch_size: 12}\n")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join(map(json.dumps, lines)))
    assert read_measured(str(tmp_path))["records"] == 6
    place = ("started", "step").index(kind)
    for bad in BAD[1 if name in ("device", "precision") else 0 :]:
        changed = [*lines[:place], lines[place] | {name: bad}, *lines[place + 1 :]]
        metrics.write_text("\n".join(map(json.dumps, changed)))
        with pytest.raises(ValueError, match=rf"{name} cannot be|no finished run that logged"):
            read_measured(str(tmp_path))
    for text in ("3", "[1]", "null", json.dumps(lines[1])):
        metrics.write_text(text)
        with pytest.raises(ValueError, match=r"metrics.jsonl is damaged"):
            read_measured(str(tmp_path))


# The command


@pytest.mark.parametrize(
    "words", [["--records", "1000000000000,1"], [*RECORDS, "train.max_steps=1000000000"]]
)
def test_years_do_not_run_into_the_next_column(words, capsys):
    assert main(["plan", FULL, "--gpu", "h100", *words, "init.checkpoint=random"]) == 0
    head, row = capsys.readouterr().out.splitlines()[4:6]
    assert len(row.replace(" ms", "ms").split()) == len(head.split()) == 10
    assert int(row.split()[6].partition(":")[0]) > 10_000, "hours of the run"


def test_steps_that_are_verified_cost_time(capsys):
    def hours(*words):
        records = ["--records", "4691970,1"]  # validation takes no time
        assert main(["plan", FULL, *records, "--gpu", "h100", *words]) == 0
        return float(capsys.readouterr().out.splitlines()[5].split()[7])

    assert hours("engine.verify_every=4") == pytest.approx(1.25 * hours(), rel=0.005)


def test_the_lines_of_a_plan(capsys):
    words = [
        FULL,
        *RECORDS,
        "--gpu",
        "h100",
        "--gpus",
        "1,8,512",
        "--price",
        "2",
        "--kwh-price",
        "0.3",
    ]
    assert main(["plan", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("90.4 million parameters, 469,197 records to train and 68,545 to")
    assert lines[1].startswith(
        "H100, 80 GB, 700 W; 100 Gbit/s between nodes of 8; a step from oper"
    )
    assert "activations 8.94" in lines[2]
    one, eight, many = (line.split() for line in lines[5:8])
    assert one[:2] == ["1", "128"] and eight[:2] == ["8", "16"] and many[:2] == ["512", "1"]
    hours, kwh, money = float(one[7]), float(one[8]), float(one[11])
    assert kwh == pytest.approx(0.7 * hours, abs=0.01)
    assert money == pytest.approx(2 * hours + 0.3 * kwh, abs=0.02) and one[12] == "EUR"
    assert float(one[10]) == 100 > float(eight[10]) > float(many[10])


def test_a_plan_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from hpc_ecg.cli import main; "
        f"main(['plan', {FULL!r}, *{RECORDS!r}, '--gpu', 'a100']); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "plan needs a configuration"),
        (["nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        ([FULL], "data.shards must be given: data.shards=…, or --records TRAIN,VALID"),
        (["configs/sweep.yaml"], "run.data.shards must be given: run.data.shards=…, or --rec"),
        ([FULL, *RECORDS, "--gpu", "h1000"], "there are cpu, gb200, "),
        ([FULL, *RECORDS, "--gpu", "h1000"], "did you mean h100?"),
        ([FULL, *RECORDS, "--gpus", "1,x"], "gpus must be a list of whole numbers"),
        ([FULL, *RECORDS, "--gpus", "0"], "gpus must be in [1, 4096], got [0]"),
        ([FULL, *RECORDS, "--gpus", "99999"], "gpus must be in [1, 4096], got [99999]"),
        ([FULL, *RECORDS, "--gpus", ""], "gpus must be numbers such as 1,2,8, got none"),
        ([FULL, *RECORDS, "--gpus", "[1]"], "gpus must be a list of whole numbers"),
        ([FULL, "--records", f"1{18 * '0'},1"], "records must be in [1, 1000000000000], got "),
        ([FULL, *RECORDS, "--price", "-1"], "price must be in [0, 1000000000], got -1.0"),
        ([FULL, *RECORDS, "--kwh-price", "1e308"], "kwh_price must be in [0, 1000000000], got 1"),
        ([FULL, *RECORDS, "--network-gbit", "1e-308"], "network_gbit must be in [0.001, "),
        ([FULL, *RECORDS, "--network-gbit", "0"], "network_gbit must be "),
        ([FULL, "--records", "5"], "records must be two numbers"),
        ([FULL, *RECORDS, "--measured", "nowhere"], "--measured nowhere: no measured step there"),
        ([FULL, "engine.precision=bf16", *RECORDS, "--gpu", "t4"], "a T4 lacks it"),
        ([FULL, "engine.precision=fp16", *RECORDS, "--gpu", "cpu"], "a CPU lacks it"),
    ],
)
def test_a_mistake_is_one_line(words, expected, capsys):
    assert main(["plan", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


# Sweeps


def test_a_sweep_is_planned_as_a_whole(shards, tmp_path, capsys):
    words = words_of_sweep(shards, tmp_path, "strategies=[ssl_new_head,random]", "seeds=[0,1,2]")
    assert main(["plan", *words, "--gpu", "a100", "--gpus", "1,4"]) == 0
    first, _, one, four = capsys.readouterr().out.splitlines()
    assert first.startswith("6 runs: ") and "kWh" in first
    assert "1 of them" in one and "with 1 a run, 1 run at a time" in one and "4 of them" in four


def test_the_best_shape_is_one_gpu_a_run_until_gpus_are_left_over():
    class Run:
        def seconds(self, processes):
            return 100 / processes + 10 * (processes > 1)

    runs = [Run()] * 8
    assert best_shape(runs, 8) == (100, 1)
    assert best_shape(runs, 16) == (60, 2)
    assert best_shape(runs[:1], 4) == (35, 4)


def test_a_dry_run_says_hours_before_the_first_run(shards, tmp_path):
    names = "strategies=[ssl_new_head]"
    sweep = load_sweep([], words_of_sweep(shards, tmp_path / "new", names, "seeds=[0]"))
    (line,) = [line for line in describe_launch(sweep) if line.startswith("cost: ")]
    assert "ECGs to train on" in line and "hours of one CPU (see" in line
    slurm = ["slurm.partition=gpu", "slurm.gpus_per_node=a100:1"]
    sweep = load_sweep([], words_of_sweep(shards, tmp_path / "new", names, *slurm))
    assert any("hours of one A100 " in line for line in describe_launch(sweep))


@pytest.mark.parametrize(
    ("asked", "device"),
    [
        ("a100:4", "a100"),
        ("2", "h100"),
        ("7g.80gb:1", "h100"),
        (None, "cpu"),
    ],
)
def test_a_dry_run_plans_for_the_card_that_slurm_is_asked_for(asked, device):
    assert _gpu_of(SlurmConfig(gpus_per_node=asked)) == device


def test_a_plan_for_a_cpu_has_no_columns_of_gpus(capsys):
    assert main(["plan", FULL, *RECORDS, "--gpus", "1,2"]) == 0
    printed = capsys.readouterr().out
    assert not [word for word in ("kWh", "weak", "Gbit/s", " W;") if word in printed]
    head, first, second = printed.splitlines()[4:7]
    assert len(first.replace(" ms", "ms").split()) == len(second.split()) - 1 == len(head.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["init.checkpoint=typo.pt"],
            "typo.pt (init.checkpoint) is not here, so the sizes of the ",
        ),
        ([], "no init.checkpoint is given, so the sizes of the published network are assumed"),
        (["init.checkpoint=random"], ""),
    ],
)
def test_a_plan_without_the_weights_says_which_network_it_assumes(words, said, capsys):
    assert main(["plan", FULL, *RECORDS, "--gpu", "h100", *words]) == 0
    printed = capsys.readouterr().out
    assert said in printed and ("assumed" in printed) == bool(said)
