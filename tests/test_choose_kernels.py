"""Kernels are chosen by measurement: what is wrong is out, the fastest is kept, wishes stand."""

import json
import platform
import re
from contextlib import closing
from dataclasses import asdict, replace

import pytest
import torch
from conftest import TINY, words_for

from hpc_ecg import log
from hpc_ecg.cli import main
from hpc_ecg.config.load import load_config
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.model import attention, dropout, layers, measure_kernels
from hpc_ecg.model.layers import PositionalConv
from hpc_ecg.model.measure_kernels import KernelLoad, measure_kernel
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.preflight.doctor import diagnose
from hpc_ecg.training import choose_kernels as choosing
from hpc_ecg.training.choose_kernels import ENOUGH_STEPS, choose_kernels, kept_kernels, seconds_won
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.evaluate import evaluate
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.try_kernels import keep_what_runs

CPU = torch.device("cpu")
LOAD = KernelLoad(num_tokens=31, device=CPU, dtype=torch.float32)
MEASURE = ("engine.kernels=measure", "model.activation_dropout=0", "train.max_epochs=1")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measure_kernels, "SECONDS_EACH", 1e-9)


def tiny(**more):
    return build_model(TINY, 1, ModelConfig(**more))


def seconds_of(monkeypatch, *each):
    """Let the candidates take these times, in their order."""
    readings = [reading for seconds in each for reading in (0.0, seconds)]
    monkeypatch.setattr(measure_kernels, "timer", iter(readings).__next__)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [("attention", ["math", "sdpa"]), ("positional_conv", ["direct", "fft", "unfold"])],
)
def test_candidates_are_timed_and_compared_with_the_reference(name, kinds, dtype, has_mask):
    model, state = tiny(), torch.get_rng_state()
    for backward in (False, True):
        load = replace(LOAD, dtype=dtype, has_mask=has_mask, backward=backward)
        found = measure_kernel(name, model, load)
        assert list(found["candidates"]) == kinds
        for about in found["candidates"].values():
            assert about["ms"] > 0 and about["ratio"] > 0
            assert about["error"] < (1e-5 if dtype == torch.float32 else 0.03)
        assert found["candidates"][kinds[0]]["ratio"] == 1
        assert found["chosen"] in kinds
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ((1, 2, 3), "direct"),
        ((1, 0.98, 3), "direct"),
        ((1, 0.9, 0.8), "unfold"),
        ((1, 0.5, 2), "fft"),
    ],
)
def test_the_fastest_is_chosen_but_not_for_a_margin_of_noise(monkeypatch, times, chosen):
    seconds_of(monkeypatch, *times)
    assert measure_kernel("positional_conv", tiny(), LOAD)["chosen"] == chosen


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def fails(*_):
    raise RuntimeError("no such kernel\nfor this device")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            lambda right: lambda x, *more: 1.5 * right(x, *more),
            "wrong: (50|49.9) % off .* output$",
        ),
        (
            lambda right: lambda x, *more: right(x, *more) * torch.nan,
            "wrong: nan % off .* output$",
        ),
        (
            lambda right: lambda x, *more: WrongBackward.apply(right(x, *more)),
            r"wrong: (100|99.\d) % off .* gradients$",
        ),
        (lambda right: fails, "cannot run: no such kernel$"),
    ],
)
def test_what_is_wrong_or_cannot_run_is_out_however_fast(monkeypatch, wrong, reason):
    monkeypatch.setitem(layers.CONVOLUTIONS, "fft", wrong(layers.CONVOLUTIONS["fft"]))
    seconds_of(monkeypatch, 1, 2)
    found = measure_kernel("positional_conv", tiny(), LOAD)
    assert found["chosen"] == "direct"
    assert pytest.approx(2) == found["candidates"]["unfold"]["ratio"]
    out = found["candidates"]["fft"]
    assert "ms" not in out
    assert re.match(reason, out["out"]), out


def test_the_budget_is_kept_and_what_it_left_out_is_said():
    found = measure_kernel("positional_conv", tiny(), replace(LOAD, budget_s=0))["candidates"]
    assert found["direct"]["ms"] > 0
    assert found["fft"]["out"] == found["unfold"]["out"] == "not tried: no time was left"


def test_there_is_no_choice_where_dropout_is_by_record_or_off():
    assert measure_kernel("attention", tiny(attention_dropout=0.1), LOAD) == {}
    assert measure_kernel("record_dropout", tiny(activation_dropout=0.0), LOAD) == {}


