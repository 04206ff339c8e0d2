"""The documentation: links lead somewhere, the reference is whole, and the commands of README and
tutorials run and give what the pages show. `make docs` builds the pages; a warning is an error."""

import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import reference_pages
from nbclient import NotebookClient

from hpc_ecg.cli.command import build_parser
from hpc_ecg.cli.explain import NO_MAP
from hpc_ecg.cli.predict import SOME_REFUSED
from hpc_ecg.cli.sweep import EXIT_KILLED
from hpc_ecg.config.describe import describe_settings
from hpc_ecg.config.suggestions import RENAMED
from hpc_ecg.distributed.stop_signals import EXIT_REQUEUE
from hpc_ecg.distributed.watchdog import EXIT_CORRUPTED, EXIT_PEER_LOST
from hpc_ecg.ecg import files
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.signal import LEADS
from hpc_ecg.sweep.settings import SweepConfig
from hpc_ecg.training.settings import FinetuneConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TUTORIALS = ["af-cohort", "labels-from-events", "another-hospital"]
IGNORED = ("__pycache__", "site.sh")
SHELLS = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}
RAN: dict[str, str] = {}
"""What the commands of an earlier page printed: the README has some of a tutorial's."""
GENERATED = (DOCS / "reference" / "generated", DOCS / "tutorials" / "generated")
FOLDERS = {"SHARDS": "practice/shards", "RUN": "runs/first", "SWEEP": "runs/sweep"}
FOLDERS |= {"BUNDLE": "af-model"}
NOTEBOOK = DOCS / "tutorials" / "notebook.ipynb"


def run(command: list[str], folder: Path) -> str:
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": scripts, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def words_of(line: str) -> str:
    """The line without times and numbers, which differ between machines."""
    line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*(e[-+]\d+)?", "#", line)).strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as a clone of the project is: the commands name files in it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "tools", "slurm"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*IGNORED))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text())


@pytest.mark.docs
@pytest.mark.slow
@pytest.mark.parametrize("name", [*TUTORIALS, "../../README"])
def test_the_commands_of_a_page_run_and_give_what_it_shows(folder, name):
    follow(DOCS / "tutorials" / f"{name}.md", folder)


@pytest.mark.docs
@pytest.mark.slow
@pytest.mark.slurm
def test_the_commands_for_slurm_run_on_a_real_one(slurm, folder):
    follow(DOCS / "tutorials" / "slurm-sweep.md", folder)


@pytest.mark.docs
@pytest.mark.slow
def test_the_files_have_the_fields_that_the_reference_lists(folder):
    follow(DOCS / "tutorials" / "af-cohort.md", folder)
    sections = re.split(r"^## `(.+)`$", (DOCS / "reference" / "files.md").read_text(), flags=re.M)
    listed = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert len(listed) == 12
    for name, text in listed.items():
        where, _, file = name.partition("/")
        path = folder / FOLDERS[where] / file
        if path.suffix == ".jsonl":
            content = {event["event"] for event in map(json.loads, path.read_text().splitlines())}
            assert content <= fields_of(text)
        elif path.suffix == ".parquet":
            columns = pd.read_parquet(path).columns
            shown = {re.sub(r"^(label|group)\..*", r"\1.…", column) for column in columns}
            assert {re.sub(r"^af\.", "….", column) for column in shown} == fields_of(text), name
        else:
            check_fields(name, json.loads(path.read_text()), text)


def check_fields(name: str, content: dict, text: str) -> None:
    """The page's table has the keys of this content, and only these but for `only …`."""
    if name.endswith("operating_point.json"):
        content = content["af"]["youden"]
    if name.endswith("evaluation.json"):
        text, of_label = text.split("Of each label:")
        check_fields("label", content["labels"]["af"], of_label)
    optional = fields_of("\n".join(re.findall(r"^\|.*\| only .*\|$", text, re.MULTILINE)))
    assert fields_of(text) - optional <= content.keys() <= fields_of(text), name


def fields_of(text: str) -> set[str]:
    """What stands in backquotes in the first column of the tables."""
    rows = re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    return {field for row in rows for field in re.findall(r"`([^`]+)`", row)}


@pytest.mark.docs
@pytest.mark.slow
def test_the_notebook_runs_and_gives_what_it_shows(folder, monkeypatch):
    """HPC_ECG_WRITE_GOLDEN=1 writes its outputs again."""
    follow(DOCS / "tutorials" / "af-cohort.md", folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown = nbformat.read(NOTEBOOK, as_version=4)
    found = deepcopy(shown)
    about = {"metadata": {"path": folder}}
    NotebookClient(found, timeout=120, kernel_name="python3", resources=about).execute()
    for cell in found.cells:
        cell.metadata.clear()  # times
        if cell.cell_type == "code":
            cell.outputs = [richest(o) for o in cell.outputs if o.get("name") != "stderr"]
    if os.environ.get("HPC_ECG_WRITE_GOLDEN") == "1":
        nbformat.write(found, NOTEBOOK)
        shown = found
    assert [outputs_of(cell) for cell in found.cells] == [outputs_of(cell) for cell in shown.cells]


def richest(output):
    """Without the text that stands for a table or a picture."""
    if {"text/html", "image/svg+xml"} & output.get("data", {}).keys():
        del output.data["text/plain"]
    return output


def outputs_of(cell) -> list[str]:
    """Kinds of the outputs and, but for pictures, their words."""
    texts = []
    for output in cell.get("outputs", []):
        for kind, text in output.data.items():
            words = re.sub("<svg.*</svg>", "<svg>", text, flags=re.DOTALL)
            texts.append(f"{kind}: {words_of(words)}")
    return texts


def test_the_notebook_holds_pictures_and_is_small():
    text = NOTEBOOK.read_text()
    assert len(text) < 150_000 and "/home/" not in text and "/tmp/" not in text
    cells = nbformat.reads(text, as_version=4).cells
    kinds = {
        kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {})
    }
    assert kinds >= {"text/html", "image/svg+xml"}


