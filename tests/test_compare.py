"""Compare the strategies of a sweep's folder: values, verdict, warnings and refusals."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from hpc_ecg.atomic_io import write_json
from hpc_ecg.comparison.checklist import fill_checklists
from hpc_ecg.comparison.compare import compare
from hpc_ecg.comparison.headline import headline
from hpc_ecg.comparison.report import write_report
from hpc_ecg.comparison.results import read_results
from hpc_ecg.comparison.scoring import is_better
from hpc_ecg.comparison.terminal import format_table
from hpc_ecg.comparison.verdict import _detectable, baseline_sentence, verdict
from hpc_ecg.evaluation.intervals import t_quantile
from hpc_ecg.evaluation.predictions import Predictions, read_predictions, write_predictions
from hpc_ecg.evaluation.scores import evaluate_predictions, fit_operating_points
from hpc_ecg.hashing import write_record
from hpc_ecg.sweep.folder import read_events

pytestmark = pytest.mark.slow

REPLICATES = 200


def make_test_set(num_patients=200, labels=("afib_5y",), seed=0, prevalence=0.3):
    """Patients, labels, and a signal that all strategies share."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    label_NK = (rng.random((num_patients, len(labels))) < prevalence).astype(float)[patients]
    shared_NK = rng.normal(size=(num_patients, len(labels)))[patients] + 0.5 * rng.normal(
        size=label_NK.shape
    )
    return patients, label_NK, shared_NK, list(labels)


def make_run(folder, test_set, quality, seed, task="binary", noise=0.4):
    """Write the folder of a finished run, as `finetune` leaves it."""
    patients, label_NK, shared_NK, labels = test_set
    rng = np.random.default_rng([seed, int(1000 * quality)])
    logit_NK = quality * label_NK + shared_NK + noise * rng.normal(size=label_NK.shape)
    truth_NK = 50 + 10 * shared_NK if task == "regression" else label_NK
    predictions = Predictions(
        record_N=np.array([f"rec{i:05d}" for i in range(len(patients))], dtype=object),
        patient_N=np.array([f"pat{p:04d}" for p in patients], dtype=object),
        labels=labels,
        label_NK=truth_NK,
        logit_NK=50 + 10 * logit_NK if task == "regression" else logit_NK,
        probability_NK=None if task == "regression" else 1 / (1 + np.exp(-logit_NK)),
        groups={"sex": np.array([("female", "male")[p % 2] for p in patients], dtype=object)},
    )
    for split in ("valid", "test"):
        write_predictions(folder / "predictions" / f"{split}.parquet", predictions)
    points = None if task == "regression" else fit_operating_points(predictions)
    evaluation = evaluate_predictions(predictions, task, points, 20) | {"split": "test"}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    write_training(folder, quality, seed, task)
    if points:
        write_json(folder / "best" / "operating_point.json", points)
    return predictions


def write_training(folder, quality, seed, task):
    rng = np.random.default_rng(seed)
    events = []
    for step in range(1, 121):
        loss = 0.3 + 0.4 * np.exp(-step / 30) + 0.02 * rng.normal()
        events.append({"event": "step", "step": step, "epoch": step / 40, "loss": loss, "lr": 5e-5})
        if step % 20 == 0:
            score = 0.5 + 0.25 * quality * (1 - np.exp(-step / 40)) + 0.005 * rng.normal()
            events.append({"event": "eval", "step": step, "auroc": score, "score": score})
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(text)
    finished = {
        "steps": 120,
        "epochs": 3,
        "best_step": 100,
        "best_score": 0.7,
        "metric": "auroc",
        "train_seconds": 1800.0 + 60 * seed,
        "process_seconds": 2 * (1800.0 + 60 * seed),
        "processes": 2,
        "device": "NVIDIA H100",
        "ecg_per_s": 4510.0,
        "stopped": "patience",
    }
    (folder / "finished.json").write_text(json.dumps(finished))
    report = {
        "checkpoint": {"path": "/weights/wcr_afib_5y.pt", "sha256": "0f" * 32},
        "head": {"taken": "keep"},
        "counts": {"tensors_loaded": 207, "tensors_fresh": 2, "tensors_frozen": 14},
    }
    (folder / "init_report.json").write_text(json.dumps(report))
    data = {"batch_size": 128, "shards": "s", "task": task}
    settings = {"seed": seed, "optim": {"lr": 5e-5}, "data": data}
    (folder / "config.yaml").write_text(json.dumps(settings))
    environment = {
        "data_index_sha256": "ab" * 32,
        "time": f"2026-01-0{seed + 1}",
        "python": "3.11",
        "packages": {"torch": "2.8"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))