@pytest.mark.parametrize(
    ("steps", "saved_s", "compile_s", "won"),
    [(1000, 0.1, 20, 40), (600, 0.1, 20, 0), (100, 0.1, 20, -50), (10**6, 0.0, 1, -3)],
)
def test_compiling_wins_what_it_saves_less_what_it_takes(steps, saved_s, compile_s, won):
    assert seconds_won(steps, saved_s, compile_s) == pytest.approx(won)


def config_of(tmp_path, **engine):
    return FinetuneConfig(run_dir=str(tmp_path / "run"), engine=EngineConfig(**engine))


def fake_measure(monkeypatch, **chosen):
    calls = []

    def measure_kernel(name, *_):
        calls.append(name)
        kind = chosen.get(name, choosing.KINDS[name][-1])
        about = {"ms": 10.0, "ratio": 1.0, "error": 0.0, "first_call_s": 20.0}
        candidates = {choosing.KINDS[name][0]: about, kind: about | {"ms": 8.0}}
        return {"chosen": kind, "candidates": candidates}

    monkeypatch.setattr(choosing, "measure_kernel", measure_kernel)
    return calls


GPU_LOAD = replace(LOAD, device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("load", "kernels", "steps", "measures"),
    [
        (LOAD, "auto", 10**6, False),
        (LOAD, "measure", 10, True),
        (LOAD, "reference", 10**6, False),
        (GPU_LOAD, "auto", ENOUGH_STEPS - 1, False),
        (GPU_LOAD, "auto", ENOUGH_STEPS, True),
        (GPU_LOAD, "measure", 1, True),
        (GPU_LOAD, "reference", 10**6, False),
    ],
)
def test_auto_measures_on_a_gpu_if_the_run_is_long(
    monkeypatch, tmp_path, load, kernels, steps, measures
):
    monkeypatch.setattr(choosing, "device_kind", str)
    calls = fake_measure(monkeypatch)
    choice = choose_kernels(config_of(tmp_path, kernels=kernels), tiny(), load, steps, None)
    assert bool(calls) == bool(choice.measured) == measures
    if not measures:
        reference = dict.fromkeys(choosing.KINDS, "auto")
        assert (choice.kernels, choice.lines) == (reference, ())


def test_a_layer_with_attention_that_lacks_fp32_is_compared_with_the_plain_one(monkeypatch):
    right = attention.attend

    def attend(q, k, v, mask, kind, *more):
        if kind == "flash" and q.dtype == torch.float32:
            raise RuntimeError("no available kernel")
        return right(q, k, v, mask, "math" if kind == "flash" else kind, *more)

    monkeypatch.setattr(attention, "attend", attend)
    model = tiny()
    model.use_kernels("flash", "direct", "plain")
    load = replace(LOAD, dtype=torch.bfloat16)
    about = measure_kernel("compile", model, load, ["eager"])["candidates"]["eager"]
    assert about["ms"] > 0 and about["error"] < 0.15


def test_compiling_wins_nothing_where_the_layer_as_it_is_cannot_run(monkeypatch, tmp_path):
    def measure(name, *_):
        about = {"ms": 1.0, "ratio": 1.0, "error": 0.0, "first_call_s": 0.0}
        return {"chosen": "compiled", "candidates": {"eager": {"out": "x"}, "compiled": about}}

    monkeypatch.setattr(choosing, "measure_kernel", measure)
    wishes = ModelConfig(attention="math", positional_conv="direct", record_dropout="plain")
    config = replace(config_of(tmp_path, kernels="measure"), model=wishes)
    choice = choose_kernels(config, tiny(), LOAD, ENOUGH_STEPS, None)
    assert choice.kernels["compile"] == "eager"


@pytest.mark.parametrize(("steps", "compiles"), [(999, False), (1000, False), (4000, True)])
def test_a_run_is_compiled_if_it_is_long_enough_to_win(monkeypatch, tmp_path, steps, compiles):
    """Two layers save 4 ms a step; three compilations take 60 s at 15,000 steps, 12 s at 3,000."""
    calls = fake_measure(monkeypatch)
    monkeypatch.setattr(choosing, "KINDS_OF_BATCHES", 0.6)
    config = config_of(tmp_path, kernels="measure")
    choice = choose_kernels(config, tiny(), LOAD, steps, None)
    assert (choice.kernels["compile"] == "compiled") == compiles
    assert ("compile" in calls) == (steps >= ENOUGH_STEPS)


