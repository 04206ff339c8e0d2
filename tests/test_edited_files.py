"""Edits of every JSON, YAML and Parquet file of runs and sweeps: the readers' result stays the
same, or one line says which file is damaged."""

import hashlib
import json
import shutil
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import V0_1

from hpc_ecg.comparison.figures import _series
from hpc_ecg.comparison.reference_models import read_baselines, read_soups
from hpc_ecg.comparison.results import read_results
from hpc_ecg.comparison.selected import select_models
from hpc_ecg.config.load import to_yaml
from hpc_ecg.sweep.folder import read_tuning
from hpc_ecg.sweep.status import read_status
from hpc_ecg.sweep.submissions import last_submissions
from hpc_ecg.training.evaluate import fitted_on_validation
from hpc_ecg.training.open_run import finished_run, load_run
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow

RUN = "a/seed-0"
FILES = [
    *("sweep.yaml", "tuning.json", "jobs/hpc_ecg-0000-x.json", "baselines/baselines.json"),
    *("baselines/age_sex/test.parquet", "baselines/age_sex/valid.parquet"),
    *("a/arm.json", "a/soup/soup.json", "a/soup/evaluation.json", "a/soup/predictions.parquet"),
]
FILES += [f"{RUN}/predictions/{split}.parquet" for split in ("valid", "test")]
FILES += [f"{RUN}/best/{name}.json" for name in ("operating_point", "calibration")]
FILES += [f"{RUN}/{name}" for name in ("config.yaml", "metrics.jsonl")]
FILES += [f"{RUN}/{name}.json" for name in ("finished", "evaluation", "environment", "init_report")]
DEEP: object = 0
for _ in range(60):
    DEEP = [DEEP]
