"""The command as a user meets it: quick help, one line for a mistake, exit code 2."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import FIXTURES, TINY_MODEL, words_for

from hpc_ecg.cli import build_parser, main
from hpc_ecg.cli.parser import Parser, examples_of


def test_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys, hpc_ecg.cli as c; c.build_parser().format_help(); "
        "print({'torch', 'numpy', 'pandas', 'rich'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_mistakes_are_reported_without_importing_torch(shards, tmp_path):
    """An interpreter that imports torch takes seconds before it answers."""
    words = [f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]
    commands = [
        ["finetune", "optim.lrr=1"],
        ["finetune", "data.shards=nowhere", words[1]],
        ["finetune", *words, "init.checkpoint=none.pt"],
        ["finetune", *words],
        ["doctor", "optim.lrr=1"],
        ["evaluate", "nowhere"],
        ["report", "nowhere"],
        ["sweep", "status", "nowhere"],
        ["sweep", "configs/none.yaml"],
        ["data", "inspect", "nowhere"],
        ["strategies", "nowhere"],
        ["data", "shard", "no.csv", "--out", "s", "--label", "af", "--patient", "p"],
    ]
    code = (
        "import sys; from hpc_ecg.cli import main; "
        f"print([main(words) for words in {commands!r}], 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == f"{[2] * len(commands)} False", result.stderr


def test_a_finished_run_answers_without_importing_torch(tmp_path):
    shutil.copytree(FIXTURES / "v0_1", tmp_path, dirs_exist_ok=True)
    settings = [str(tmp_path / "runs" / "finished" / "config.yaml")]
    code = (
        "import sys; from hpc_ecg.cli import main; "
        f"print(main(['finetune', *{settings!r}]), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.strip() == "0 False" and "nothing to do" in result.stderr


def test_the_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "hpc_ecg", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "finetune" in result.stdout


def leaves(parser, name="hpc-ecg"):
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for verb, child in ((v, c) for action in subparsers for v, c in action.choices.items()):
        yield from leaves(child, f"{name} {verb}")
    if not subparsers:
        yield name


def test_the_help_of_every_verb_has_examples_that_it_understands(monkeypatch):
    class UnderstoodError(Exception):
        pass

    def stop(self, words, namespace=None):
        parse(self, words, namespace)
        raise UnderstoodError

    for verb in [*leaves(build_parser()), "hpc-ecg sweep status", "hpc-ecg sweep retry"]:
        examples = examples_of(verb).replace(" \\\n", " ").splitlines()[2:]
        assert examples, verb
        for example in examples:
            words = shlex.split(example.partition(" -m ")[2].replace("_", "-") or example)
            assert " ".join(words).startswith(verb), example
            with monkeypatch.context() as patch, pytest.raises(UnderstoodError):
                parse = Parser.parse_intermixed_args
                patch.setattr(Parser, "parse_intermixed_args", stop)
                if verb.split()[1] not in ("predict", "embed", "evaluate", "sweep"):
                    build_parser().parse_args(words[1:])
                    raise UnderstoodError
                main(words[1:])


def test_config_prints_every_setting_of_runs_and_sweeps(capsys):
    assert main(["config"]) == 0
    printed = capsys.readouterr().out
    for key in ("run_dir", "data.shards", "optim.lr", "init.signal.sample_rate_hz", "sweep_dir"):
        assert f"\n{key}: " in printed
    assert main(["config", "sweep"]) == 0
    assert "\noptim.lr: " not in capsys.readouterr().out


def test_config_prints_the_settings_of_a_name_or_with_a_word(capsys):
    def keys(*words: str) -> list[str]:
        assert main(["config", *words]) == 0
        return re.findall(r"^([\w.]+): ", capsys.readouterr().out, re.MULTILINE)

    assert keys("optim.lr") == ["optim.lr"]
    assert set(keys("slurm")) >= {"slurm.partition", "slurm.time"}
    assert all(key.startswith("slurm.") for key in keys("slurm"))
    assert "optim.warmup_fraction" in keys("--search", "Warmup")
    assert keys("optim", "--search", "head") == ["optim.head_lr", "optim.layer_decay"]
    for words in (["optim.l"], ["Sweep"], ["--search", "xyzzy"], ["sweep", "--search", "xyzzy"]):
        assert main(["config", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def failure(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("hpc-ecg: ") and "Traceback" not in captured.err
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.lrr=1"], "did you mean optim.lr?"),
        (["optim.lr=fast"], "optim.lr"),
        (["data.shards=nowhere"], "data.shards=nowhere does not exist"),
        (["data.task=regression"], "data.task=regression needs loss.name=mse"),
        (["data.labels=[sex]"], "data.labels: sex not in"),
        (["init.checkpoint=none.pt"], "none.pt"),
        (["init.head=keep"], "no head"),
        (["model.encoder_layers=3"], "model.encoder_layers=3"),
        (["init.signal.sample_rate_hz=500"], "sample_rate_hz: 250 in data.shards="),
        (["train.freeze=head"], "train.freeze"),
        ([*TINY_MODEL, "init.checkpoint=random", "model.in_d=8"], "model.in_d=8, but data.shards="),
        (["loss.name=focal"], "loss.name must be one of bce,"),
        (["loss.pos_weight=[1,2]"], "loss.pos_weight must have 1"),
        (["engine.device=cuda"], "torch sees no GPU"),
        (["engine.precision=fp16"], "engine.precision=fp16 needs a GPU"),
        (["train.freze=stem"], "did you mean train.freeze?"),
    ],
)
def test_a_mistake_in_a_run_gets_one_line_and_leaves_nothing(
    capsys, tmp_path, shards, words, expected
):
    run_dir = tmp_path / "run"
    assert expected in failure(capsys, "finetune", *words_for(shards, run_dir, *words))
    assert not run_dir.exists()


def test_a_foreign_folder_is_not_taken_for_a_run(capsys, tmp_path, shards):
    (tmp_path / "notes.txt").write_text("mine")
    line = failure(capsys, "finetune", *words_for(shards, tmp_path))
    assert "is not a run folder" in line and "notes.txt" in line


def test_a_file_that_is_no_checkpoint_is_named(capsys, tmp_path, shards):
    fake = tmp_path / "weights.pt"
    fake.write_text("hello")
    words = words_for(shards, tmp_path / "run", f"init.checkpoint={fake}")
    assert "weights.pt" in failure(capsys, "finetune", *words)


def test_a_word_that_is_no_setting_is_named(capsys):
    assert "'lr' is neither" in failure(capsys, "finetune", "lr")
    assert "'lr' is neither" in failure(capsys, "sweep", "lr")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "strategies is empty"),
        (["strategies=[none]"], "no none.yaml in"),
        (["strategies=[ssl_new_head,ssl_new_head]"], "entry twice"),
        (["strategies=[ssl_new_head]", "seeds=[]"], "seeds must be whole numbers"),
        (["strategies=[ssl_new_head]", "run.optim.lrr=1"], "did you mean optim.lr?"),
        (["strategies=[ssl_new_hed]"], "did you mean ssl_new_head?"),
        (["strategies=[ssl_new_head]", "runs_at_once=0"], "runs_at_once must be at least 1"),
        (["strategies=[ssl_new_head]", "sweeps=1"], "unknown setting sweeps"),
        (["strategies=[ssl_new_head]"], "base_ssl"),
    ],
)
def test_a_mistake_in_a_sweep_shows_before_the_first_run(capsys, tmp_path, words, expected):
    base = [f"sweep_dir={tmp_path / 's'}", "strategy_dir=configs/strategies", "run.data.shards=d"]
    assert expected in failure(capsys, "sweep", *base, *words)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["weights"], "required: VERB"),
        (["weights", "inspect"], "required: FILE"),
        (["weights", "show", "x.pt"], "'show'"),
        (["weights", "diff", "a.pt"], "required: B"),
        (["weights", "reset-head", "a.pt", "b.pt"], "required: --seed"),
        (["weights", "reset-head", "a.pt", "b.pt", "--seed", "one"], "'one'"),
        (["weights", "soup", "a.pt"], "required: IN"),
    ],
)
def test_a_verb_of_weights_that_lacks_something_says_it_in_one_line(capsys, words, expected):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and expected in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["finetun"],
            "hpc-ecg: argument VERB: invalid choice: … did you mean finetune?",
        ),
        (["data", "shrad"], "hpc-ecg data: … did you mean shard?"),
        (["weights", "conver"], "hpc-ecg weights: … did you mean convert?"),
        (["help", "reprot"], "hpc-ecg: … did you mean report?"),
        (["--verison"], "hpc-ecg: unknown option --verison; did you mean --version?"),
        (["cohort", "a", "b", "--oout", "c"], "hpc-ecg cohort: … --oout; did you mean --out?"),
        (["data", "shard", "t", "--lable=af"], "hpc-ecg data shard: … did you mean --label?"),
        (["data", "inspect", "s", "--splitt", "x"], "hpc-ecg data inspect: … mean --split?"),
        (["report", "s", "-replicates", "9"], "hpc-ecg report: … did you mean --replicates?"),
        (["evaluate", "r", "--splt", "test"], "hpc-ecg evaluate: … did you mean --split?"),
        (["sweep", "--dryrun"], "hpc-ecg sweep: … did you mean --dry-run?"),
        (["sweep", "status", "s", "--wach"], "hpc-ecg sweep status: … did you mean --watch?"),
        (["finetune", "--optim.lr=1"], "hpc-ecg finetune: … mean the setting optim.lr=1?"),
        (["cohort", "a", "b", "--death", "negativ"], "hpc-ecg cohort: … did you mean negative?"),
        (["report", "s", "--xyzzy"], "hpc-ecg report: unknown option --xyzzy; see …"),
    ],
)
def test_a_mistyped_verb_option_or_choice_is_answered_by_the_nearest_one(capsys, words, expected):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert all(part.strip() in line for part in expected.split("…")), line


def test_a_mistyped_verb_of_sweep_and_a_choice_of_a_setting_are_answered_too(capsys):
    assert failure(capsys, "sweep", "statu", "s").endswith("did you mean status?")
    line = failure(capsys, "finetune", "data.shards=s", "run_dir=r", "loss.name=bec")
    assert line.endswith(
        "loss.name must be one of bce, as, bf, mlsml, mse, mse2, got 'bec'; did you mean bce?"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "usage: hpc-ecg "),
        (["help"], "usage: hpc-ecg "),
        (["help", "cohort"], "usage: hpc-ecg cohort "),
        (["help", "data", "shard"], "usage: hpc-ecg data shard "),
        (["help", "evaluate"], "usage: hpc-ecg evaluate "),
        (["help", "sweep"], "usage: hpc-ecg sweep "),
        (["help", "sweep", "status"], "usage: hpc-ecg sweep status "),
    ],
)
def test_help_is_printed_without_a_verb_and_for_each_verb(capsys, words, expected):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(expected)


def test_what_a_file_says_of_itself_cannot_reach_the_terminal(capsys, tmp_path):
    (tmp_path / "x\x1b[31m\n.pt").write_bytes(b"\x1b[31m")
    assert "\x1b" not in failure(capsys, "weights", "inspect", tmp_path / "x\x1b[31m\n.pt")


def test_evaluate_and_report_name_a_folder_that_is_not_theirs(capsys, tmp_path):
    assert "is not a run folder" in failure(capsys, "evaluate", tmp_path)
    assert str(tmp_path) in failure(capsys, "report", tmp_path)
    assert FIXTURES.is_dir()


@pytest.mark.parametrize("verb", ["plan", "doctor", "finetune"])
def test_settings_may_follow_an_option(verb):
    words = {"plan": ["--gpu", "h100"], "doctor": ["--json"]}.get(verb, [])
    options = build_parser().parse_args([verb, "a.yaml", *words, "run_dir=x", "b.yaml"])
    assert options.settings == ["a.yaml", "run_dir=x", "b.yaml"]