@pytest.mark.parametrize("compiled", [True, False])
def test_explicit_settings_stand_whatever_was_measured(monkeypatch, tmp_path, compiled):
    calls = fake_measure(monkeypatch)
    config = config_of(tmp_path, kernels="measure", compile=compiled)
    config = replace(config, model=ModelConfig(positional_conv="fft", attention="math"))
    model = tiny()
    choice = choose_kernels(config, model, LOAD, 10**6, None)
    assert calls == ["record_dropout"]
    assert (choice.kernels["positional_conv"], choice.kernels["attention"]) == ("fft", "math")
    assert choice.kernels["compile"] == ("compiled" if compiled else "eager")
    choice.apply(model)
    [conv] = [m for m in model.modules() if isinstance(m, PositionalConv)]
    assert conv.kind == "fft"


def test_a_sweep_measures_once_for_each_kind_of_device_and_size(monkeypatch, tmp_path):
    calls, config = fake_measure(monkeypatch), config_of(tmp_path, kernels="measure")
    first = choose_kernels(config, tiny(), LOAD, 10, tmp_path)
    measured = len(calls)
    assert choose_kernels(config, tiny(), LOAD, 10, tmp_path).kernels == first.kernels
    assert len(calls) == measured
    for other in (replace(LOAD, num_records=3), replace(LOAD, dtype=torch.bfloat16)):
        choose_kernels(config, tiny(), other, 10, tmp_path)
    monkeypatch.setattr(choosing, "device_kind", lambda device: "another")
    choose_kernels(config, tiny(), LOAD, 10, tmp_path)
    assert len(calls) == 4 * measured
    assert len(list(tmp_path.glob("kernels-*.json"))) == 4


def test_a_run_keeps_its_kernels_and_evaluates_with_them(monkeypatch, shards, tmp_path, caplog):
    config = load_config(FinetuneConfig, [], words_for(shards, tmp_path / "run", *MEASURE))
    with monkeypatch.context() as patch:
        seconds_of(patch, *[1, 2, 1, 0.5, 2])  # attention math, sdpa; then the convolutions
        finetune(config)
    kept = json.loads((tmp_path / "run" / "kernels.json").read_text())
    assert kept["chosen"] == {"attention": "math", "positional_conv": "fft"}
    assert "kernels.json" in json.loads((tmp_path / "run" / "finished.json").read_text())["digests"]
    monkeypatch.setattr(choosing, "measure_kernel", fails)
    kinds, forward = set(), PositionalConv.forward
    monkeypatch.setattr(
        PositionalConv, "forward", lambda self, x: kinds.add(self.kind) or forward(self, x)
    )
    assert kept_kernels(config, CPU).kernels["positional_conv"] == "fft"
    evaluate(config)
    assert kinds == {"fft", "direct"}, "direct is the reference of the comparison"
    (tmp_path / "run" / "finished.json").unlink()
    findings = [str(finding) for finding in diagnose(config)]
    assert any("kernels as in " in finding for finding in findings), findings
    finetune(replace(config, engine=replace(config.engine, kernels="auto")))
    reference = replace(config, engine=replace(config.engine, kernels="reference"))
    assert kept_kernels(reference, CPU).kernels["positional_conv"] == "auto"


def keep(run_dir, **chosen):
    """A file of kernels of this device, as a run leaves it."""
    run_dir.mkdir(exist_ok=True)
    about = {"device": choosing.device_kind(CPU), "torch": str(torch.__version__)}
    path = run_dir / "kernels.json"
    path.write_text(json.dumps(about | {"chosen": chosen, "candidates": {}}))
    return path


def lose(monkeypatch, name, kind):
    """Let this machine lack what the kernel needs."""
    real_attend, real_kernel = attention.attend, dropout._kernel
    if name == "attention":
        monkeypatch.setattr(
            attention, "attend", lambda *a: (fails if a[4] == kind else real_attend)(*a)
        )
    elif name == "positional_conv":
        monkeypatch.setitem(layers.CONVOLUTIONS, kind, fails)
    elif name == "record_dropout":
        monkeypatch.setattr(dropout, "_kernel", lambda k: fails() if k == kind else real_kernel(k))
    else:
        monkeypatch.setattr(torch, "compile", fails)


@pytest.fixture
def engine():
    with closing(Engine(EngineConfig(device="cpu"))) as engine:
        yield engine


OTHERS = [(name, kind) for name, kinds in choosing.KINDS.items() for kind in kinds[1:]]