VALUES = [None, True, False, 0, -1, 1, 2.5, 1e308, 10**18, 10**40, float("nan"), float("inf")]
VALUES += ["", "x" * 500, "../x", "1", "${oc.env:HOME}", [], {}, [None], {"a": {"b": 1}}, DEEP]
COLUMNS = ["drop", "text", "negate", "nan", "rename", "swap", "twice", "rows", "order", "nested"]
PROFILE = settings(
    derandomize=True,
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def sweep(made_sweep, tmp_path_factory):
    """A sweep of two finished runs, with its soup, baselines, tuning and notes of jobs."""
    folder = shutil.copytree(made_sweep, tmp_path_factory.mktemp("edited") / "made")
    write(folder / "s/a/arm.json", {"base": "a", "varied": {"optim.lr": 0.001}})
    trial = {"values": {"optim.lr": 0.001}, "score": 0.5, "metric": "auroc"}
    write(folder / "s/tuning.json", {"a": {"chosen": trial["values"], "trials": [trial]}})
    write(folder / "s/jobs/hpc_ecg-0000-x.json", {"tasks": ["a/seed-0"], "ids": ["17_0"]})
    return folder / "s"


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


# Edits


def places(value, path=()):
    """The path of every value inside of a value of JSON."""
    inner = value.items() if isinstance(value, dict) else ()
    for key, below in enumerate(value) if isinstance(value, list) else inner:
        yield (*path, key)
        yield from places(below, (*path, key))


def edited(value, place, new):
    """The value with `new` at one of its places; `places` counts around. DELETE removes it."""
    value = json.loads(json.dumps(value))
    known = list(places(value))
    *path, last = known[place % len(known)]
    inner = value
    for key in path:
        inner = inner[key]
    if new == "DELETE":
        del inner[last]
    else:
        inner[last] = new
    return value


def edit_parquet(path, kind, place):
    table = pd.read_parquet(path)
    name = table.columns[place % len(table.columns)]
    other = table.columns[(place + 1 + place // 7) % len(table.columns)]
    match kind:
        case "drop":
            table = table.drop(columns=name)
        case "text":
            table[name] = [f"{value} x" for value in table[name]]
        case "negate":
            numeric = table.select_dtypes("number").columns
            table[numeric] = -table[numeric]
        case "nan":
            table[name] = np.nan
        case "rename":
            table = table.rename(columns={name: f"{name}.label"})
        case "swap":
            table = table.rename(columns={name: other, other: name})
        case "twice":
            table = pd.concat([table, table.iloc[:1]])
        case "rows":
            table = table.iloc[: len(table) // 2]
        case "order":
            table[name] = table[name].to_numpy()[::-1]
        case "nested":
            table[name] = [[1, 2]] * len(table)
    table.to_parquet(path, index=False)


def edit(path, place, new, kind):
    if path.suffix == ".parquet":
        edit_parquet(path, kind, place)
    elif path.suffix == ".yaml":
        content = edited(yaml.safe_load(path.read_text()), place, new)
        path.write_text(yaml.safe_dump(content))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        lines[place % len(lines)] = json.dumps(
            edited(json.loads(lines[place % len(lines)]), 0, new)
        )
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(edited(json.loads(path.read_text()), place, new)))


# What the verbs read


def report(folder):
    """Numbers of each run that the report uses; a run that is left out is not among them."""
    runs, problems = read_results(folder)
    assert all("\n" not in problem.reason for problem in problems)
    return {run.name: numbers(run) for run in runs}


def numbers(run):
    (model,) = select_models([run])
    series = [_series(run, *keys) for keys in (("eval", "score"), ("step", "loss"))]
    facts = run.finished, run.base, run.varied, model.evaluation, model.points, series
    fixed = {k: v for k, v in run.settings.items() if k.startswith(("optim.", "data.labels"))}
    return digest((facts, sorted(fixed.items()), arrays(run.test)))


def digest(value):
    """Short enough for the message of a test that fails."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def arrays(predictions):
    return [value.tolist() for value in astuple(predictions) if isinstance(value, np.ndarray)]


def references(folder):
    """The report's baselines and soups."""
    if not (runs := read_results(folder)[0]):
        raise ValueError("no run is left")
    baselines = read_baselines(folder / "baselines", runs[-1].test)
    models = {**baselines.test, **{f"valid {k}": v for k, v in baselines.valid.items()}}
    models |= read_soups(runs[-1:], folder)
    return {name: digest(arrays(model)) for name, model in models.items()}


def evaluate(folder):
    run = finished_run(str(folder / RUN))
    config = load_run(str(run.path), [])
    run.check_same_config(to_yaml(config))
    return repr((config.optim, config.seed, config.data.labels, fitted_on_validation(run.best, ())))


def resume(folder):
    """What `finetune` on the same folder does first."""
    run, config = RunFolder(folder / RUN), load_run(str(V0_1 / "runs/finished"), [])
    try:
        run.check_same_config(to_yaml(config))
    except ValueError as error:
        assert "belongs to another configuration" in str(error) or str(run.path) in str(error)
    run._check_same_sources(
        {"data_index_sha256": INDEX[0], "precision": "fp32"}, {"checkpoint": None}
    )
    return run.is_finished()


INDEX = [json.loads((V0_1 / "shards/dataset.json").read_text())["index_sha256"]]


def status(folder):
    cells = {cell.name: cell for cell in read_status(folder)}
    return {n: cell for n, cell in cells.items() if not cell.text.endswith("is damaged")}


def export(folder):
    return repr(read_checkpoint(folder / RUN).provenance)


def tuning(folder):
    return read_tuning(folder)


def submissions(folder):
    return last_submissions(folder)


READERS = [report, references, evaluate, resume, status, export, tuning, submissions]
FREE = {
    # what a reader shows as it is, or what names other work than what is there
    "tuning.json": [tuning],
    "jobs/hpc_ecg-0000-x.json": [submissions, status],
    "sweep.yaml": [status],
    "a/arm.json": [report],
    f"{RUN}/evaluation.json": [],
}


def outcome(reader, folder):
    """The result, or None where one line refuses."""
    try:
        return reader(folder)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error).strip() and len(str(error)) < 1500, str(error)
        return None


@pytest.fixture(scope="module")
def expected(sweep):
    found = {reader: outcome(reader, sweep) for reader in READERS}
    assert None not in found.values()
    return found


EDITS = st.tuples(
    st.integers(0, 400), st.sampled_from(["DELETE", *VALUES]), st.sampled_from(COLUMNS)
)


@pytest.mark.parametrize("name", FILES)
@settings(PROFILE, max_examples=8)
@given(change=EDITS)
def test_an_edited_file_is_refused_or_changes_nothing(sweep, expected, name, change):
    path = sweep / name
    before = path.read_bytes()
    try:
        edit(path, *change)
        for reader in READERS:
            found = outcome(reader, sweep)
            if found is None or reader in FREE.get(name, []):
                continue
            if isinstance(found, dict):  # runs and models that are left out are named elsewhere
                assert found.items() <= expected[reader].items(), (reader, change)
            else:
                assert found == expected[reader], (reader, change)
    finally:
        path.write_bytes(before)