def edit_evaluation(folder, edit):
    """Edit the evaluation of a run, which then has digests that vouch for it."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    edit(evaluation)
    write_record(folder / "evaluation.json", evaluation, [folder / "predictions/test.parquet"])
    finished = json.loads((folder / "finished.json").read_text())
    write_record(folder / "finished.json", finished, [folder / "predictions/valid.parquet"])


def make_sweep(sweep_dir, qualities, seeds=(0, 1, 2), test_set=None, **options):
    """Write a sweep's folder; `qualities`: strategy → how well it separates the classes."""
    test_set = test_set or make_test_set()
    for strategy, quality in qualities.items():
        for seed in seeds:
            folder = sweep_dir / strategy / f"seed-{seed}"
            make_run(folder, test_set, quality, seed, **options)
    plan = {"strategies": list(qualities), "seeds": list(seeds)}
    (sweep_dir / "sweep.yaml").write_text(json.dumps(plan))  # JSON is YAML
    return sweep_dir


def make_baselines(sweep_dir, test_set, quality, left_out=None):
    """Write a sweep's baselines; `quality` is that of the irregularity."""
    folder = sweep_dir / "baselines"
    for name, good in {"prevalence": 0.0, "age_sex": 0.3, "rr_irregularity": quality}.items():
        made = make_run(sweep_dir / "elsewhere", test_set, good, 7)
        logit_NK = np.zeros_like(made.logit_NK) if name == "prevalence" else made.logit_NK
        for split in ("valid", "test"):
            write_predictions(folder / name / f"{split}.parquet", replace(made, logit_NK=logit_NK))
    shutil.rmtree(sweep_dir / "elsewhere")
    note = {"made": ["prevalence", "age_sex", "rr_irregularity"], "left_out": left_out or {}}
    (folder / "baselines.json").write_text(json.dumps(note | {"details": {}}))


def test_values_are_means_over_seeds_of_scikit_learn_values(tmp_path):
    comparison = compare(make_sweep(tmp_path, {"a": 1.5, "b": 0.5}), REPLICATES)
    assert [s.name for s in comparison.strategies] == ["a", "b"]
    values = []
    for seed in range(3):
        test = read_predictions(tmp_path / "a" / f"seed-{seed}" / "predictions" / "test.parquet")
        values.append(roc_auc_score(test.label_NK[:, 0], test.logit_NK[:, 0]))
    first = comparison.strategies[0]
    assert first.per_seed["auroc"] == pytest.approx(dict(enumerate(values)))
    assert first.estimates["auroc"].value == pytest.approx(np.mean(values))
    assert first.estimates["auroc"].seed_sd == pytest.approx(np.std(values, ddof=1))
    assert comparison.cost["a"].hours == {
        "GPU-hours": pytest.approx(2 * (1800 + 1860 + 1920) / 3600)
    }


def test_a_clear_difference_is_called_best(tmp_path):
    comparison = compare(make_sweep(tmp_path, {"b": 0.3, "a": 2.0, "c": 0.2}), REPLICATES)
    text = verdict(comparison)
    assert text.startswith("a is best (AUROC 0.") and "better than b (difference 0." in text
    assert "not shown" not in text


def test_two_similar_strategies_are_not_shown_to_differ(tmp_path):
    text = verdict(compare(make_sweep(tmp_path, {"a": 1.0, "b": 1.001}), REPLICATES))
    assert "are not shown to differ (AUROC difference 0.00" in text and " to 0.0" in text
    assert "is best" not in text and "has the highest" not in text


def test_strategies_with_the_same_predictions_are_reported_as_equal(tmp_path):
    """A grid of learning rates makes such strategies if nothing trains."""
    make_sweep(tmp_path, {"a": 1.0})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    comparison = compare(tmp_path, REPLICATES)
    assert comparison.detectable == {"a - b": 0}
    text = verdict(comparison)
    assert "a and b are not shown to differ" in text and "they score exactly the same" in text