@pytest.mark.parametrize("from_sweep", [False, True])
@pytest.mark.parametrize(("name", "kind"), OTHERS)
def test_a_kept_kernel_that_cannot_run_here_gives_way_and_one_line_says_so(
    monkeypatch, tmp_path, engine, name, kind, from_sweep
):
    config, model = config_of(tmp_path, kernels="measure"), tiny()
    if from_sweep:
        fake_measure(monkeypatch, **{name: kind})
        choose_kernels(config, model, LOAD, ENOUGH_STEPS, tmp_path)
        [path] = tmp_path.glob("kernels-*.json")
    else:
        path = keep(tmp_path / "run", **{name: kind})
    before = path.read_bytes()
    lose(monkeypatch, name, kind)
    if from_sweep:  # what else it holds is not of interest
        kept = json.loads(before) | {"chosen": {name: kind}, "candidates": {}}
        path.write_text(json.dumps(kept))
        before = path.read_bytes()
    engine.kernels = choose_kernels(config, model, LOAD, ENOUGH_STEPS, tmp_path)
    assert engine.kernels.kernels[name] == kind
    keep_what_runs(engine, config, model, LOAD)
    assert engine.kernels.kernels == dict.fromkeys(choosing.KINDS, "auto")
    assert re.fullmatch(
        f"{path} has {name}={kind}: cannot run: no such kernel, on cpu of {platform.node()}; the "
        "usual kernel is taken, so numbers differ by rounding, and a resumed run does not repeat "
        "bit for bit",
        engine.kernels.lines[-1],
    )
    assert path.read_bytes() == before, "a machine that has it takes it again"


@pytest.mark.parametrize(("name", "kind"), OTHERS)
def test_a_kept_kernel_that_can_run_is_used_exactly(monkeypatch, tmp_path, engine, name, kind):
    config, model = config_of(tmp_path), tiny()
    path = keep(tmp_path / "run", **{name: kind})
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(dropout, "_kernel", lambda kind: dropout.drop_plainly)
    right = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *a: right(*a[:4], "math", *a[5:]))
    engine.kernels = choose_kernels(config, model, LOAD, 10, None)
    keep_what_runs(engine, config, model, LOAD)
    assert engine.kernels.kernels == dict.fromkeys(choosing.KINDS, "auto") | {name: kind}
    assert engine.kernels.lines == (f"kernels as in {path}: {{'{name}': '{kind}'}}",)


def test_a_kernel_that_another_node_lacks_or_computes_wrongly_gives_way_on_all(
    monkeypatch, tmp_path, engine
):
    config, model = config_of(tmp_path), tiny()
    keep(tmp_path / "run", positional_conv="fft", attention="sdpa")
    theirs = iter(["cannot run: no library, on cpu of b", ""])
    monkeypatch.setattr(engine, "gather_objects", lambda mine: [*mine, next(theirs)])
    right = layers.CONVOLUTIONS["fft"]
    monkeypatch.setitem(layers.CONVOLUTIONS, "fft", lambda *x: 2 * right(*x))
    engine.kernels = choose_kernels(config, model, LOAD, 10, None)
    keep_what_runs(engine, config, model, LOAD)
    assert engine.kernels.kernels == dict.fromkeys(choosing.KINDS, "auto")
    _, attention_line, conv_line = engine.kernels.lines
    assert "has attention=sdpa: cannot run: no library, on cpu of b; the usual" in attention_line
    assert re.search(r"has positional_conv=fft: wrong: \S+ % off the reference", conv_line)


def test_an_explicit_setting_is_not_replaced_though_the_file_names_the_same_kernel(
    tmp_path, engine
):
    wish = replace(config_of(tmp_path), model=ModelConfig(attention="fa3"))
    keep(tmp_path / "run", attention="fa3")
    engine.kernels = choose_kernels(wish, tiny(), LOAD, 10, None)
    keep_what_runs(engine, wish, tiny(), LOAD)
    assert engine.kernels.kernels["attention"] == "fa3" and len(engine.kernels.lines) == 1


def test_kernels_of_another_torch_are_kept_and_that_is_said(tmp_path):
    path = keep(tmp_path / "run", positional_conv="fft")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": "2.8.0"}))
    kept = kept_kernels(config_of(tmp_path), CPU)
    assert kept.kernels["positional_conv"] == "fft"
    assert kept.lines[0].endswith(
        f", measured with torch 2.8.0; numbers of torch {torch.__version__} may differ"
    )


