"""`hpc-ecg update RUN --shards OTHER`: adapt a run to a new hospital, and say what that gained.

The new run starts from the old weights and trains nothing: closed testing decides how its head
changes, and thresholds are fitted on the same patients. Fine-tuning, if asked for, is a second run
beside it, with a fixed number of epochs, so that its validation patients can judge it. Nothing but
the comparison sees the patients that are held out.
"""

# N records, K labels, D features

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_ecg.comparison.run_records import UPDATE
from hpc_ecg.data.dataset import open_shards
from hpc_ecg.data.settings import AugmentConfig
from hpc_ecg.evaluation.closed_testing import METHODS, UpdateSample, choose_update
from hpc_ecg.evaluation.events import check_enough_events, count_events, warn_of_few_events
from hpc_ecg.evaluation.intervals import bootstrap_interval
from hpc_ecg.evaluation.label_sample import LabelSample
from hpc_ecg.evaluation.metrics import has_label
from hpc_ecg.evaluation.predictions import Predictions, read_predictions
from hpc_ecg.evaluation.resampling import draw_resamples
from hpc_ecg.hashing import read_record, write_record
from hpc_ecg.log import tracked
from hpc_ecg.model.settings import LossConfig
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.evaluate import REPLICATES, check_unseen, evaluate, evaluate_weights
from hpc_ecg.training.features import Extractor
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.open_run import finished_run, load_run, load_run_for
from hpc_ecg.training.predict import predict
from hpc_ecg.training.prepare import PreparedRun
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import TrainConfig
from hpc_ecg.weights.reading import read_checkpoint, resolve_file
from hpc_ecg.weights.settings import InitConfig

WHERE = "the part to update on"
MEASURES = {"auroc": "AUROC", "brier": "Brier score", "log_loss": "log loss"}
MEASURES |= {"net_benefit": "net benefit", "slope": "calibration slope"}
MEASURES |= {"intercept": "calibration intercept", "o_e": "observed / expected"}
ONLY_LAST = 1 << 30
"""Steps between validations, so that the last weights are validated and none are chosen."""


def update(
    run_dir: str, shards: str, out: Path, up_to: str, share: float | None, epochs: int
) -> list[dict[str, Any]]:
    """Make the run `out`, compare it with `run_dir`, and return its update.json (before it that of
    a fine-tuned run). `share` of the patients is held out; None: half, or the split test where the
    shards have others. ValueError: a regression, too few events, records of the run's training."""
    old, config = finished_run(run_dir), load_run_for(run_dir, shards, [])
    if config.data.task == "regression":
        raise ValueError("update is for yes/no labels; this run predicts numbers")
    data = replace(config.data, labels=read_checkpoint(old.best).labels or [], sampling="all")
    splits = set(open_shards(data)[0].index["split"])
    share = 0.5 if share is None and not {"test"} < splits else share
    data = replace(data, held_out=share)
    cohort = open_shards(data)[0]
    splits = set(cohort.index["split"])
    if "test" not in splits or splits == {"test"}:
        raise ValueError(f"{shards}: --share {share:g} holds no patient out, or leaves none")
    strangers = check_unseen(old, cohort, "all")
    _check_same_methods(RunFolder(out), up_to)
    init = InitConfig(checkpoint=str(old.path.resolve()), head="keep")
    config, tuned = replace(config, run_dir=str(out), data=data, init=init), None
    if up_to == "finetune":
        train = replace(config.train, stages={}, freeze="auto", freeze_layers=0, max_steps=None)
        train = replace(train, max_epochs=epochs, eval_every=ONLY_LAST, patience=None)
        tuned = finetune(replace(config, run_dir=f"{out}-finetune", train=train))
    cache, plain = config.train.feature_cache, replace(config.model, final_dropout=0.0)
    train = TrainConfig(freeze="backbone", max_epochs=0, feature_cache=cache)
    config = replace(config, data=replace(data, all_validate=True), train=train, model=plain)
    config = replace(config, augment=AugmentConfig(), loss=LossConfig())
    new = finetune(config, partial(_change_head, up_to=up_to, tuned=tuned))
    about: dict[str, Any] = {"from": old.path.name, "shards": Path(shards).name, "held_out": share}
    about |= {"strangers": strangers, "measures": MEASURES}
    about |= {"tests": read_record(new.init_report, {"update": dict})["update"]}
    folder = out / "evaluations" / "before"
    about["before"] = _values(evaluate_weights(config, old.best, folder))
    written = []
    for run in filter(None, (tuned, new)):
        about |= {"run": run.path.name, "after": _values(evaluate(load_run(str(run.path), [])))}
        files = folder / "predictions.parquet", run.predictions / "test.parquet"
        before, after = (read_predictions(path).sorted() for path in files)
        with closing(tracked("labels compared", about["after"], len(about["after"]))) as names:
            about["gained"] = {name: _gained(before, after, name) for name in names}
        write_record(run.path / UPDATE, about, [resolve_file(run.best), files[1]])
        written.append(about.copy())
    return written