def test_the_best_may_beat_some_and_not_others(tmp_path):
    text = verdict(compare(make_sweep(tmp_path, {"a": 2.0, "b": 1.999, "c": 0.2}), REPLICATES))
    assert "has the highest AUROC" in text
    assert "It is better than c" in text and "It is not shown to be better than b" in text


def test_with_one_seed_nothing_is_called_better(tmp_path):
    make_sweep(tmp_path, {"good": 3.0, "poor": 0.2}, (0,))
    text = verdict(compare(tmp_path, replicates=200))
    assert "good has the highest AUROC" in text and "on these patients" in text
    assert "cannot be said from one seed" in text and "is better than poor:" not in text
    comparison = compare(tmp_path, replicates=200)
    assert not any(is_better(pair) for pair in (*comparison.pairs, *comparison.baselines))
    assert not any(test["is_non_inferior"] for test in comparison.non_inferior)
    assert comparison.detectable == {} and "80 % power" not in text
    assert comparison.best_corrected is None and "Probability of being the best" not in text


def test_no_difference_is_found_that_is_larger_than_can_be(tmp_path):
    few = make_test_set(num_patients=24)
    comparison = compare(make_sweep(tmp_path, {"a": 1, "b": 0.9}, (0, 1), few, noise=4), 200)
    assert comparison.pairs[0].detectable > 0.5 and list(comparison.detectable.values()) == [None]
    assert "too few to find any difference with 80 % power" in verdict(comparison)
    rows = fill_checklists(comparison, "no flow")
    texts = {row["text"] for row in rows if row["topic"] == "Sample size"}
    assert texts == {"as many patients as there were; see Cohort"}


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0.1, 0.3), "a difference of 0.100 to 0.300 is found with 80 % power."),
        ((0.1, 0.6), "a difference of 0.100 is found with 80 % power; against c, none is."),
        ((0.7, 0.6), "too few to find any difference"),
        ((0.0, 0.0), "they score exactly the same"),
    ],
)
def test_the_power_is_said_for_the_pairs_that_have_any(tmp_path, sizes, text):
    comparison = compare(make_sweep(tmp_path, {"a": 1.0, "b": 1.0, "c": 1.0}), 20)
    pairs = [
        replace(comparison.pairs[0], first="a", second=name, detectable=size)
        for name, size in zip("bc", sizes, strict=True)
    ]
    assert text in _detectable(comparison, pairs)


def test_with_one_seed_the_page_prints_no_p(tmp_path):
    test_set = make_test_set()
    make_baselines(make_sweep(tmp_path, {"good": 3.0, "poor": 0.2}, (0,), test_set), test_set, 1.0)
    page = write_report(tmp_path, 50).page.read_text()
    assert page.count('<span class="p">one seed</span>') == 2 + 6  # two metrics, six to baselines
    assert '<span class="p">p' not in page and "adjusted p &lt;" not in page
    assert page.count("without the chance of training, as there is one seed") == 1 + 2


@pytest.mark.parametrize(
    ("lost", "risk"),
    [
        (["b"], "up to 1 in 10 such tests finds one that does not exist"),
        (["a", "b", "c"], "only a very large one could be found among more than two strategies"),
    ],
)
def test_two_seeds_are_too_few_in_another_way_beside_strategies_with_more(tmp_path, lost, risk):
    make_sweep(tmp_path, {"a": 1.5, "b": 1.0, "c": 0.5})
    for name in lost:
        shutil.rmtree(tmp_path / name / "seed-2")
    (text,) = [t for t in compare(tmp_path, 50).warnings if t.startswith("Only two seeds")]
    assert text.endswith(f"{risk}.")


def test_the_note_of_a_sweep_comes_before_all_warnings(tmp_path):
    make_sweep(tmp_path, {"a": 1.0, "b": 1.0}, (0,))
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "synthetic"}))
    assert compare(tmp_path, replicates=50).warnings[0] == "synthetic"


def test_one_seed_and_few_positive_patients_give_warnings(tmp_path):
    few = make_test_set(num_patients=60, prevalence=0.15)
    comparison = compare(make_sweep(tmp_path, {"a": 2, "b": 1}, [0], few), REPLICATES)
    positive = comparison.counts["afib_5y"]["n_positive_patients"]
    assert positive < 20
    text = verdict(comparison)
    assert "Only one seed for a and b" in text
    assert f"afib_5y has only {positive} positive patients in the test set" in text


