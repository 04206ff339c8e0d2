"""`hpc-ecg completion`: the script is sourced by the shell itself, and asked as Tab asks."""

import shutil
import subprocess

import pytest

from hpc_ecg.cli import main

ASK = {
    "bash": """
        source "$1"; COMP_LINE="$2"; COMP_POINT=${#2}
        complete -p hpc-ecg > /dev/null && _hpc_ecg && printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { }; _files() { }
        compadd() { while [[ $1 != -- ]]; do shift; done; shift; print -l -- "$@" }
        source "$1"; words=("${(@s: :)2}"); CURRENT=$#words; PREFIX=$words[-1]; _hpc_ecg
    """,
    "fish": "source $argv[1]; complete -C $argv[2]",
}


@pytest.fixture(scope="module", params=[*ASK])
def ask(request, tmp_path_factory):
    """The function that completes a line in one shell: the words that it offers."""
    shell, script = request.param, tmp_path_factory.mktemp("shell") / "script"
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text, **_: script.open("a").write(f"{text}\n"))
        assert main(["completion", shell]) == 0

    def ask(line):
        plain = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
        name = [] if shell == "fish" else [shell]
        command = [shell, *plain, "-c", ASK[shell], *name, script, line]
        result = subprocess.run(command, capture_output=True, text=True, cwd=script.parent)
        assert result.stderr == ""
        found = [x.split("\t")[0] for x in result.stdout.splitlines() if x]
        if shell == "bash":  # replaces only what follows the last "="
            last = line.rpartition(" ")[2]
            found = [last[: last.rfind("=") + 1] + x for x in found]
        return {x for x in found if x != "script"}  # a file of this folder

    return ask


@pytest.mark.parametrize(
    ("line", "least", "never"),
    [
        ("hpc-ecg ", {"cohort", "finetune", "completion"}, {"--version", "shard"}),
        ("hpc-ecg fi", {"finetune"}, {"cohort"}),
        ("hpc-ecg help data ", {"shard", "inspect", "repair"}, {"cohort"}),
        ("hpc-ecg data shard --a", {"--axes", "--amplitude-factor"}, {"--out"}),
        ("hpc-ecg predict runs/x a.xml --s", {"--strategy", "--slurm"}, {"--out"}),
        ("hpc-ecg cohort a.csv b.csv --death ", {"negative", "censored"}, {"--out"}),
        ("hpc-ecg update RUN --up-to ", {"intercept", "head"}, {"--share"}),
        ("hpc-ecg sweep status --", {"--watch"}, {"--dry-run"}),
        ("hpc-ecg sweep --dr", {"--dry-run"}, {"--watch"}),
        ("hpc-ecg sweep st", {"status", "strategies=", "strategy_dir="}, {"cancel"}),
        ("hpc-ecg finetune x.yaml optim.l", {"optim.lr="}, {"optim.schedule="}),
        ("hpc-ecg evaluate RUN data.ta", {"data.task="}, {"data.read="}),
        ("hpc-ecg finetune data.read=", {"data.read=map", "data.read=stream"}, {"data.read="}),
        ("hpc-ecg finetune engine.compile=t", {"engine.compile=true"}, {"engine.compile=false"}),
        ("hpc-ecg sweep run.data.read=s", {"run.data.read=stream"}, {"run.data.read=map"}),
        (
            "hpc-ecg sweep strategies=[ssl_l",
            {"strategies=[ssl_linear_probe"},
            {"strategies=[random"},
        ),
        ("hpc-ecg sweep strategies=[a,ssl_n", {"strategies=[a,ssl_new_head"}, {"ssl_new_head"}),
        ("hpc-ecg config optim.l", {"optim.lr"}, {"optim.lr="}),
    ],
)
def test_tab_offers_verbs_options_settings_and_their_values(ask, line, least, never):
    found = ask(line)
    assert least <= found and not never & found


@pytest.mark.parametrize(
    "line", ["hpc-ecg evaluate --out ", "hpc-ecg bundle x", "hpc-ecg cohort a"]
)
def test_where_nothing_is_known_the_shell_offers_files(ask, line):
    assert ask(line) == set()


def test_a_script_needs_no_quoting_and_no_python(capsys):
    main(["completion", "bash"])
    table = capsys.readouterr().out.partition("_hpc_ecg_table='")[2].partition("'\n")[0]
    assert len(table.splitlines()) > 500 and "python" not in table
    assert all(row.count("|") == 1 for row in table.splitlines())
