"""Every JSON file that a report reads: a field of the wrong type ends in one line that names it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_abstention import GOOD
from test_compare import edit_evaluation, make_run, make_sweep, make_test_set
from test_left_out_sites import fake_sweep

from hpc_ecg.cli import main
from hpc_ecg.comparison import baselines, results, run_records
from hpc_ecg.comparison.evidence import read_evaluation
from hpc_ecg.comparison.reference_models import read_baselines
from hpc_ecg.comparison.results import read_results
from hpc_ecg.evaluation.covariates import LOGIT
from hpc_ecg.hashing import DIGESTS, SHA256, sha256_of_value, write_record
from hpc_ecg.inference import audit
from hpc_ecg.inference.audit import read_audit
from hpc_ecg.sweep.folder import read_optional
from hpc_ecg.training.run_folder import WEIGHTS, RunFolder

WRONG = (None, "x", 3, [True], {"x": True})


def example(kind):
    """A value of this kind; of every optional field, one is there."""
    if isinstance(kind, dict):
        fields = {"af" if key == "*" else key.removesuffix("?"): kind[key] for key in kind}
        return {name: example(inner) for name, inner in fields.items()}
    if isinstance(kind, list):
        return [example(kind[0])]
    return next(v for v in (0.5, 1, "x", {}, []) if isinstance(v, kind))


def fields(kind, value, place=()):
    """Place and kind of every value that a kind speaks of."""
    if isinstance(kind, list):
        for number, item in enumerate(value):
            yield (*place, number), kind[0]
            yield from fields(kind[0], item, (*place, number))
    for key in kind if isinstance(kind, dict) else ():
        for name in value if key == "*" else {key.removesuffix("?")} & value.keys():
            yield (*place, name), kind[key]
            yield from fields(kind[key], value[name], (*place, name))


def fits(kind, value):
    return isinstance(value, type(kind) if isinstance(kind, dict | list) else kind)


def edits(kinds, content, values=WRONG):
    """Each field, with each value that is not of its kind."""
    for place, kind in fields(kinds, content):
        for wrong in [value for value in values if not fits(kind, value)]:
            changed = json.loads(json.dumps(content))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = wrong
            yield place, wrong, changed


def seal_again(path, content, digests):
    """As `write_record` does, without waiting for the disk."""
    record = content | {DIGESTS: digests}
    path.write_text(json.dumps(record | {SHA256: sha256_of_value(record)}))


def combined():
    fit = example(run_records.FIT)
    terms = [{"name": n, "mean": 0.5, "sd": 1, "per_sd": fit["terms"][0]["per_sd"]} for n in "ab"]
    terms = [term | {"name": name} for term, name in zip(terms, (LOGIT, "age"), strict=True)]
    covariates = [{"name": "age", "mean": 60, "sd": 9.5}]
    content = example(run_records.COMBINED) | {"covariates": covariates}
    return content | {"labels": {"af": fit | {"terms": terms}}}


def updated():
    return example(run_records.UPDATED) | {"tests": {"af": example(run_records.TEST)}}


def abstention():
    row = example(run_records.KEPT) | {"score": "distance"}
    return GOOD | {"curve": [row]}


RULE = {"score": str, "percentiles": [int | float], "curve": [run_records.KEPT]}
UPDATED = run_records.UPDATED | {"tests": {"*": run_records.TEST}}
READ = {
    "evaluation.json": (
        run_records.EVALUATION,
        lambda: example(run_records.EVALUATION),
        lambda run: read_evaluation(SimpleNamespace(folder=RunFolder(run), is_verified=True)),
    ),
    "combine.json": (run_records.COMBINED, combined, run_records.read_combined),
    "abstention.json": (RULE, abstention, run_records.read_abstention),
    "update.json": (UPDATED, updated, lambda run: run_records.read_update(RunFolder(run))),
    "audit.json": (
        {"labels": {"*": audit.FOUND}},
        lambda: example({"labels": {"*": audit.FOUND}}),
        read_audit,
    ),
    "calibration.json": (
        {"*": dict},
        lambda: {"af": {"slope": 1.2, "kind": "platt"}},
        lambda run: read_optional(run / "calibration.json", {"*": dict}),
    ),
    "baselines.json": (
        baselines.NOTE,
        lambda: {"made": ["none"], "left_out": {"age_sex": "no age"}},
        lambda folder: read_baselines(folder, None),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_field_of_the_wrong_type_is_refused_by_the_files_name(tmp_path, name):
    kinds, make, read = READ[name]
    weights, path = tmp_path / WEIGHTS, tmp_path / name
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    content, tried = make(), 0
    write_record(path, content, [weights])
    digests = json.loads(path.read_text())[DIGESTS]
    assert read(tmp_path) or name == "baselines.json"
    for place, wrong, changed in edits(kinds, content):
        seal_again(path, changed, digests)
        with pytest.raises(ValueError, match=name) as refused:
            read(tmp_path)
            pytest.fail(f"{place} as {wrong!r} was read")
        assert "\n" not in str(refused.value), place
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize("name", ["finished", "init_report", "environment"])
def test_a_run_with_a_wrong_field_is_left_out_with_the_files_name(tmp_path, name):
    folder = tmp_path / "a" / "seed-0"
    make_run(folder, make_test_set(12), 1.0, 0)
    path = folder / f"{name}.json"
    content = json.loads(path.read_text())
    more = {"finished": {"energy_kwh": 1.0}, "init_report": {"signal": {"spec": None}}}
    content |= more.get(name, {})
    kinds = {"finished": results.FINISHED, "init_report": results.INIT_REPORT}
    kinds = kinds.get(name, {"data_index_sha256": str})
    for place, wrong, changed in edits(kinds, content, ([True],)):
        path.write_text(json.dumps(changed))
        runs, (problem,) = read_results(tmp_path)
        assert not runs and path.name in problem.reason, (place, wrong)
    for spec in (3, [], {"leads": "I"}):
        path.write_text(json.dumps(content | {"signal": {"spec": spec}}))
        assert (name == "init_report") == bool(read_results(tmp_path)[1])


def lists_of_two_lengths(evaluation):
    evaluation["labels"]["afib_5y"]["decision_curve"]["low"].pop()


def text_for_a_number(evaluation):
    evaluation["labels"]["afib_5y"]["auroc"]["low"] = "0.5"


@pytest.mark.parametrize("edit", [lists_of_two_lengths, text_for_a_number])
@pytest.mark.parametrize("form", ["sweep", "run"])
def test_a_report_on_an_edited_evaluation_ends_in_one_line(tmp_path, capsys, form, edit):
    folder = make_sweep(tmp_path / "s", {"a": 1.0}, seeds=(0,), test_set=make_test_set(60))
    edit_evaluation(folder / "a/seed-0", edit)
    given = [folder, "--no-baselines"] if form == "sweep" else [folder / "a/seed-0"]
    assert main(["report", *map(str, given), "--replicates", "200"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluation.json is damaged" in line


FORMS = ["sweep", "run", "sites", "across"]
GIVEN = {"--margin": ["0.05"], "--replicates": ["300"], "--no-baselines": []}
GIVEN |= {"--baseline-minutes": ["3"], "--allow-pipe": []}
NO_EFFECT = {("run", o) for o in ("--margin", "--no-baselines", "--baseline-minutes")}
NO_EFFECT |= {("across", option) for option in GIVEN} | {("sites", "--replicates")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    sweep = make_sweep(root / "s", {"a": 1.0}, seeds=(0,), test_set=make_test_set(60))
    sites = fake_sweep(root / "sites", {"A": (60, 0.4), "B": (60, 0.4)}, seeds=(0,))
    across = ["--across", str(sites), "--out", str(root / "out")]
    return {"sweep": [sweep], "run": [sweep / "a/seed-0"], "sites": [sites], "across": across}


@pytest.fixture
def used(monkeypatch):
    """What a report is made with, without making it."""
    found = {}

    def compare(folder, replicates, margin):
        found.update(replicates=replicates, margin=margin)

    def left_out(folder, read, with_baselines, margin):
        found.update(margin=margin)

    def write_baselines(config, folder, minutes):
        found.update(minutes=minutes, allow_pipe=config.data.allow_pipe)

    def write_comparison(comparison, folder, allow_pipe):
        found.setdefault("allow_pipe", allow_pipe)
        return SimpleNamespace(page=Path("page"))

    for name, stand_in in {
        "compare.compare": compare,
        "across.write_left_out_sites": left_out,
        "baselines.write_baselines": write_baselines,
        "report.write_comparison": write_comparison,
        "across.write_across": lambda folders, out: found.update(out=out),
        "headline.run_sentences": lambda comparison: ["fine"],
        "terminal.format_table": lambda comparison: "fine",
    }.items():
        monkeypatch.setattr(f"hpc_ecg.comparison.{name}", stand_in)
    return found


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("form", FORMS)
def test_an_option_has_an_effect_or_is_refused(folders, used, capsys, form, option):
    code = main(["report", *map(str, folders[form]), option, *GIVEN[option]])
    if (form, option) in NO_EFFECT:
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2 and not used and f"{option} is for " in line and "do nothing" in line
        return
    assert code == 0
    match option:
        case "--margin":
            assert used["margin"] == 0.05
        case "--replicates":
            assert used["replicates"] == 300
        case "--no-baselines":
            assert "minutes" not in used
        case "--baseline-minutes":
            assert 2.9 < used["minutes"] <= 3
        case "--allow-pipe":
            assert used["allow_pipe"] is True


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("sweep", ["--no-baselines", "--baseline-minutes", "0"], "--baseline-minutes is for"),
        ("sites", ["--no-baselines", "--baseline-minutes", "3"], "--baseline-minutes is for"),
        ("sites", ["--no-baselines", "--allow-pipe"], "--allow-pipe is for baselines"),
        ("sites", ["--margin", "2"], "the margin must be between 0 and 1, got 2"),
    ],
)
def test_options_that_undo_each_other_are_refused(folders, capsys, form, options, message):
    assert main(["report", *map(str, folders[form]), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("form", FORMS)
def test_without_options_the_defaults_hold(folders, used, form):
    assert main(["report", *map(str, folders[form])]) == 0
    assert used.pop("minutes", 10) == pytest.approx(10, abs=0.1)
    assert used.pop("out", None) == (Path(folders[form][-1]) if form == "across" else None)
    expected = {"replicates": 2000, "margin": 0.02, "allow_pipe": False}
    assert used == {name: expected[name] for name in used}
