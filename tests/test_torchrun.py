"""Without Slurm: torchrun starts the processes, and the result is one process's."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import words_for
from test_finetune import events, losses, run


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_losses_of_one(shards, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = words_for(shards, tmp_path / "two", "train.max_steps=4")
    command = [*launcher, "--nproc-per-node=2", "-m", "hpc_ecg", "finetune", *words]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert events(tmp_path / "two", "started")[0]["processes"] == 2
    one = run(words_for(shards, tmp_path / "one", "train.max_steps=4"))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(one), rtol=1e-6)
