"""Settings: what is taken, how words are read, and that each mistake gets one line."""

from dataclasses import asdict
from pathlib import Path

import pytest

from hpc_ecg.config import RENAMED, load_config, to_yaml
from hpc_ecg.explain import explain
from hpc_ecg.run_folder import flatten
from hpc_ecg.sweep.grid import SweepConfig, load_sweep
from hpc_ecg.training.finetune import FinetuneConfig

CONFIGS = Path(__file__).parent.parent / "configs"
NEEDED = ["run_dir=r", "data.shards=s"]
FILES = ["files.base_ssl=b.pt", "files.wcr_afib_5y=w.pt"]


def load(*words, files=()):
    return load_config(FinetuneConfig, list(files), [*NEEDED, *words])


def complaint(*words, files=(), needed=True):
    with pytest.raises(ValueError) as caught:
        load_config(FinetuneConfig, list(files), [*(NEEDED if needed else []), *words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("strategies/*.yaml")), ids=lambda p: p.stem)
def test_every_strategy_loads_over_the_run_settings(path):
    config = load(*FILES, files=[str(CONFIGS / "finetune.yaml"), str(path)])
    assert config.init.checkpoint in ("b.pt", "w.pt")


@pytest.mark.parametrize("name", ["sweep", "demo"])
def test_every_sweep_builds_all_its_cells(name):
    words = ["sweep_dir=s", "run.data.shards=d", *[f"run.{word}" for word in FILES]]
    sweep = load_sweep([str(CONFIGS / f"{name}.yaml")], words)
    assert len(sweep.cells) == len(sweep.config.strategies) * len(sweep.config.seeds)
    assert len({cell.run.run_dir for cell in sweep.cells}) == len(sweep.cells)


def test_every_yaml_in_configs_is_covered_by_a_test():
    known = {"finetune.yaml", "sweep.yaml", "demo.yaml"}
    assert {path.name for path in CONFIGS.glob("*.yaml")} == known


@pytest.mark.parametrize("schema", [FinetuneConfig, SweepConfig])
def test_every_setting_is_documented(schema):
    undocumented = [key for key, _, _, text in explain(schema) if not text]
    assert undocumented == []


# A value other than the default, where the type alone does not give one.
OTHER = {
    "data.task": "multilabel",
    "optim.schedule": "constant",
    "optim.betas": "[0.5,0.6]",
    "train.best_metric": "loss",
    "engine.precision": "bf16",
    "engine.device": "cpu",
}
BY_TYPE = {"int": "3", "float": "0.25", "str": "text", "list[str]": "[a,b]", "list[float]": "[2.5]"}


@pytest.mark.parametrize(
    ("key", "kind"), [row[:2] for row in explain(FinetuneConfig) if row[0] != "files"]
)
def test_every_setting_can_be_reached_by_its_dotted_key(key, kind):
    value = OTHER.get(key) or BY_TYPE[kind.removesuffix(" | None")]
    before, after = flatten(asdict(load())), flatten(asdict(load(f"{key}={value}")))
    assert {name for name in before if before[name] != after[name]} == {key}
    assert str(after[key]).replace(" ", "").strip("()[]") in value.replace(".0", "") or isinstance(
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
        ("seed=1.5", "seed: "),
        ("seed=true", "seed is a whole number"),
        ("optim.lr=fast", "optim.lr: "),
        ("optim=3", "optim is a section"),
        ("optim.lr.x=3", "below a plain value"),
        ("data.labels=af", "expected a list like [a,b]"),
        ("optim.lr", "neither a .yaml file nor a setting"),
        ("optim.lr=-1", "optim.lr must be positive, got -1.0"),
        ("optim.schedule=linear", "optim.schedule must be cosine or constant"),
        ("data.task=ternary", "data.task must be one of"),
        ("data.batch_size=0", "data.batch_size must be at least 1"),
        ("train.patience=0", "train.patience must be at least 1"),
        ("train.best_metric=f1", "train.best_metric must be"),
        ("engine.precision=fp8", "engine.precision must be one of"),
        ("engine.device=tpu", "engine.device must be"),
        ("engine.micro_batch_size=0", "engine.micro_batch_size must be at least 1"),
        ("seed=-1", "seed must not be negative"),
        ("optim.betas=[0.9,1.5]", "optim.betas in [0, 1)"),
        ("init.checkpoint=${files.nothing}", "nothing"),
    ],
)
def test_a_wrong_word_gets_one_line_that_names_it(word, expected):
    assert expected in complaint(word)


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_setting_of_the_reference_program_is_answered_with_ours(old):
    assert RENAMED[old] in complaint(f"{old}=1")


def test_what_must_be_given_is_named():
    assert "run_dir must be given" in complaint("data.shards=s", needed=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run_dir: 10\n", "run_dir is text: write it in quotes, got 10"),
        ("init: {checkpoint: 12:00:00}\n", "is text"),
        ("optim: {lrr: 1}\n", "unknown setting optim.lrr"),
        ("train:\n", "train is a section, got None"),
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