def _check_same_methods(run: RunFolder, up_to: str) -> None:
    """ValueError if a run that is there was updated by tests of more or fewer methods."""
    known = read_record(run.init_report) if run.is_finished() else {}
    for of in known.get("update", {}).values():
        if "p_values" in of and (made := max(of["p_values"], key=METHODS.index)) != up_to:
            raise ValueError(f"{run.path} was made with --up-to {made}; give another --out")


def _change_head(
    engine: Engine, prepared: PreparedRun, up_to: str, tuned: RunFolder | None
) -> None:
    """Test, change the head of the loaded model, and note both for init_report.json."""
    model, valid = prepared.start.model, prepared.data.valid
    engine.prepare_inference(Extractor(model))
    batch_size, width = prepared.config.data.batch_size, model.head.in_features
    features_ND = predict(engine, valid, batch_size, width).astype(np.float64)
    weight_KD, bias_K = (p.detach().cpu().double().numpy() for p in model.head.parameters())
    label_NK, w_NK = (a.astype(np.float64) for a in (valid.labels_NK, valid.weights_NK))
    logit_NK, unknown_K = features_ND @ weight_KD.T + bias_K, np.full(len(bias_K), np.nan)
    known = tuned and read_predictions(tuned.predictions / "valid.parquet")
    logits = dict(zip(known.record_N, known.logit_NK, strict=True)) if known else {}
    tuned_NK = np.array([logits.get(record, unknown_K) for record in valid.records])
    found: dict[str, dict[str, Any]] = {}
    with closing(tracked("labels tested", valid.label_names, len(bias_K))) as names:
        for k, name in enumerate(names):
            columns = label_NK[:, k], logit_NK[:, k], np.array(valid.patients), w_NK[:, k]
            rows = has_label(label_NK[:, k])
            sample = UpdateSample(*(a[rows] for a in (*columns, features_ND, tuned_NK[:, k])))
            counts = count_events(sample.labels_N, sample.patient_N)
            try:
                check_enough_events(counts, name, "an update", WHERE)
                chosen, change_D = choose_update(sample, up_to, name)
            except ValueError as error:
                found[name] = {"method": "none", "made": "none", "reason": str(error)}
                continue
            found[name] = chosen | counts | warn_of_few_events(counts, "the update", WHERE)
            weight_KD[k] = chosen["slope"] * weight_KD[k] + (0.0 if change_D is None else change_D)
            bias_K[k] = chosen["slope"] * bias_K[k] + chosen["offset"]
    if all("reason" in of for of in found.values()):
        raise ValueError("; ".join(of["reason"] for of in found.values()))
    for parameter, values in zip(model.head.parameters(), (weight_KD, bias_K), strict=True):
        parameter.data.copy_(torch.from_numpy(values))
    prepared.start.report["update"] = found


def _values(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By label, those of `MEASURES`, with the net benefit of acting at the prevalence."""
    result = {}
    for name, of in evaluation["labels"].items():
        curve, at = of["decision_curve"], round(100 * _act_at(of["prevalence"])) - 1
        net = {end: curve[end][at] for end in ("low", "high")} | {"value": curve["net_benefit"][at]}
        flat = of | of["calibration"] | {"net_benefit": net}
        result[name] = {measure: flat[measure] for measure in MEASURES}
    return result


def _act_at(prevalence: float) -> float:
    return min(max(round(prevalence, 2), 0.01), 0.99)


def _gained(before: Predictions, after: Predictions, name: str) -> dict[str, dict[str, Any]]:
    """After minus before by measure, from the same draws of patients, with t intervals."""
    draws, k, found = draw_resamples(after.patient_N, REPLICATES, 0), after.labels.index(name), []
    for predictions in (before, after):
        sample = LabelSample.from_predictions(predictions, k, draws)
        y_N, w_N = sample.labels_N, sample.weights_N
        at = _act_at(float(np.average(y_N, weights=w_N)))
        worth_N = np.where(y_N == 1, 1.0, at / (at - 1)) * (sample.probabilities_N >= at)
        sum_R, num_R = sample.sum_replicates(np.column_stack([worth_N, np.ones_like(y_N)])).T
        net = {"net_benefit": (float(np.average(worth_N, weights=w_N)), sum_R / num_R)}
        values, values_R = sample.rankings() | sample.losses(), sample.replicates()
        found.append(net | {m: (values[m], values_R[m]) for m in values})
    few, shown = sample.patients_in_smaller_class(), [m for m in MEASURES if m in found[0]]
    both = {m: (found[1][m][0] - found[0][m][0], found[1][m][1] - found[0][m][1]) for m in shown}
    return {m: bootstrap_interval(*difference, "slope", few) for m, difference in both.items()}
