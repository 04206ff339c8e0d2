"""The recipes of the containers agree with the repository and with each other.

containers/try_in_chroot.sh runs their steps; it needs root and minutes, so it is not run here.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = (ROOT / "containers" / "hpc-ecg.def").read_text()
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()


@pytest.mark.parametrize("script", sorted((ROOT / "containers").glob("*.sh")), ids=lambda p: p.name)
def test_a_script_parses(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


@pytest.mark.parametrize("script", sorted((ROOT / "containers").glob("*.sh")), ids=lambda p: p.name)
def test_an_option_of_a_script_is_answered_with_its_usage_and_makes_nothing(script, tmp_path):
    command = ["timeout", "10", "bash", str(script), "--help"]
    asked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert asked.returncode == 2 and f"containers/{script.name}" in asked.stderr
    assert not (ROOT / "--help").exists() and not [*tmp_path.iterdir()]


def test_a_container_gets_all_that_the_installation_reads():
    copied = re.findall(r"^    (\S+) /src/$", RECIPE, re.MULTILINE)
    shown = {f"!{name}" for name in copied}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all((ROOT / name).exists() for name in copied)
    assert {name.replace("requirements*.lock", "requirements.lock") for name in ignored} >= (
        shown - {"!requirements-torch.lock"}
    )
    script = (ROOT / "containers" / "install.sh").read_text()
    assert set(re.findall(r"-r (\S+\.lock)", script)) <= set(copied)


def test_both_recipes_take_one_installation_one_python_and_one_index_of_torch():
    for text in (RECIPE, DOCKERFILE):
        assert "bash /src/containers/install.sh /src" in text and "TORCH_INDEX" in text
        assert "PATH=/opt/hpc_ecg/bin:$PATH" in text
    assert (
        re.search(r"^From: (\S+)", RECIPE, re.M)[1]
        == re.search(r"^FROM (\S+)", DOCKERFILE, re.M)[1]
    )


def test_docker_does_not_run_as_root():
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.MULTILINE)