def test_runs_that_failed_or_are_missing_are_listed_with_the_reason(tmp_path):
    sweep_dir = make_sweep(tmp_path, {"a": 1.5, "b": 0.5})
    for name in ("a/seed-1", "b/seed-0", "b/seed-2"):
        (sweep_dir / name / "finished.json").unlink()
    (sweep_dir / "a/seed-1/error.txt").write_text("Traceback\nCUDA out of memory\n")
    (sweep_dir / "b/seed-2").rename(sweep_dir / "elsewhere")
    comparison = compare(sweep_dir, REPLICATES)
    reasons = {f"{p.strategy}/seed-{p.seed}": p.reason for p in comparison.problems}
    assert reasons == {
        "a/seed-1": "failed: CUDA out of memory",
        "b/seed-0": "not finished: at step 120",
        "b/seed-2": "not started",
    }
    assert "Left out (listed below): 3 of 6 runs." in verdict(comparison)
    assert "Whether it is better than b" in verdict(comparison)
    assert "cannot be said from one seed" in verdict(comparison)


def test_a_run_with_nan_or_constant_predictions_is_left_out(tmp_path):
    sweep_dir = make_sweep(tmp_path, {"a": 1.5, "b": 0.5})
    for name, value in (("b/seed-0", np.nan), ("b/seed-1", 0.5)):
        path = sweep_dir / name / "predictions" / "test.parquet"
        whole = read_predictions(path)
        logit_NK = np.full_like(whole.logit_NK, value)
        write_predictions(path, replace(whole, logit_NK=logit_NK))
    reasons = [p.reason for p in read_results(sweep_dir)[1]]
    assert "predictions are NaN or infinite" in reasons[0]
    assert "predictions are 0.5; such a model tells nothing apart" in reasons[1]


def test_a_damaged_run_is_left_out_and_a_damaged_sweep_is_refused(tmp_path):
    sweep_dir = make_sweep(tmp_path, {"a": 1.5, "b": 0.5, "c": 0.5}, (0, 1))
    (sweep_dir / "b/seed-0/config.yaml").write_text("[: {")
    (sweep_dir / "b/seed-1/environment.json").unlink()
    (sweep_dir / "c/seed-0/predictions/test.parquet").unlink()
    (sweep_dir / "c/seed-1/finished.json").write_text('{"steps": 2')
    runs, problems = read_results(sweep_dir)
    assert [run.name for run in runs] == ["a/seed-0", "a/seed-1"]
    for problem, text in zip(
        problems,
        ("config.yaml is damaged", "environment.json", "test.parquet: no such file", "is damaged"),
        strict=True,
    ):
        assert problem.reason.startswith("cannot be used: ") and text in problem.reason
    (sweep_dir / "sweep.yaml").write_text("[: {")
    with pytest.raises(ValueError, match=r"sweep.yaml is damaged: it holds no settings"):
        compare(sweep_dir, REPLICATES)


def test_runs_tested_on_different_records_are_refused_by_name(tmp_path):
    sweep_dir = make_sweep(tmp_path, {"a": 1.5, "b": 0.5})
    make_run(sweep_dir / "b" / "seed-1", make_test_set(num_patients=190), 1.0, 1)
    with pytest.raises(ValueError, match="a/seed-0 and b/seed-1 were tested on different records"):
        compare(sweep_dir, REPLICATES)
    make_run(sweep_dir / "b" / "seed-1", make_test_set(), 1.0, 1)
    path = sweep_dir / "b/seed-1/predictions/test.parquet"
    other = read_predictions(path)
    write_predictions(path, replace(other, label_NK=1 - other.label_NK))
    with pytest.raises(
        ValueError, match="b/seed-1 have different labels for the same test records"
    ):
        compare(sweep_dir, REPLICATES)


