"""Configurations and strategies ship with the package and are found from any folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hpc_ecg.cli import main
from hpc_ecg.config.built_in import FOLDER, find_config, list_strategies
from hpc_ecg.config.load import read_yaml
from hpc_ecg.sweep.grid import load_sweep

ROOT = Path(__file__).parent.parent
WORDS = ["sweep_dir=s", "run.data.shards=d", "run.files.base_ssl=b", "run.files.wcr_afib_5y=w"]


def test_the_built_in_files_are_those_of_configs():
    ours = {str(path.relative_to(ROOT / "configs")) for path in ROOT.glob("configs/**/*.yaml")}
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.glob("**/*.yaml")} == ours


@pytest.mark.parametrize("name", ["finetune.yaml", "configs/finetune.yaml", "configs/demo.yaml"])
def test_a_built_in_configuration_is_found_where_no_such_file_lies(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert read_yaml(name).values == read_yaml(str(ROOT / "configs" / Path(name).name)).values


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("finetune.yaml").write_text("seed: 7\n")
    assert read_yaml("finetune.yaml").values == {"seed": 7}


@pytest.mark.parametrize("name", ["../configs/finetune.yaml", "/finetune.yaml", "none.yaml"])
def test_nothing_else_is_taken_for_a_built_in_file(name):
    assert find_config(name) is None


def test_every_strategy_and_option_has_its_line(capsys):
    assert all(text for _, text in list_strategies())
    assert main(["strategies"]) == 0
    printed = capsys.readouterr().out
    names = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert {"ssl_new_head", "random", "+ema"} <= set(names)
    assert max(map(len, printed.splitlines())) <= 80


def test_a_sweep_in_an_empty_folder_finds_the_strategies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = load_sweep([], [*WORDS, "strategies=[ssl_new_head,random+ema]", "seeds=[0]"])
    assert [cell.name for cell in sweep.cells] == ["ssl_new_head/seed-0", "random+ema/seed-0"]
    assert sweep.cells[1].run.train.average == "ema"


def test_strategies_of_the_user_stand_beside_the_built_in_ones_and_come_first(tmp_path):
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "mine.yaml").write_text("init: {head: new}\n")
    (folder / "random.yaml").write_text("optim: {lr: 0.5}\n")
    file = tmp_path / "sweep.yaml"
    file.write_text("strategies: [mine, random, ssl_new_head]\nseeds: [0]\n")
    cells = load_sweep([str(file)], WORDS).cells
    assert [cell.arm.name for cell in cells] == ["mine", "random", "ssl_new_head"]
    assert cells[1].run.optim.lr == 0.5


def test_a_sweep_that_is_opened_from_elsewhere_finds_its_files(tmp_path, monkeypatch):
    project, other = tmp_path / "project", tmp_path / "other"
    (project / "sweep").mkdir(parents=True)
    (project / "shards").mkdir()
    other.mkdir()
    (project / "sweep" / "sweep.yaml").write_text(
        "strategies: [ssl_new_head]\nseeds: [0]\nsweep_dir: sweep\n"
        "run: {data: {shards: shards}, files: {base_ssl: base.pt}}\n"
    )
    environment = {"path": str(project), "from_this_folder": ".."}
    (project / "sweep" / "environment.json").write_text(
        f'{{"working_directory": {str(environment).replace(chr(39), chr(34))}}}'
    )
    monkeypatch.chdir(other)
    [cell] = load_sweep(["../project/sweep/sweep.yaml"], ["sweep_dir=../project/sweep"]).cells
    assert cell.run.data.shards == str(project / "shards")
    assert cell.run.init.checkpoint == str(project / "base.pt")
    monkeypatch.chdir(project)
    [cell] = load_sweep(["sweep/sweep.yaml"], []).cells
    assert cell.run.data.shards == "shards"


@pytest.mark.docs
@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(tmp_path):
    source = tmp_path / "source"
    for name in ("hpc_ecg", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); "
        "import hpc_ecg; from hpc_ecg.cli import main; print(hpc_ecg.__file__); "
        "print(main(['strategies']), "
        "main(['sweep', 'strategies=[ssl_new_head]', 'sweep_dir=s', 'run.data.shards=d', "
        "'run.files.base_ssl=b']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "empty", capture_output=True, text=True
    )
    assert str(tmp_path / "installed") in result.stdout.splitlines()[0]
    assert result.stdout.splitlines()[-1] == "0 2" and "ssl_new_head" in result.stdout
    assert "data.shards=d does not exist" in result.stderr  # the strategy was found
