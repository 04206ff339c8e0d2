"""The lock: exact versions with hashes, torch aside, complete for what pyproject.toml asks for."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import lock
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def locked():
    text = (ROOT / "requirements.lock").read_text()
    rest = [line for line in BLOCK.sub("", text).splitlines() if line and line[0] != "#"]
    assert rest == []  # each line is a comment, or has a version and hashes
    return {canonicalize_name(name): version for name, version, _ in BLOCK.findall(text)}


def asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return map(Requirement, [*project["dependencies"], *extras["dev"], *extras["excel"]])


def test_each_dependency_has_a_version_that_fits_and_hashes(locked):
    torch = Requirement((ROOT / "requirements-torch.lock").read_text().strip())
    assert torch.name == "torch" and "torch" not in locked
    versions = locked | {"torch": str(torch.specifier).removeprefix("==")}
    for requirement in asked_for():
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_each_version_runs_on_the_first_release_of_the_oldest_python(locked):
    needed = {d.name: d.metadata["Requires-Python"] or "" for d in distributions()}
    needed = {name: python for name, python in needed.items() if canonicalize_name(name) in locked}
    assert len(needed) > 100
    refused = {name: python for name, python in needed.items() if not lock.runs_on_oldest(python)}
    assert refused == {}, "Debian 12 has Python 3.11.2"


def test_torch_and_what_only_its_cuda_build_brings_is_left_out():
    text = "torch==2.13.0+cpu\nnvidia-cudnn-cu12==9.1\ntriton==3.4\n-e .\ntorchmetrics==1.9.0\n"
    assert list(lock.read_pins(text)) == [("torchmetrics", "1.9.0")]


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("a-1-cp313-cp313-manylinux_2_28_aarch64.whl", True),
        ("a-1-cp39-abi3-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp310-cp310-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp313-cp313t-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1-cp311-cp311-macosx_11_0_arm64.whl", False),
        ("a-1-cp311-cp311-win_amd64.whl", False),
        ("a-1-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl", False),
    ],
)
def test_wheels_for_linux_and_these_pythons_are_locked(wheel, fits):
    assert lock.fits(wheel) == fits


def test_the_source_is_locked_where_no_wheel_fits(monkeypatch):
    names = ["a-1-cp311-cp311-win_amd64.whl", "a-1.tar.gz"]
    files = [{"filename": name, "hashes": {"sha256": name}} for name in names]
    monkeypatch.setattr(lock, "files_of", lambda *_: iter(files))
    assert lock.hashes_of("index", "a", "1") == ["a-1.tar.gz"]
    monkeypatch.setattr(lock, "files_of", lambda *_: iter([]))
    with pytest.raises(ValueError, match=r"a==1: the index has no file for Linux"):
        lock.hashes_of("index", "a", "1")
