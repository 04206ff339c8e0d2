"""What `make demo` does beside running commands; `.ci/run` runs it, and what it suggests."""

import shlex
from importlib import import_module

import pandas as pd
import pytest

from hpc_ecg.cli import build_parser

demo = import_module("demo")  # the demo's own folder of this name would change how imports sort


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo._clear(demo.OUT)
    return demo.OUT


def suggested(printed: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("hpc-ecg ")]


def test_the_demo_suggests_commands_that_exist_for_the_best_strategy(folder, capsys):
    (folder / "inbox").mkdir()
    (folder / "inbox" / "r00001.hea").touch()
    demo._suggest("ssl_new_head")
    printed = capsys.readouterr().out
    commands = suggested(printed)
    assert [command[0] for command in commands] == ["predict", "explain", "bundle"]
    for command in commands:
        build_parser().parse_args(command)
        assert "--strategy ssl_new_head" in " ".join(command)
    assert printed.rstrip().endswith("demo/sweep/report/index.html")


def test_what_the_demo_made_and_suggested_may_be_replaced_and_nothing_else(folder):
    for name in ("source", "target-shards", "base_ssl.pt", "risks.csv", "why.html", "af-model"):
        (folder / name).mkdir()
    demo._clear(folder)
    assert [path.name for path in folder.iterdir()] == [demo.MARKER]
    (folder / "notes.txt").touch()
    with pytest.raises(SystemExit, match=r"holds notes\.txt, which no demo made"):
        demo._clear(folder)


def test_the_ceiling_is_the_auroc_of_the_true_risk_on_test_patients_alone(folder):
    for name in ("target", "target-shards"):
        (folder / name).mkdir()
    records = [f"r{i}" for i in range(6)]
    splits = ["test"] * 4 + ["train"] * 2
    index = pd.DataFrame({"record": records, "split": splits})
    index.to_parquet(folder / "target-shards" / "index.parquet")
    table = pd.DataFrame({"record": records, "af_5y": [0, 0, 1, 1, 1, 0]})
    table.to_csv(folder / "target" / "table.csv", index=False)
    truth = pd.DataFrame({"record": records, "true_risk": [0.1, 0.4, 0.3, 0.8, 0.0, 0.9]})
    truth.to_csv(folder / "target" / "truth.csv", index=False)
    assert demo.ceiling(folder) == 0.75  # three of four pairs are in order
