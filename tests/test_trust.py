"""A file grants no right: what runs, sweeps and YAML of others say cannot run commands, read the
environment, lead out of their folder, or take memory and time without bound."""

import json
import os
import pickle
import shutil

import pytest
import yaml
from recorded import WORDS, copy_of_0_1, hpc_ecg

from hpc_ecg.config.load import load_config
from hpc_ecg.jobs.settings import SlurmConfig
from hpc_ecg.reporting.plots import Group, line_plot
from hpc_ecg.safe_reading import parse_json, read_json, read_settings_file
from hpc_ecg.sweep.folder import expected_cells, read_events
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.submissions import last_submissions
from hpc_ecg.training.open_run import load_run
from hpc_ecg.training.settings import FinetuneConfig

RUN, SWEEP = "runs/finished", "sweeps/finished"


@pytest.fixture
def old(tmp_path):
    return copy_of_0_1(tmp_path)


def edit(path, **values):
    """Set dotted keys (with __ for the dot) in a YAML file."""
    content = yaml.safe_load(path.read_text())
    for key, value in values.items():
        *sections, name = key.split("__")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    path.write_text(yaml.safe_dump(content))


def pipe(folder):
    """A command that leaves a mark, and then gives the files of the folder's shards."""
    return f"pipe:touch {folder}/mark; cat {folder}/shards/{{name}}"


# Commands


@pytest.mark.parametrize(
    "words", [["evaluate", RUN], ["evaluate", RUN, "--shards", "shards"], ["report", SWEEP]]
)
def test_a_folder_that_allows_itself_a_command_runs_none(old, words, capsys):
    for config in [old / RUN / "config.yaml", *(old / SWEEP).glob("*/seed-*/config.yaml")]:
        edit(config, data__shards=pipe(old), data__allow_pipe=True)
    shutil.rmtree(old / SWEEP / "baselines")
    code = hpc_ecg(old, *words, *(["--replicates", "200"] if words[0] == "report" else []))
    assert not (old / "mark").exists()
    said = capsys.readouterr().err
    if words == ["evaluate", RUN]:
        assert code == 2 and said.count("\n") == 2  # not verified, and refused
    if "--shards" not in words:
        assert "give data.allow_pipe=true on the command line" in said


@pytest.mark.parametrize("verb", ["finetune", "doctor"])
def test_a_yaml_file_cannot_allow_a_command_and_the_command_line_can(old, verb, capsys):
    content = {"data": {"shards": pipe(old), "allow_pipe": True, "read": "stream"}}
    (old / "sent.yaml").write_text(yaml.safe_dump(content))
    words = [word for word in WORDS["run"] if not word.startswith("data.shards")]
    words.append("init.checkpoint=random")
    assert hpc_ecg(old, verb, "sent.yaml", *words, "run_dir=new") == 2
    assert not (old / "mark").exists()
    assert "on the command line" in "".join(capsys.readouterr())
    config = load_config(
        FinetuneConfig, [str(old / "sent.yaml")], ["run_dir=r", "data.allow_pipe=true"]
    )
    assert config.data.allow_pipe


@pytest.mark.slow
def test_the_command_line_allows_a_command_for_a_run_its_evaluation_and_the_report(old):
    edit(old / RUN / "config.yaml", data__shards=pipe(old))
    stage = ["data.read=stream", f"data.stage_dir={old}"]
    assert not load_run(str(old / RUN), stage[1:]).data.allow_pipe
    assert load_run(str(old / RUN), ["data.allow_pipe=true"]).data.allow_pipe
    for config in (old / SWEEP).glob("*/seed-*/config.yaml"):
        edit(config, data__shards=pipe(old))
    words = ["report", SWEEP, "--no-baselines", "--replicates", "200"]
    assert hpc_ecg(old, *words) == 0 and not (old / "mark").exists()
    assert hpc_ecg(old, *words, "--allow-pipe") == 0 and (old / "mark").exists()


ALLOWING = {
    "shared": {"run": {"data": {"allow_pipe": True}}},
    "dotted": {"run": {"data.allow_pipe": True}},
    "grid": {"grid": {"data.allow_pipe": [True]}},
    "tune": {"tune": {"data": {"allow_pipe": [True, False]}}},
}


@pytest.mark.parametrize("place", ALLOWING)
def test_no_part_of_a_sweeps_files_allows_a_command(tmp_path, place):
    base = {"sweep_dir": str(tmp_path / "s"), "strategies": ["random"]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(base | ALLOWING[place]))
    sweep = load_sweep([str(tmp_path / "s.yaml")], ["run.data.shards=x"])
    assert not any(cell.run.data.allow_pipe for cell in sweep.cells)
    tried = sweep.run_of("random", {"data.allow_pipe": True}, 0, "x")
    assert not tried.data.allow_pipe


