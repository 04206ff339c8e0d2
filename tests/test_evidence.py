"""An evaluation without digests, as version 0.1 wrote it, is what the predictions give, or refused
by its name."""

import json
import random

import pytest
from recorded import copy_of_0_1, hpc_ecg
from test_edited_files import VALUES, edited, places

from hpc_ecg.comparison.evidence import ENDS, FREE, NEW, read_evaluation
from hpc_ecg.comparison.results import read_results
from hpc_ecg.comparison.selected import select_models
from hpc_ecg.sweep.status import read_status

pytestmark = pytest.mark.slow

SWEEPS = ["sweeps/finished", "regression", "multilabel"]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return copy_of_0_1(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(params=SWEEPS[1:])
def run(old, request):
    run, *_ = read_results(old / request.param)[0]
    assert not run.is_verified
    before = run.folder.evaluation.read_bytes()
    yield run
    run.folder.evaluation.write_bytes(before)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_what_version_0_1_wrote_is_what_its_predictions_give(old, sweep):
    models = select_models(read_results(old / sweep)[0])
    assert models and all(model.evaluation["labels"] for model in models)


def test_any_other_value_missing_key_or_order_is_refused_by_its_place(run):
    evaluation = read_evaluation(run)
    known = [
        place
        for place in places(evaluation)
        if not {*ENDS, *FREE} & {*place} and not any(NEW.fullmatch(str(name)) for name in place)
    ]
    draw = random.Random(0)
    for n, place in enumerate(draw.choices(known, k=15)):
        new = draw.choice(["DELETE", *VALUES])
        changed = edited(evaluation, [*places(evaluation)].index(place), new)
        if changed == evaluation:
            continue
        run.folder.evaluation.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"evaluation\.json is damaged") as refused:
            read_evaluation(run)
            pytest.fail(f"{n}: {place} {new}")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["1", True, [], {}, [0.5]])
def test_the_ends_of_an_interval_are_numbers_or_missing(run, value):
    evaluation = read_evaluation(run)
    ends = [place for place in places(evaluation) if place[-1] in ENDS]
    place = [*places(evaluation)].index(random.Random(1).choice(ends))
    run.folder.evaluation.write_text(json.dumps(edited(evaluation, place, value)))
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        read_evaluation(run)


def test_lists_that_were_swapped_are_refused_in_one_line_of_the_report(old, capsys):
    path = old / "sweeps/finished/random/seed-1/evaluation.json"
    before = path.read_text()
    evaluation = json.loads(before)
    curve = evaluation["labels"]["af"]["decision_curve"]
    curve["net_benefit"], curve["treat_all"] = curve["treat_all"], curve["net_benefit"]
    path.write_text(json.dumps(evaluation))
    words = ["report", "sweeps/finished", "--replicates", "200", "--no-baselines"]
    assert hpc_ecg(old, *words) == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert "random/seed-1/evaluation.json is damaged: labels.af.decision_curve" in said
    assert "hpc-ecg evaluate sweeps/finished/random/seed-1" in said
    path.write_text(before)
    assert hpc_ecg(old, *words) == 0


def test_a_damaged_threshold_is_one_line_of_evaluate(old, capsys):
    path = old / "runs/finished/best/operating_point.json"
    path.write_text(json.dumps({"af": {"youden": {"threshold": "0.5", "fitted_on": "valid"}}}))
    assert hpc_ecg(old, "evaluate", "runs/finished") == 2
    assert "operating_point.json damaged?" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("labels",), [1]),
        (("labels",), {"af": "auroc"}),
        (("labels", "af"), None),
        (("labels", "af", "auroc"), 5),
        (("labels", "af", "auroc"), {}),
        (("labels", "af", "auroc", "value"), "x"),
        (("macro",), [1]),
    ],
)
def test_status_shows_the_other_runs_beside_a_damaged_one(old, place, value):
    path = old / "sweeps/finished/random/seed-1/evaluation.json"
    before = path.read_text()
    evaluation = inner = json.loads(before)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(evaluation))
    (old / "sweeps/finished/random/seed-²").mkdir(exist_ok=True)
    texts = {cell.name: cell.text for cell in read_status(old / "sweeps/finished")}
    path.write_text(before)
    assert "seed-1" in texts["random/seed-1"] or place == ("macro",)
    assert texts["random/seed-0"].startswith("test AUROC") and len(texts) == 4