def test_a_run_resumes_and_is_evaluated_where_its_kept_attention_is_missing(
    monkeypatch, shards, tmp_path, caplog
):
    monkeypatch.setattr(log.logger, "propagate", True)
    caplog.set_level("INFO", "hpc_ecg")
    words = words_for(shards, tmp_path / "run", "train.max_epochs=1")
    config = load_config(FinetuneConfig, [], words)
    finetune(config)
    (tmp_path / "run" / "finished.json").unlink()
    path = keep(tmp_path / "run", attention="fa3", positional_conv="fft")
    finetune(config)
    evaluate(config)
    lines = [line for line in caplog.messages if "has attention=fa3: cannot run: " in line]
    assert len(lines) == 2 and all(line.startswith(f"{path} ") for line in lines)
    assert json.loads(path.read_text())["chosen"] == {"attention": "fa3", "positional_conv": "fft"}


def test_kernels_of_another_device_are_measured_anew_and_that_is_said(monkeypatch, tmp_path):
    config, calls = config_of(tmp_path, kernels="measure"), fake_measure(monkeypatch)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "kernels.json"
    path.write_text(
        '{"device": "Abacus", "chosen": {"attention": "flash"}, '
        '"candidates": {"attention": {"flash": {"out": "no"}}}}'
    )
    assert kept_kernels(config, CPU).kernels["attention"] == "auto"
    choice = choose_kernels(config, tiny(), LOAD, 10, None)
    assert calls and choice.measured
    assert re.match(f"{path} is not for CPU with .*: it is of Abacus$", choice.lines[0])


@pytest.mark.parametrize(
    ("measured_with", "has_mask", "kind"),
    [
        ("False", False, "flash"),
        ("False", True, "auto"),
        ("True", True, "flash"),
        (None, 1, "auto"),
    ],
)
def test_padded_records_take_attention_that_was_measured_with_padding(
    monkeypatch, tmp_path, measured_with, has_mask, kind
):
    monkeypatch.setattr(choosing, "device_kind", lambda device: "Abacus")
    (tmp_path / "run").mkdir()
    kept = {"device": "Abacus", "chosen": {"attention": "flash", "positional_conv": "fft"}}
    kept |= {"candidates": {}} | ({"sizes": {"has_mask": measured_with}} if measured_with else {})
    (tmp_path / "run" / "kernels.json").write_text(json.dumps(kept))
    found = kept_kernels(config_of(tmp_path), CPU, bool(has_mask)).kernels
    assert (found["attention"], found["positional_conv"]) == (kind, "fft")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"device": "x"}',
        '{"device": "x", "chosen": {"attention": "rm -rf"}, "candidates": {}}',
        '{"device": "x", "chosen": {"attention": []}, "candidates": {}}',
        '{"device": "x", "chosen": {"nothing": "math"}, "candidates": {}}',
        '{"device": "x", "chosen": {"compile": "auto"}, "candidates": []}',
        '{"device": "x", "chosen": {}, "candidates": {}, "sizes": "x"}',
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, text):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "kernels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path} ") as error:
        kept_kernels(config_of(tmp_path), CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("model.record_dropout=triton", "cannot run: .*; use model.record_dropout=plain"),
        ("model.attention=fa3", "cannot run on cpu in float32 .*; model.attention=auto takes one"),
        ("model.attention=fa4", "cannot run on cpu in float32 .*; model.attention=auto takes one"),
    ],
)
def test_a_kernel_that_cannot_run_here_is_an_error_of_one_line(shards, tmp_path, setting, reason):
    config = load_config(FinetuneConfig, [], words_for(shards, tmp_path / "run", setting))
    with pytest.raises(ValueError, match=f"^{setting} {reason}") as error:
        finetune(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_wrong_convolution_that_was_asked_for_names_the_direct_one(monkeypatch, shards, tmp_path):
    right = layers.CONVOLUTIONS["fft"]
    monkeypatch.setitem(layers.CONVOLUTIONS, "fft", lambda *more: 2 * right(*more))
    words = words_for(shards, tmp_path / "run", "model.positional_conv=fft")
    with pytest.raises(ValueError, match=r"pos_conv.0 is off .*set model.positional_conv=direct$"):
        finetune(load_config(FinetuneConfig, [], words))


def test_the_settings_of_older_runs_mean_what_they_meant(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("engine: {compile: false}\n")
    words = ["data.shards=d", "run_dir=r", "init.checkpoint=random"]
    assert load_config(FinetuneConfig, [str(file)], words).engine.compile is False
    for text, value in (("true", True), ("null", None)):
        config = load_config(FinetuneConfig, [], [*words, f"engine.compile={text}"])
        assert config.engine.compile is value
    assert main(["config"]) == 0
    assert asdict(load_config(FinetuneConfig, [], words))["engine"]["kernels"] == "auto"