def test_an_empty_sweep_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no finished run to compare"):
        compare(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        compare(tmp_path / "nowhere")


def test_a_single_strategy_gets_its_value_and_no_comparison(tmp_path):
    comparison = compare(make_sweep(tmp_path, {"a": 1.5}), REPLICATES)
    assert verdict(comparison).startswith("Only a is finished (AUROC 0.")


def test_several_labels_are_compared_by_their_mean(tmp_path):
    test_set = make_test_set(labels=("afib", "flutter", "svt"))
    test_set[1][:, 2] = 0
    comparison = compare(
        make_sweep(tmp_path, {"a": 2, "b": 0.3}, test_set=test_set, task="multilabel"), REPLICATES
    )
    assert comparison.labels == ["afib", "flutter"]
    assert "svt is not scored: all" in verdict(comparison)
    assert verdict(comparison).startswith("a is best (macro AUROC 0.")


def test_regression_is_compared_by_r_squared(tmp_path):
    sweep_dir = make_sweep(tmp_path, {"a": 0.0, "b": 2.0}, task="regression")
    comparison = compare(sweep_dir, REPLICATES)
    assert comparison.metrics == ["r2", "mae"]
    assert verdict(comparison).startswith("a is best (R² 0.")


def test_a_regression_that_is_worse_than_the_mean_gets_a_warning(tmp_path):
    sweep_dir = make_sweep(tmp_path, {"a": 0.0, "b": 2.0}, task="regression", noise=9.0)
    (text, *_) = compare(sweep_dir, REPLICATES).warnings
    assert text.startswith("R² is below 0 for a and b: the mean of all labels predicts better.")


def test_the_terminal_table_fits_eighty_columns(tmp_path):
    names = {"ssl_probe_then_finetune": 2.0, "afib_recalibrate_only_with_a_long_name": 1.0}
    text = format_table(compare(make_sweep(tmp_path, names), REPLICATES))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "ssl_probe_then_finetune" in text and "GPU-hours" in text


def test_the_terminal_table_shows_the_names_of_a_grids_arms_in_full(tmp_path):
    names = [f"ssl_probe_then_finetune,label_fraction={share}" for share in (0.5, 1)]
    text = format_table(compare(make_sweep(tmp_path, dict.fromkeys(names, 1.0)), REPLICATES))
    lines = text.split("hours: ")[0].splitlines()
    for name in (*names, *(f"{name} (ensemble)" for name in names)):
        below = lines[lines.index(name) + 1]
        assert "0." in below and below.startswith("  ") and len(below) <= 80


def test_steps_repeated_after_a_resume_count_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"event": "step", "step": s, "loss": 1.0} for s in (1, 2, 3)]
    lines += [{"event": "resumed", "step": 1}, {"event": "step", "step": 2, "loss": 0.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    steps = [(e["step"], e["loss"]) for e in read_events(path) if e["event"] == "step"]
    assert steps == [(1, 1.0), (2, 0.5)]


def test_the_verdict_names_networks_that_do_not_beat_a_baseline(tmp_path):
    test_set = make_test_set()
    make_sweep(tmp_path, {"good": 3.0, "poor": 1.0}, test_set=test_set)
    make_baselines(tmp_path, test_set, 2.0)
    comparison = compare(tmp_path, REPLICATES)
    text = verdict(comparison)
    assert "good beats beat-to-beat irregularity alone (AUROC 0." in text
    assert "; poor is not shown to." in text
    assert "Every network beats age and sex alone" in text
    assert "To age and sex, good adds +0." in text
    rows = {(r.kind, r.name): r.estimates for r in comparison.reference_models}
    assert rows["baseline", "prevalence"] == {}
    irregular = rows["baseline", "beat-to-beat irregularity"]["auroc"].value
    good = comparison.strategies[0].estimates["auroc"].value
    (pair,) = [p for p in comparison.baselines if p.first == "good" and "beat" in p.second]
    assert pair.estimate.value == pytest.approx(good - irregular)


def test_what_a_network_adds_to_age_and_sex_is_the_mean_over_labels(tmp_path):
    test_set = make_test_set(labels=("afib", "flutter"))
    make_sweep(tmp_path, {"a": 2.0, "b": 0.5}, test_set=test_set, task="multilabel")
    make_baselines(tmp_path, test_set, 0.5)
    alone = read_predictions(tmp_path / "baselines/age_sex/test.parquet")
    gains = []
    for seed in range(3):
        network = read_predictions(tmp_path / f"a/seed-{seed}/predictions/test.parquet")
        for k in range(2):  # validation and test set of these runs are the same
            x_N2 = np.stack([alone.logit_NK[:, k], network.logit_NK[:, k]], axis=1)
            x_N2 = (x_N2 - x_N2.mean(0)) / x_N2.std(0)
            truth_N = network.label_NK[:, k]
            both_N = LogisticRegression().fit(x_N2, truth_N).decision_function(x_N2)
            before = roc_auc_score(truth_N, alone.logit_NK[:, k])
            gains.append(roc_auc_score(truth_N, both_N) - before)
    comparison = compare(tmp_path, REPLICATES)
    (added,) = [p for p in comparison.gains if p.first == "a + age and sex"]
    assert added.estimate.value == pytest.approx(np.mean(gains), abs=1e-4)
    assert "To age and sex, a adds +0." in verdict(comparison)


def test_without_positives_in_validation_what_networks_add_is_left_out(tmp_path):
    test_set = make_test_set(labels=("afib", "flutter"))
    make_sweep(tmp_path, {"a": 2.0, "b": 0.5}, test_set=test_set, task="multilabel")
    make_baselines(tmp_path, test_set, 0.5)
    for path in tmp_path.glob("*/seed-*/predictions/valid.parquet"):
        valid = read_predictions(path)
        label_NK = valid.label_NK.copy()
        label_NK[:, 1] = 0
        write_predictions(path, replace(valid, label_NK=label_NK))
    comparison = compare(tmp_path, 50)
    assert comparison.gains == [] and comparison.baselines
    assert comparison.gains_left_out.startswith("flutter: ") and not comparison.baselines_left_out


def test_the_verdict_says_if_no_network_beats_a_baseline(tmp_path):
    test_set = make_test_set()
    make_sweep(tmp_path, {"a": 1.0, "b": 0.9}, test_set=test_set)
    make_baselines(tmp_path, test_set, 4.0)
    comparison = compare(tmp_path, 200)
    assert "Every network is shown to be worse than beat-to-beat irregularity alone" in verdict(
        comparison
    )
    assert "it is worse than beat-to-beat irregularity (" in headline(comparison)[-1]


@pytest.mark.parametrize(
    ("signs", "text"),
    [
        ((1, 1), "Every network beats B."),
        ((-1, -1), "Every network is shown to be worse than B."),
        ((1, -1), "a beats B; b is not shown to. b is shown to be worse."),
        ((0, -1), "B; a, the best, differs by +0.000 (95 % interval -0.050 to 0.050). b is shown"),
        ((0, 0), "No network is shown to beat B; a, the best, differs by +0.000 "),
    ],
)
def test_the_sentence_on_a_baseline_says_who_wins(tmp_path, signs, text):
    (pair,) = compare(make_sweep(tmp_path, {"a": 1.0, "b": 0.9}), 20).pairs
    pairs = [
        replace(
            pair,
            first=name,
            second="B",
            p_adjusted=0.001 if sign else 0.9,
            low=0.1 * sign - 0.05,
            high=0.1 * sign + 0.05,
            estimate=replace(pair.estimate, value=0.1 * sign),
        )
        for name, sign in zip("ab", signs, strict=True)
    ]
    assert text in baseline_sentence("B", pairs).replace("−", "-")


def test_intervals_of_differences_of_a_ranking_metric_end_at_1(tmp_path):
    few = make_test_set(num_patients=12)
    comparison = compare(make_sweep(tmp_path, {"a": 1, "b": 0.9}, (0, 1), few, noise=6), 200)
    for pair in (*comparison.pairs, *comparison.baselines):
        e = pair.estimate
        assert -1 <= pair.low <= e.low <= e.value <= e.high <= pair.high <= 1
    (pair,) = comparison.pairs
    half = t_quantile(pair.estimate.degrees_of_freedom) * pair.estimate.standard_error
    assert pair.estimate.value + half > 1, "else nothing was cut"


def test_baselines_of_another_test_set_are_not_used(tmp_path):
    make_sweep(tmp_path, {"a": 1.0, "b": 0.9})
    make_baselines(tmp_path, make_test_set(num_patients=120), 4.0, {"other": "no such column"})
    comparison = compare(tmp_path, 50)
    assert not comparison.baselines
    assert "another test set" in comparison.baselines_left_out["age_sex"]
    assert comparison.baselines_left_out["other"] == "no such column"
    assert "There is no baseline" in verdict(comparison)


def test_an_ensemble_is_the_mean_probability_of_its_seeds(tmp_path):
    comparison = compare(make_sweep(tmp_path, {"a": 1.0, "b": 0.5}), REPLICATES)
    tests = [
        read_predictions(tmp_path / f"a/seed-{seed}/predictions/test.parquet") for seed in range(3)
    ]
    mean_N = np.mean([t.probability_NK[:, 0] for t in tests], axis=0)
    (row,) = [r for r in comparison.reference_models if (r.kind, r.name) == ("ensemble", "a")]
    expected = roc_auc_score(tests[0].label_NK[:, 0], mean_N)
    assert row.estimates["auroc"].value == pytest.approx(expected)
    assert not row.estimates["auroc"].includes_seeds
    (pair,) = comparison.delong
    ensembles = {r.name: r.estimates["auroc"].value for r in comparison.reference_models}
    assert pair["difference"] == pytest.approx(ensembles["a"] - ensembles["b"])


def test_a_soup_of_the_same_records_is_a_row(tmp_path):
    make_sweep(tmp_path, {"a": 1.0})
    soup = read_predictions(tmp_path / "a/seed-1/predictions/test.parquet")
    write_predictions(tmp_path / "a/soup/predictions.parquet", soup)
    models = {model.kind: model for model in compare(tmp_path, 50).reference_models}
    expected = roc_auc_score(soup.label_NK[:, 0], soup.logit_NK[:, 0])
    assert models["soup"].estimates["auroc"].value == pytest.approx(expected)


def test_models_are_selected_on_validation(tmp_path):
    make_sweep(tmp_path, {"a": 1.0, "b": 0.5})
    for seed, score in enumerate((0.70, 0.90, 0.90)):
        path = tmp_path / f"a/seed-{seed}/finished.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"best_score": score}))
    for seed, loss in enumerate((0.4, 0.3, 0.2)):
        path = tmp_path / f"b/seed-{seed}/finished.json"
        values = json.loads(path.read_text()) | {"best_score": loss, "metric": "loss"}
        path.write_text(json.dumps(values))
    selected = {model.strategy: model.run.seed for model in compare(tmp_path, 50).selected}
    assert selected == {"a": 1, "b": 2}


def test_non_inferiority_uses_the_given_margin(tmp_path):
    make_sweep(tmp_path, {"a": 1.0, "b": 0.99, "c": 0.1})
    narrow, wide = (compare(tmp_path, REPLICATES, margin=m) for m in (0.0001, 0.05))
    within = {n["strategy"]: n["is_non_inferior"] for n in wide.non_inferior}
    assert len(within) == 2 and not within["c"] and sum(within.values()) == 1
    assert not any(n["is_non_inferior"] for n in narrow.non_inferior)
    assert "by more than 0.05 AUROC" in verdict(wide)
    with pytest.raises(ValueError, match="margin must be between 0 and 1, got 2"):
        compare(tmp_path, 50, margin=2)


def test_the_probabilities_of_being_best_sum_to_one(tmp_path):
    comparison = compare(make_sweep(tmp_path, {"a": 2.0, "b": 0.5, "c": 0.5}), REPLICATES)
    chances = comparison.probability_best
    assert sum(chances.values()) == pytest.approx(1) and chances["a"] > 0.9


def test_time_and_cost_are_kept_apart_from_the_other_numbers(tmp_path):
    make_sweep(tmp_path, {"a": 1.0, "b": 0.5}, (0, 1))
    before = compare(tmp_path, 50).to_dict()
    path = tmp_path / "a/seed-0/finished.json"
    slower = {"process_seconds": 9e9, "train_seconds": 9e9, "ecg_per_s": 1.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | slower))
    after = compare(tmp_path, 50).to_dict()
    assert before["varies"] != after["varies"]
    del before["varies"], after["varies"]
    assert before == after


def add_grid(sweep_dir, arms):
    """Make runs `arms` of a grid; by name: strategy and what the grid sets."""
    for name, (base, varied) in arms.items():
        (sweep_dir / name / "arm.json").write_text(json.dumps({"base": base, "varied": varied}))


def blur_validation(sweep_dir, arm, spread):
    """Make an arm worse on validation alone."""
    for folder in (sweep_dir / arm).glob("seed-*"):
        path = folder / "predictions" / "valid.parquet"
        valid = read_predictions(path)
        noise = spread * np.random.default_rng(0).normal(size=valid.logit_NK.shape)
        write_predictions(path, replace(valid, logit_NK=valid.logit_NK + noise))


def test_arms_of_a_grid_are_rows_and_one_chosen_on_validation_stands_for_them(tmp_path):
    sweep = make_sweep(tmp_path, {"a,lr=1": 1.6, "a,lr=2": 1.5, "b": 0.9, "c": 0.8})
    add_grid(sweep, {f"a,lr={n}": ("a", {"optim.lr": float(n)}) for n in (1, 2)})
    for folder in sweep.glob("a,lr=*/seed-*"):
        config = json.loads((folder / "config.yaml").read_text())
        config["optim"]["lr"] = float(folder.parent.name[-1])
        (folder / "config.yaml").write_text(json.dumps(config))
    blur_validation(sweep, "a,lr=1", 9.0)  # the best on test is the worse on validation
    comparison = compare(sweep, REPLICATES)
    rows = [(s.name, s.competes) for s in comparison.strategies]
    assert rows == [("a,lr=2", True), ("a,lr=1", False), ("b", True), ("c", True)]
    family = {(pair.first, pair.second) for pair in comparison.pairs}
    assert family == {("a,lr=2", "b"), ("a,lr=2", "c"), ("b", "c")}
    assert set(comparison.probability_best) == {"a,lr=2", "b", "c"}
    assert {test["strategy"] for test in comparison.non_inferior} == {"b", "c"}
    (why,) = comparison.standing
    assert why.startswith("Of 2 arms of a, a,lr=2 stands for it on the test set: the highest AUROC")
    assert "Corrected for being the highest of 3" in verdict(comparison)
    assert "One arm of a grid, chosen without the test set," in verdict(comparison)


def test_of_label_fractions_the_largest_stands_for_the_strategy(tmp_path):
    sweep = make_sweep(tmp_path, {"a,f=0.1": 1.5, "a,f=1": 1.0, "b": 0.9}, seeds=(0, 1))
    settings = {f"a,f={f}": ("a", {"data.label_fraction": f}) for f in (0.1, 1)}
    add_grid(sweep, settings)
    for name, (_, varied) in settings.items():
        for path in (sweep / name).glob("seed-*/config.yaml"):
            config = json.loads(path.read_text())
            config["data"]["label_fraction"] = varied["data.label_fraction"]
            path.write_text(json.dumps(config))
    comparison = compare(sweep, 50)
    assert [s.name for s in comparison.competing] == ["a,f=1", "b"]
    assert "the largest share of the labels (1)" in comparison.standing[0]
    for seed in (0, 1):
        (sweep / "b" / f"seed-{seed}" / "finished.json").unlink()
    alone = compare(sweep, 50)
    (sentence,) = headline(alone)
    assert sentence.startswith("Only a,f=1 competes (AUROC 0.")
    assert sentence.endswith(
        "; the others are arms of its grid): there is no other strategy to compare it with."
    )
    assert verdict(alone).startswith(sentence)


def test_few_events_in_validation_are_said_wherever_results_are(tmp_path):
    test_set = make_test_set(prevalence=0.1)
    sweep = make_sweep(tmp_path, {"a": 1.5, "b": 0.5}, seeds=(0, 1), test_set=test_set)
    make_baselines(sweep, test_set, 0.5)
    comparison = compare(sweep, 50)
    counts = comparison.validation["afib_5y"]
    assert 10 <= counts["n_positive_patients"] < 50 and comparison.gains
    known = f"only {counts['n_positive_patients']} positive patients in validation: thresholds"
    assert known in verdict(comparison)


@pytest.mark.parametrize("positives", [1, 3, 8])
def test_very_few_events_are_compared_but_nothing_is_fitted_on_them(tmp_path, positives):
    test_set = make_test_set(prevalence=0.3)
    patients, label_NK = test_set[:2]
    label_NK[~np.isin(patients, np.unique(patients[label_NK[:, 0] == 1])[:positives])] = 0.0
    sweep = make_sweep(tmp_path, {"a": 1.5, "b": 0.5}, seeds=(0, 1), test_set=test_set)
    make_baselines(sweep, test_set, 0.5)
    comparison = compare(sweep, 400)
    assert comparison.gains == [] and "adding age and sex needs 10" in comparison.gains_left_out
    assert f"only {positives} positive patient" in " ".join(comparison.warnings)