def test_a_strategy_cannot_allow_a_command(tmp_path):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies/sent.yaml").write_text("data: {allow_pipe: true}\n")
    (tmp_path / "s.yaml").write_text("sweep_dir: s\nstrategies: [sent]\n")
    words = [str(tmp_path / "s.yaml")], ["run.data.shards=x"]
    assert not load_sweep(*words).cells[0].run.data.allow_pipe
    words[1].append("run.data.allow_pipe=true")
    assert load_sweep(*words).cells[0].run.data.allow_pipe


def test_a_cell_keeps_what_the_command_line_of_the_sweep_allowed(tmp_path):
    words = ["sweep_dir=s", "strategies=[random]", "run.data.shards=x", "run.data.allow_pipe=true"]
    cells = load_sweep([], words).cells
    assert all(pickle.loads(pickle.dumps(cell.run)).data.allow_pipe for cell in cells)


@pytest.mark.parametrize("key", ["setup", "options"])
def test_a_sweeps_folder_cannot_give_lines_to_the_shell(tmp_path, key):
    value = ["touch mark"] if key == "setup" else {"prolog": "x"}
    file = tmp_path / "sweep.yaml"
    content = {"sweep_dir": "s", "strategies": ["random"], "slurm": {key: value}}
    file.write_text(yaml.safe_dump(content | {"run": {"data": {"shards": "x"}}}))
    with pytest.raises(ValueError, match=rf"sweep.yaml has slurm.{key}.*give slurm.{key}=… again"):
        load_sweep([str(file)], [], of_folder=True)
    again = f"slurm.{key}=" + ("[module load x]" if key == "setup" else "{exclude: n3}")
    slurm = load_sweep([str(file)], [again], of_folder=True).config.slurm
    assert getattr(slurm, key) == (["module load x"] if key == "setup" else {"exclude": "n3"})
    assert getattr(load_sweep([str(file)], []).config.slurm, key) == value


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "options"])
def test_a_line_break_cannot_end_a_line_of_the_batch_script(key):
    text = "cpu\ntouch mark"
    with pytest.raises(ValueError, match="has a line break"):
        SlurmConfig(**{key: {"exclude": text} if key == "options" else text})


# The environment

RESOLVERS = [
    "${oc.env:HPC_ECG_SECRET}",
    "${oc.env:HPC_ECG_SECRET,none}",
    "${ oc.env : HPC_ECG_SECRET }",
    "s3://b/${oc.env:HPC_ECG_SECRET}/x",
    "${oc.decode:${oc.env:HPC_ECG_SECRET}}",
    "${oc.create:{a:1}}",
    "${oc.select:seed}",
    "${oc.dict.keys:files}",
    "${${files.a}:HPC_ECG_SECRET}",
    "${oc.${files.a}:HPC_ECG_SECRET}",
    "${files.${oc.env:HPC_ECG_SECRET}}",
]


@pytest.mark.parametrize("text", RESOLVERS)
@pytest.mark.parametrize("place", ["value", "key", "item", "section", "note", "grid", "override"])
def test_no_setting_reads_the_machine(tmp_path, monkeypatch, text, place):
    monkeypatch.setenv("HPC_ECG_SECRET", "s3cr3t")
    content = {
        "value": {"run": {"data": {"shards": text}}},
        "key": {"run": {"files": {text: "x"}}},
        "item": {"run": {"data": {"labels": ["a", text]}}},
        "section": {"run": text},
        "note": {"note": text},
        "grid": {"grid": {"data.label_table": [text]}},
        "override": {},
    }[place]
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"sweep_dir": "s", "strategies": ["random"]} | content))
    words = [f"run.data.label_table={text}"] if place == "override" else []
    with pytest.raises(ValueError, match="may only name another setting") as refused:
        load_sweep([str(file)], ["run.files.a=oc.env", *words])
    assert "s3cr3t" not in str(refused.value) and "\n" not in str(refused.value)
    assert str(file) in str(refused.value) or place == "override"


def test_a_value_from_a_file_of_results_is_not_resolved_either(tmp_path):
    sweep = load_sweep([], ["sweep_dir=s", "strategies=[random]", "run.data.shards=x"])
    with pytest.raises(ValueError, match="may only name another setting"):
        sweep.run_of("random", {"data.label_table": "${oc.env:HOME}"}, 0, "x")


# Names and texts


