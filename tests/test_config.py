"""Settings: what is taken, how words are read, and that each mistake gets one line."""

from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from hpc_ecg.config.describe import describe_settings
from hpc_ecg.config.dotted_keys import flatten
from hpc_ecg.config.load import RENAMED, load_config, to_yaml
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.settings import SweepConfig
from hpc_ecg.training.settings import FinetuneConfig

CONFIGS = Path(__file__).parent.parent / "configs"
NEEDED = ["run_dir=r", "data.shards=s"]
FILES = ["files.base_ssl=b.pt", "files.wcr_afib_5y=w.pt"]


def load(*words, files=()):
    return load_config(FinetuneConfig, list(files), [*NEEDED, *words])


@cache
def flat(*words):
    return flatten(asdict(load(*words)))


def complaint(*words, files=(), needed=True):
    with pytest.raises(ValueError) as caught:
        load_config(FinetuneConfig, list(files), [*(NEEDED if needed else []), *words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("strategies/*.yaml")), ids=lambda p: p.stem)
def test_every_strategy_loads_over_the_run_settings(path):
    for base in ("finetune.yaml", "reference.yaml"):
        config = load(*FILES, files=[str(CONFIGS / base), str(path)])
        random = path.stem.startswith("random")
        assert config.init.checkpoint in (["random"] if random else ["b.pt", "w.pt"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", sorted(CONFIGS.glob("strategies/with/*.yaml")), ids=lambda p: p.stem
)
def test_every_option_can_be_laid_over_every_strategy(option):
    names = [path.stem for path in sorted(CONFIGS.glob("strategies/*.yaml"))]
    words = [f"strategies=[{','.join(f'{name}+{option.stem}' for name in names)}]", "seeds=[0]"]
    words += ["sweep_dir=s", "run.data.shards=d", *[f"run.{word}" for word in FILES]]
    words += [f"strategy_dir={CONFIGS / 'strategies'}"]
    sweep = load_sweep([], words)
    assert [cell.arm.name for cell in sweep.cells] == [f"{name}+{option.stem}" for name in names]
    plain = load_sweep([], [*words, f"strategies=[{','.join(names)}]"])
    for cell, without in zip(sweep.cells, plain.cells, strict=True):
        assert cell.run.init == without.run.init
        assert (cell.run.train, cell.run.optim) != (without.run.train, without.run.optim)


def test_an_option_that_is_not_there_is_named_with_those_that_are():
    words = ["strategies=[random+emma]", f"strategy_dir={CONFIGS / 'strategies'}", "sweep_dir=s"]
    with pytest.raises(ValueError, match=r"no emma.yaml in .*with; there are: ema, frozen_half"):
        load_sweep([], [*words, "run.data.shards=d"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep", "demo"])
def test_every_sweep_builds_all_its_cells(name):
    words = ["sweep_dir=s", "run.data.shards=d", *[f"run.{word}" for word in FILES]]
    sweep = load_sweep([str(CONFIGS / f"{name}.yaml")], words)
    seeds = sweep.config.seeds
    expected = {  # a strategy that no seed changes runs once
        (cell.arm.name, seed)
        for cell in sweep.cells
        for seed in (seeds[:1] if cell.run.is_fixed else seeds)
    }
    assert {(cell.arm.name, cell.seed) for cell in sweep.cells} == expected
    assert len({cell.arm.name for cell in sweep.cells}) == len(sweep.config.strategies)
    assert len({cell.run.run_dir for cell in sweep.cells}) == len(sweep.cells)


def test_every_yaml_in_configs_is_covered_by_a_test():
    known = {"finetune.yaml", "sweep.yaml", "demo.yaml", "reference.yaml"}
    known |= {"practice.yaml"}  # run by the tutorials' test
    known |= {"demo_pretraining.yaml"}  # read below
    assert {path.name for path in CONFIGS.glob("*.yaml")} == known


def test_the_control_of_the_demo_is_the_network_that_the_demo_pre_trains():
    pretraining = load_config(FinetuneConfig, [str(CONFIGS / "demo_pretraining.yaml")], [])
    sweep = load_sweep([str(CONFIGS / "demo.yaml")], [])
    assert {cell.run.model for cell in sweep.cells} == {pretraining.model}


@pytest.mark.parametrize("schema", [FinetuneConfig, SweepConfig])
def test_every_setting_is_documented(schema):
    undocumented = [key for key, _, _, text in describe_settings(schema) if not text]
    assert undocumented == []


# A value other than the default, where the type alone does not give one.
OTHER = {
    "data.task": "multilabel",
    "data.order": "fixed_batches",
    "data.sampling": "one_per_patient",
    "data.read": "stream",
    "data.all_validate": "true",
    "data.allow_pipe": "true",
    "data.ids_as_written": "true",
    "loss.alpha": "0.75",
    "loss.name": "bf",
    "loss.reduction": "positives",
    "init.head": "by_label",
    "init.expects": "classifier",
    "optim.eps_before_correction": "true",
    "train.average": "ema",
    "train.calibration": "platt",
    "optim.schedule": "constant",
    "optim.betas": "[0.5,0.6]",
    "train.best_metric": "loss",
    "engine.precision": "bf16",
    "engine.device": "cpu",
    "engine.parallel": "fsdp2",
    "engine.activation_checkpointing": "true",
    "engine.compile": "true",
    "engine.kernels": "measure",
    "model.attention": "math",
    "model.positional_conv": "fft",
    "model.record_dropout": "compiled",
    "model.pooling": "nonzero",
    "train.doctor": "true",
    "loss.ipcw": "true",
}
# Without these a setting would do nothing, and is refused.
WITH = {
    "data.repeat": ("data.fold=0",),
    "data.label_seed": ("data.label_fraction=0.5",),
    "data.site_column": ("data.left_out_site=A",),
    "data.stream_lanes": ("data.read=stream",),
    "data.stream_buffer": ("data.read=stream",),
    "data.stage_quota_gb": ("data.stage_dir=/tmp",),
}
BY_TYPE = {"int": "3", "float": "0.25", "str": "text", "list[str]": "[a,b]", "list[float]": "[2.5]"}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        row[:2]
        for row in describe_settings(FinetuneConfig)
        if row[0] not in ("files", "train.stages")
    ],
)
def test_every_setting_can_be_reached_by_its_dotted_key(key, kind):
    value = OTHER.get(key) or BY_TYPE[kind.removesuffix(" | None")]
    needed = ("train.stages={NAME: {}}",) if ".NAME." in key else WITH.get(key, ())
    before = flat(*needed)
    after = flatten(asdict(load(*needed, f"{key}={value}")))
    assert {name for name in before if before[name] != after[name]} == {key}
    shown = str(after[key]).lower() if isinstance(after[key], bool) else str(after[key])
    assert shown.replace(" ", "").strip("()[]") in value.replace(".0", "") or isinstance(
        after[key], list
    )


@pytest.mark.parametrize("text", ["010", "12:00:00", "1.10", "no", "{000..099}.tar", "a=b", ""])
def test_text_on_the_command_line_is_taken_verbatim(text):
    assert load(f"init.checkpoint={text}").init.checkpoint == text


def test_lists_of_text_are_taken_verbatim():
    assert load("data.labels=[010, af,'no']").data.labels == ["010", "af", "no"]


def test_later_sources_win_and_the_written_yaml_gives_the_same_again(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 0.1}\nseed: 3\n")
    config = load("optim.lr=0.2", files=[str(file)])
    assert (config.optim.lr, config.seed) == (0.2, 3)
    again = tmp_path / "b.yaml"
    again.write_text(to_yaml(config))
    assert load_config(FinetuneConfig, [str(again)], []) == config


def test_a_path_can_be_named_once_and_used_by_name():
    config = load("files.base=/data/b.pt", "init.checkpoint=${files.base}")
    assert config.init.checkpoint == "/data/b.pt"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optim.lrr=1", "did you mean optim.lr?"),
        ("nonsense=1", "unknown setting nonsense (command line)"),
        ("seed=1.5", "seed must be a whole number such as 8, got 1.5 (command line)"),
        ("seed=true", "seed must be a whole number"),
        ("optim.lr=fast", "optim.lr must be a number such as 1e-5, got 'fast' (command line)"),
        ("optim=3", "optim must be a section"),
        ("optim.lr.x=3", "below a plain value"),
        ("data.labels=af", "data.labels must be a list of names such as [a,b]"),
        ("optim.lr", "neither a .yaml file nor a setting"),
        ("optim.lr=-1", "optim.lr must be positive, got -1.0"),
        ("optim.schedule=linear", "optim.schedule must be one of cosine, constant"),
        ("data.task=ternary", "data.task must be one of"),
        ("data.batch_size=0", "data.batch_size must be at least 1"),
        ("train.patience=0", "train.patience must be at least 1"),
        ("train.best_metric=f1", "train.best_metric must be"),
        ("train.average=mean", "train.average must be one of none, ema, swa, got 'mean'"),
        ("train.calibration=isotonic", "train.calibration must be one of"),
        ("train.feature_cache=", "train.feature_cache is empty; give a folder, auto or null"),
        ("train.ema_decay=1", "train.ema_decay must be in [0, 1), got 1.0"),
        ("train.freeze_layers=-1", "train.freeze_layers must be at least 0, got -1"),
        ("train.max_epochs=-1", "train.max_epochs must be at least 0"),
        ("train.stages.probe.patience=0", "train.stages.probe.patience must be at least 1 or null"),
        ("train.stages.probe.speed=3", "unknown setting train.stages.probe.speed"),
        ("train.stages.probe=3", "train.stages.probe"),
        ("optim.layer_decay=1.5", "optim.layer_decay must be in (0, 1], got 1.5"),
        ("optim.head_lr=0", "optim.head_lr must be positive or null"),
        ("data.order=sorted", "data.order must be one of shuffled, fixed_batches"),
        ("data.sampling=some", "data.sampling must be one of all, balanced, one_per_patient"),
        ("data.read=tape", "data.read must be one of map, stream"),
        ("data.stream_lanes=0", "data.stream_lanes must be at least 1"),
        ("data.held_out=1", "data.held_out must be"),
        ("data.fold=-1", "data.fold must be at least 0 or null, got -1"),
        ("data.stage_quota_gb=0", "data.stage_quota_gb must be positive"),
        ("data.stream_lanes=4", "data.stream_lanes=4 has no effect without data.read=stream"),
        ("data.stream_buffer=9", "data.stream_buffer=9 has no effect without data.read=stream"),
        ("data.stage_quota_gb=9", "data.stage_quota_gb=9.0 has no effect without data.stage_dir"),
        ("data.repeat=1", "data.repeat=1 has no effect without data.fold"),
        ("augment.noise_mv=-1", "augment.noise_mv must be at least 0"),
        ("augment.lead_mask=1", "augment.lead_mask must be in [0, 1), got 1.0"),
        ("engine.precision=fp8", "engine.precision must be one of"),
        ("engine.device=tpu", "engine.device must be"),
        ("engine.micro_batch_size=0", "engine.micro_batch_size must be at least 1"),
        ("seed=-1", "seed must be at least 0"),
        ("optim.betas=[0.9,1.5]", "optim.betas must be in [0, 1)"),
        ("init.checkpoint=${files.nothing}", "nothing"),
    ],
)
def test_a_wrong_word_gets_one_line_that_names_it(word, expected):
    assert expected in complaint(word)


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_setting_of_the_reference_program_is_answered_with_ours(old):
    assert RENAMED[old] in complaint(f"{old}=1")


NUMBER, WHOLE = "a number such as 1e-5", "a whole number such as 8"
BETAS = "optim.betas must be a list of 2 numbers such as [0.1,0.9], got"
SEEDS = "seeds must be a list of whole numbers such as [0,1,2], got"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optim.lr=true", f"optim.lr must be {NUMBER}, got true"),
        ("optim.lr=null", f"optim.lr must be {NUMBER}, got null"),
        ("optim.lr=", f"optim.lr must be {NUMBER}, got null"),
        ("optim.lr=1,5", f"optim.lr must be {NUMBER}, got '1,5'"),
        ("train.stages=[1]", "train.stages must be a section (NAME: value), got [1]"),
        ("optim.lr=[1]", f"optim.lr must be {NUMBER}, got [1]"),
        ("optim.lr=[", f"optim.lr must be {NUMBER}, got '['"),
        ("optim.head_lr=fast", f"optim.head_lr must be {NUMBER} or null, got 'fast'"),
        ("train.stages.probe.lr=fast", f"train.stages.probe.lr must be {NUMBER} or null, got"),
        ("train.max_epochs=ten", f"train.max_epochs must be {WHOLE}, got 'ten'"),
        ("train.save_every=1.5", f"train.save_every must be {WHOLE} or null, got 1.5"),
        ("data.allow_pipe=maybe", "data.allow_pipe must be true or false, got 'maybe'"),
        ("data.labels=null", "data.labels must be a list of names such as [a,b], got 'null'"),
        ("optim.betas=0.9", f"{BETAS} 0.9"),
        ("optim.betas=[a,b]", f"{BETAS} ['a', 'b']"),
        ("optim.betas=[0.9]", f"{BETAS} [0.9]"),
        ("optim.betas=null", f"{BETAS} null"),
        ("train.stages=5", "train.stages must be a section (NAME: value), got 5"),
        ("optim.lr=${loss.name}", f"optim.lr must be {NUMBER}, but ${{loss.name}} is something"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_is_allowed(word, expected):
    assert complaint(word).startswith(expected)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seeds=2", f"{SEEDS} 2"),
        ("seeds=[a]", f"{SEEDS} ['a']"),
        ("seeds=[0.5]", f"{SEEDS} [0.5]"),
        ("seeds=null", f"{SEEDS} null"),
        ("seeds=[0,1", f"{SEEDS} '[0,1'"),
        ("strategies=random", "strategies must be a list of names such as [a,b], got 'random'"),
        ("seeds=[[1]]", f"{SEEDS} [[1]]"),
        ("seeds={a: 1}", f"{SEEDS} {{'a': 1}}"),
        ("grid=3", "grid must be a section (NAME: value), got 3"),
        ("grid=[1]", "grid must be a section (NAME: value), got [1]"),
        ("tune=[]", "tune must be a section (NAME: value), got []"),
        ("slurm.nodes=two", f"slurm.nodes must be {WHOLE}"),
    ],
)
def test_a_value_of_another_type_is_named_for_a_sweep_too(word, expected):
    with pytest.raises(ValueError) as refused:
        load_config(SweepConfig, [], ["sweep_dir=s", word])
    assert str(refused.value).startswith(expected)


def test_a_calibration_of_what_has_no_probability_is_refused_at_once():
    line = complaint("data.task=regression", "loss.name=mse", "train.calibration=platt")
    assert "train.calibration=platt is for probabilities" in line


def test_what_must_be_given_is_named():
    assert "run_dir must be given" in complaint("data.shards=s", needed=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run_dir: 10\n", "run_dir is text: write it in quotes, got 10"),
        ("init: {checkpoint: 1.10}\n", "is text"),
        ("optim: {lrr: 1}\n", "unknown setting optim.lrr"),
        ("optim: {lr: fast}\n", "optim.lr must be a number such as 1e-5, got 'fast' ("),
        ("optim: {lr: 1, betas: 2}\n", "optim.betas must be a list of 2 numbers"),
        ("train:\n", "train must be a section (train.NAME=…), got null"),
        ("train: {stages: {probe: {speed: 3}}}\n", "train.stages.probe.speed"),
        ("train: {stages: {probe: {freeze: 3}}}\n", "is text"),
        ("train: {stages: {probe: 3}}\n", "train.stages.probe"),
        ("- a\n- b\n", "expected `key: value` lines"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_a_wrong_yaml_file_is_named_with_its_line_of_reason(tmp_path, text, expected):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    line = complaint(files=[str(file)])
    assert expected in line and str(file) in line


def test_a_missing_file_is_named():
    assert "none.yaml: no such configuration file" in complaint(files=["none.yaml"])