def follow(page: Path, folder: Path) -> None:
    """Run the page's commands, and look for the lines that it shows."""
    printed = ""
    for kind, text in blocks(page):
        if kind in SHELLS and text not in RAN:
            RAN[text] = run([*SHELLS[kind], text], folder)
        if kind in SHELLS:
            printed = RAN[text]
        elif kind == "text":
            lines = {words_of(line) for line in printed.splitlines()}
            shown = [words_of(line) for line in text.splitlines()]
            assert [line for line in shown if line not in lines] == [], printed


def test_a_tutorial_shows_the_output_of_each_of_its_commands():
    for page in (DOCS / "tutorials").glob("*.md"):
        kinds = [kind for kind, _ in blocks(page) if kind != "python"]
        assert kinds == ["bash", "text"] * (len(kinds) // 2), page.name


def test_the_reference_has_every_setting_and_verb(tmp_path):
    reference_pages.write(tmp_path)
    settings, verbs = ((tmp_path / f"{name}.md").read_text() for name in ("settings", "verbs"))
    for schema in (FinetuneConfig, SweepConfig):
        for key, *_ in describe_settings(schema):
            assert f"\n`{key}`\n" in settings
    for verb in ("data shard", "predict", "sweep status", "explain"):
        assert f"\n## hpc-ecg {verb}\n\n```text\nusage: hpc-ecg {verb} " in verbs


def test_the_reader_that_the_page_on_formats_shows_reads(tmp_path, monkeypatch):
    ((_, text),) = [b for b in blocks(DOCS / "how-to" / "add-a-format.md") if b[0] == "python"]
    names: dict = {}
    exec(text, names)
    monkeypatch.setattr(files, "READERS", {".xyz": names["read_example"]})
    path, counts = tmp_path / "a.xyz", np.arange(24, dtype="<i2").reshape(2, 12)
    about = json.dumps({"leads": LEADS, "rate": 500, "unit": "uV"}).encode()
    path.write_bytes(about + b"\n" + counts.tobytes())
    recording = files.read_recording(path, ArrayLayout())
    assert recording.leads == LEADS and recording.sample_rate_hz == 500
    np.testing.assert_allclose(recording.signal_LS, counts.T / 1000)
    path.write_bytes(about.replace(b"uV", b"kg") + b"\n" + counts.tobytes())
    with pytest.raises(RecordError, match="unit 'kg' is no voltage"):
        files.read_recording(path, ArrayLayout())


def test_each_setting_and_verb_that_a_page_names_exists():
    known = {key for key, *_ in describe_settings(FinetuneConfig)}
    known |= {key for key, *_ in describe_settings(SweepConfig)} | {"optim", "tune", "grid"}
    known |= {f"run.{key}" for key in known} | set(RENAMED)
    verbs = {*reference_pages._names(build_parser(), ""), "help", "VERB"}
    for page in PAGES:
        if page.parent in GENERATED:
            continue
        text = page.read_text()
        for key in re.findall(r"(?<![\w.])((?:\w+\.)+\w+)=", text):
            plain = re.sub(r"^(grid|tune)\.|^(run\.)?files\.\w+$|^train\.stages\..*", "", key)
            is_theirs = key.startswith(("task.", "common", "model.", "dataset.", "distributed_"))
            assert plain in known | {""} or (page.name == "migrate.md" and is_theirs), (page, key)
        for verb in re.findall(r"hpc-ecg ([a-z]+)\b", text):
            assert verb in verbs, (page, verb)


def test_the_page_for_migrants_has_every_setting_that_a_message_translates():
    text = (DOCS / "how-to" / "migrate.md").read_text()
    assert [key for key in RENAMED if f"`{key}" not in text and f" {key}" not in text] == []


def test_the_page_of_exit_codes_has_those_of_the_code():
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "reference" / "exit-codes.md").read_text(), re.M)
    special = {EXIT_REQUEUE, EXIT_PEER_LOST, EXIT_CORRUPTED, EXIT_KILLED, SOME_REFUSED, NO_MAP}
    assert {int(code) for code in rows} == special | {0, 1, 2, 130}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short_and_links_lead_to_files(page):
    in_table = [line for line in page.read_text().splitlines() if not line.startswith("|")]
    if page.parent not in GENERATED:
        assert [line for line in in_table if len(line) > 100] == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text()
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")]
    assert [page for page in pages if page != "index" and f"\n{page}\n" not in contents] == []
