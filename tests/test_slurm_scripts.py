"""The scripts in slurm/ parse and do their work; `srun` is stood in for by the plain command."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES, words_for

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["finetune.sh", "sweep.sh"])
def test_the_sbatch_lines_come_before_the_first_command(name):
    lines = (ROOT / "slurm" / name).read_text().splitlines()
    directives = [k for k, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(k for k, line in enumerate(lines) if line and not line.startswith("#"))
    assert directives and max(directives) < first_command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+=\S+", lines[k]) for k in directives)


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """A PATH on which srun drops its own options and runs the command once."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nwhile [[ "$1" == -* ]]; do shift; done\nexec "$@"\n')
    srun.chmod(srun.stat().st_mode | stat.S_IEXEC)
    path = f"{srun.parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HPC_ECG_PYTHON": sys.executable}


def run_script(name: str, words: list[str], environment: dict[str, str]):
    command = ["bash", str(ROOT / "slurm" / name), *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_finetune_runs_and_says_its_exit_code(environment, shards, tmp_path):
    words = words_for(shards, tmp_path / "run", "train.max_steps=2")
    result = run_script("finetune.sh", ["configs/finetune.yaml", *words], environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "finished.json").exists()
    wrong = run_script("finetune.sh", ["optim.lrr=1"], environment)
    assert wrong.returncode == 2 and "did you mean optim.lr?" in wrong.stderr


@pytest.mark.slow
def test_a_sweep_runs_inside_one_job(environment, shards, tmp_path):
    shared = words_for(shards, tmp_path, "train.max_steps=2")
    words = [f"run.{word}" for word in shared if not word.startswith(("run_dir", "init."))]
    words += [f"run.files.base_ssl={FIXTURES / 'tiny_base_ssl.pt'}", "seeds=[0]"]
    words += [f"sweep_dir={tmp_path / 'sweep'}", "strategies=[ssl_new_head]"]
    result = run_script("sweep.sh", ["configs/sweep.yaml", *words], environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sweep" / "ssl_new_head" / "seed-0" / "evaluation.json").exists()


@pytest.mark.slow
def test_the_site_file_is_read_inside_the_job(environment, tmp_path):
    site = tmp_path / "slurm" / "site.sh"
    site.parent.mkdir()
    site.write_text("echo site file read\n")
    inside = environment | {"SLURM_SUBMIT_DIR": str(tmp_path)}
    assert "site file read" in run_script("finetune.sh", ["--help"], inside).stdout
