"""What a run starts from is stated: a file of the kind that a strategy expects, or `random`."""

import json
import shutil

import pytest
from conftest import FIXTURES, words_for
from recorded import WORDS, copy_of_0_1, hpc_ecg

from hpc_ecg.cli import main
from hpc_ecg.config.load import load_config
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.preflight.doctor import diagnose
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.launch import prepare_sweep
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights.convert import convert, reset_head
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.initialize import open_start
from hpc_ecg.weights.reading import read_checkpoint
from hpc_ecg.weights.settings import InitConfig

BASE, AFIB = FIXTURES / "tiny_base_ssl.pt", FIXTURES / "tiny_wcr_afib_5y.pt"
CLASSIFIER, PRETRAINED = "is a classifier (a head of ", "is a pre-trained file (no head)"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of each kind in each format, by name; the names of the files say nothing."""
    folder = tmp_path_factory.mktemp("files")
    made = {"base_ssl.pt": BASE, "classifier.pt": AFIB}
    for number, (name, source, strip) in enumerate(
        [
            ("base_ssl.safetensors", BASE, False),
            ("base_ssl stripped", BASE, True),
            ("classifier.safetensors", AFIB, False),
            ("classifier stripped", AFIB, True),
        ]
    ):
        made[name] = folder / f"{number}.safetensors"
        convert(source, made[name], strip=strip)
    made["base_ssl as .pt again"] = folder / "a.pt"
    convert(made["base_ssl.safetensors"], made["base_ssl as .pt again"])
    made["classifier, reset"] = folder / "b.safetensors"
    reset_head(AFIB, made["classifier, reset"], seed=0)
    run = folder / "run"
    (run / "best").mkdir(parents=True)
    shutil.copy(made["classifier.safetensors"], run / "best" / "model.safetensors")
    made["classifier in a run's folder"] = run
    checkpoint = read_checkpoint(BASE)
    model = build_model(checkpoint.architecture, 1, ModelConfig())
    backbone = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    made["neither"] = folder / "c.safetensors"
    save_model(made["neither"], backbone, checkpoint.architecture, None, None, [])
    return made


KINDS = [
    *("base_ssl.pt", "base_ssl.safetensors", "base_ssl as .pt again"),
    *("classifier.pt", "classifier.safetensors", "classifier stripped", "classifier, reset"),
    *("classifier in a run's folder", "base_ssl stripped", "neither"),
]


@pytest.mark.parametrize("expects", ["base_ssl", "classifier", "any"])
@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_taken_only_where_its_kind_is_expected(files, name, expects):
    init = InitConfig(checkpoint=str(files[name]), expects=expects, head="new")
    if expects == "any" or name.startswith(expects):
        assert open_start(init, ["af"])[0] is not None
        return
    with pytest.raises(ValueError, match=f"^init.expects={expects}, but ") as error:
        open_start(init, ["af"])
    seen = {"n": "has neither", "b": PRETRAINED, "c": CLASSIFIER}[name[0]]
    assert seen in str(error.value) and "init.expects=any" in str(error.value)


def test_random_weights_are_no_file_of_a_kind():
    with pytest.raises(ValueError, match=r"^init.expects=base_ssl, but init.checkpoint=random"):
        open_start(InitConfig(checkpoint="random", expects="base_ssl"), ["af"])


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def without_start(shards, run_dir, *more):
    return [w for w in words_for(shards, run_dir, *more) if not w.startswith("init.")]


@pytest.mark.parametrize("word", ["", "init.checkpoint=null"])
def test_a_start_that_is_left_out_is_refused_with_the_choices(shards, tmp_path, capsys, word):
    words = without_start(shards, tmp_path / "run", *filter(None, [word]))
    assert main(["finetune", *words]) == 2
    line = last_line(capsys)
    for part in ("init.checkpoint must be given", "base_ssl.pt", "init.checkpoint=random"):
        assert part in line
    assert main(["doctor", *words]) == 2
    assert "error   weights: init.checkpoint must be given" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_swapped_files_stop_run_doctor_and_sweep_before_anything_is_written(
    shards, tmp_path, capsys
):
    swapped = [f"files.base_ssl={AFIB}", f"files.wcr_afib_5y={BASE}"]
    for strategy, expects in (("ssl_new_head", "base_ssl"), ("afib_reset_head", "classifier")):
        words = without_start(shards, tmp_path / "run", *swapped)
        words.insert(0, f"configs/strategies/{strategy}.yaml")
        assert main(["finetune", *words]) == 2
        assert f"init.expects={expects}, but " in last_line(capsys)
        assert main(["doctor", *words]) == 2
        assert f"error   weights: init.expects={expects}, but " in capsys.readouterr().out
        sweep = [f"run.{word}" for word in without_start(shards, "", *swapped)]
        sweep = [word for word in sweep if not word.startswith("run.run_dir")]
        sweep += [f"sweep_dir={tmp_path / 'sweep'}", f"strategies=[{strategy}]"]
        for more in ([], ["--dry-run"]):
            assert main(["sweep", *sweep, *more]) == 2
            assert f"{strategy}: init.expects={expects}, but " in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lines", "word", "message"),
    [
        ("", "seeds=[0]", "mine: init.checkpoint must be given"),
        ("init: {checkpoint: null}", "seeds=[0]", "mine: init.checkpoint must be given"),
        ("", "tune.optim.lr=[0.1,0.2]", "mine: init.checkpoint must be given"),
        (f"init: {{checkpoint: {BASE}, head: keep}}", "seeds=[0]", "mine: init.head=keep"),
        ("init: {checkpoint: random, head: keep}", "seeds=[0]", "random weights have no head"),
    ],
)
def test_a_strategy_that_cannot_start_stops_the_sweep(shards, tmp_path, lines, word, message):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "mine.yaml").write_text(f"train: {{max_epochs: 1}}\n{lines}\n")
    (tmp_path / "sweeps").mkdir()
    copy_of_0_1(tmp_path / "sweeps")  # runs of 0.1 that lie near are no wish of this sweep
    words = [f"sweep_dir={tmp_path / 'sweeps' / 'new'}", "strategies=[mine]", word]
    words += [f"strategy_dir={tmp_path / 'strategies'}", f"run.data.shards={shards}"]
    with pytest.raises(ValueError, match=message):
        prepare_sweep(load_sweep([], words))
    assert not (tmp_path / "sweeps" / "new").exists()


def test_a_file_called_random_is_given_by_its_path(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(BASE, "random.pt")
    (tmp_path / "random.pt").rename("random")
    named, by_path = (
        open_start(InitConfig(checkpoint=name), ["af"])[0] for name in ("random", "./random")
    )
    assert named is None
    assert by_path is not None and by_path.kind == "base_ssl"


def test_a_run_of_0_1_from_random_weights_goes_on_under_every_verb(tmp_path):
    old = copy_of_0_1(tmp_path)
    words = [*WORDS["run"], "run_dir=runs/middle"]
    assert hpc_ecg(old, "doctor", *words) == 0
    assert hpc_ecg(old, "finetune", *words) == 0
    assert hpc_ecg(old, "evaluate", "runs/middle") == 0
    again = [*words[:-1], "init.checkpoint=random", "run_dir=runs/middle"]
    assert hpc_ecg(old, "finetune", *again) == 0
    report = json.loads((old / "runs/middle/init_report.json").read_text())
    assert report["checkpoint"] is None
    assert hpc_ecg(old, "finetune", *WORDS["run"], "run_dir=runs/new") == 2


@pytest.mark.parametrize("seeds", ["[0]", "[0,1]"])
def test_a_sweep_of_0_1_goes_on_with_its_own_random_strategy(tmp_path, monkeypatch, seeds):
    old = copy_of_0_1(tmp_path)
    monkeypatch.chdir(old)
    words = [*WORDS["sweep"], "sweep_dir=sweeps/middle", f"seeds={seeds}"]
    cells = prepare_sweep(load_sweep([], words)).cells
    assert {c.run.init.checkpoint for c in cells if c.arm.name == "random"} == {"random"}
    with pytest.raises(ValueError, match=r"^random: init.checkpoint must be given"):
        prepare_sweep(load_sweep([], [*words, "sweep_dir=sweeps/new"]))


def test_the_doctor_passes_a_named_start(shards, tmp_path):
    words = words_for(shards, tmp_path / "run", "init.expects=base_ssl")
    findings = list(diagnose(load_config(FinetuneConfig, [], words)))
    assert [f.level for f in findings if f.name == "weights"] == ["ok"]