@pytest.mark.parametrize("name", ["../out", "/etc", "a/../../out", "..", "a\nb", "", 5, None, []])
def test_a_name_in_a_sweeps_files_stays_below_its_folder(tmp_path, name):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"strategies": [name], "seeds": [0]}))
    with pytest.raises(ValueError, match=r"sweep.yaml is damaged: .* is no name of a folder"):
        expected_cells(tmp_path)
    (tmp_path / "jobs").mkdir()
    note = {"tasks": [name], "ids": []}
    (tmp_path / "jobs/hpc_ecg-0000-x.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match=r"x.json is damaged: .* is no name of a folder"):
        last_submissions(tmp_path)


@pytest.mark.parametrize("job_id", ["--format=%all", "1;x", "../1", -1, {}])
def test_a_job_in_a_sweeps_notes_is_a_number_of_slurm(tmp_path, job_id):
    (tmp_path / "jobs").mkdir()
    note = {"tasks": ["a/seed-0"], "ids": [job_id]}
    (tmp_path / "jobs/n.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match="is no job"):
        last_submissions(tmp_path)


@pytest.mark.parametrize("text", ["[/red] failed", "[link=x]a", "\x1b[2Jgone", ":skull:"])
def test_status_shows_a_reason_as_it_is_without_control_characters(old, capsys, text):
    (old / SWEEP / "random/seed-0/error.txt").write_text(f"log: x\n{text}\n")
    assert hpc_ecg(old, "sweep", "status", SWEEP) == 0
    shown = capsys.readouterr().out
    assert text.replace("\x1b", " ").strip() in shown and "\x1b" not in shown


@pytest.mark.parametrize("name", [r"$\nosuch{", "a$b", "$x$", "<b>&"])
def test_a_name_in_a_figure_is_text(name):
    svg = line_plot([Group(name=name, bold=([0, 1], [0, 1]))], name="x", xlabel="x", ylabel="y")
    drawn = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"{drawn}</text>" in svg


def test_nothing_is_replaced_in_a_folder_that_a_link_of_the_sweep_leads_to(old, capsys):
    (old / "mine").mkdir()
    (old / "mine/table.csv").write_text("mine")
    (old / SWEEP / "report").symlink_to(old / "mine")
    assert hpc_ecg(old, "report", SWEEP, "--replicates", "200", "--no-baselines") == 2
    assert "is a link" in capsys.readouterr().err
    assert (old / "mine/table.csv").read_text() == "mine"


# Memory and time


def laughs(levels, merge=""):
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for k in range(levels):
        inner = f"<<: [*a{k}, *a{k}, *a{k}]" if merge else f"p: *a{k}, q: *a{k}, r: *a{k}"
        lines.append(f"a{k + 1}: &a{k + 1} {{{inner}}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        laughs(40),
        laughs(40, merge="yes"),
        "a: " + "[" * 5000,
        "a: " + "{b: " * 5000,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: " + "9" * 5000,
        "a: 2024-13-45",
        "a: \xff".encode("latin-1"),
        "# " + "x" * (1 << 20),
        "- 1",
    ],
)
def test_yaml_of_others_ends_in_one_line(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"c\.yaml") as settings:
        read_settings_file(file)
    with pytest.raises(ValueError, match=r"c\.yaml") as config:
        load_config(FinetuneConfig, [str(file)], [])
    assert "\n" not in f"{settings.value}{config.value}"
    assert len(str(config.value)) < 300


def test_anchors_and_merges_of_a_usual_size_are_read(tmp_path):
    file = tmp_path / "c.yaml"
    text = "run_dir: r\ndata: &d {shards: x}\noptim: &o {lr: 0.1}\n"
    file.write_text(text)
    assert load_config(FinetuneConfig, [str(file)], []).optim.lr == 0.1
    file.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\n")
    assert read_settings_file(file)["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, '{"a":' * 100_000, '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}'),
        *('{"a": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', "", "{", '"\\ud8', b"\xff\xfe"),
    ],
)
def test_json_of_others_ends_in_one_line_that_names_the_file(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"x\.json is damaged") as refused:
        read_json(file)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    file.write_bytes(b'{"event": "step", "step": 1}\n' + file.read_bytes() + b"\n")
    try:
        assert [event["step"] for event in read_events(file)] == [1]  # a torn line
    except ValueError as error:
        assert "x.json is damaged" in str(error)


def test_numbers_of_json_stay_what_they_are():
    assert parse_json("[1, -2.5, 1e-300, 9223372036854775807]") == [1, -2.5, 1e-300, 2**63 - 1]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "finished.json")
    with pytest.raises(ValueError, match="expected a regular file"):
        read_json(tmp_path / "finished.json")
