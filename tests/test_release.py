"""The release procedure of CONTRIBUTING, run once: what would be published is complete, and works
where there is nothing of this project but the wheel. Needs no network."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES

from hpc_ecg.version import __version__

ROOT = FIXTURES.parents[1]
PARTS = ("hpc_ecg", "configs", "docs", "slurm", "tests", "tools")
FILES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "generated", "site.sh")
pytestmark = [pytest.mark.docs, pytest.mark.slow]


def call(*words: object, **options) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, out: Path, *kinds: str) -> None:
    call(sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", out, source)


def members(wheel: Path) -> dict[str, str]:
    """Names of the files in a wheel, and their digests; without RECORD, which repeats them."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/RECORD")]
        return {name: sha256(archive.read(name)).hexdigest() for name in names}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "project"
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=NOT_SOURCE)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def dist(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("release") / "dist"
    build(source, out, "--sdist", "--wheel")
    return out


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    return dist / f"hpc_ecg-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and, through a path, the packages that it depends on."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    options = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A line of a .pth is a path; the .pth files in it, such as that of our own tree, do not count.
    (packages / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin"


def test_two_files_are_made_and_their_description_can_be_shown(dist, wheel):
    assert {path.name for path in dist.iterdir()} == {wheel.name, f"hpc_ecg-{__version__}.tar.gz"}
    call(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())


def test_the_wheel_has_every_file_of_the_package_and_no_other(source, wheel):
    """Those of configs/, too, which the package finds under another name."""
    package = source / "hpc_ecg"
    built_in = (package / "config" / "built_in_files").rglob("*.yaml")
    files = [path for path in (*package.rglob("*"), *built_in) if path.is_file()]
    expected = {str(path.relative_to(source)) for path in files}
    assert {Path(name).suffix for name in expected} >= {".css", ".jinja", ".json", ".txt", ".yaml"}
    names = set(members(wheel))
    about = {name for name in names if name.startswith(f"hpc_ecg-{__version__}.dist-info/")}
    assert names - about == expected
    assert {Path(name).name for name in about} >= {"LICENSE", "METADATA", "entry_points.txt"}


def test_the_source_archive_makes_the_same_wheel(dist, wheel, tmp_path):
    with tarfile.open(dist / f"hpc_ecg-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    build(tmp_path / f"hpc_ecg-{__version__}", tmp_path / "again", "--wheel")
    assert members(tmp_path / "again" / wheel.name) == members(wheel)


def test_it_works_where_nothing_else_of_the_project_is(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    options = {"cwd": tmp_path, "env": environment | {"OMP_NUM_THREADS": "1"}}
    where = call(installed / "python", "-c", "import hpc_ecg; print(hpc_ecg.__file__)", **options)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert call(installed / "hpc-ecg", "--version", **options).strip() == __version__
    assert "ssl_new_head" in call(installed / "hpc-ecg", "strategies", **options)
    run = FIXTURES / "v0_1" / "runs" / "finished"
    call(installed / "hpc-ecg", "bundle", run, "model", **options)
    tested = call(installed / "hpc-ecg", "predict", "model", "--self-test", **options)
    assert "self-test passed: logits of 3 ECGs are within" in tested


def test_all_texts_name_one_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in (__version__, "Unreleased") and __version__ in headings
