"""`hpc-ecg audit RUN`: would the weights of a run betray whom it was trained on?"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from hpc_ecg.comparison.run_records import INTERVAL
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.source import ShardSource
from hpc_ecg.evaluation.membership import ATTACKS, FALSE_POSITIVE_RATES, membership
from hpc_ecg.hashing import read_record, write_record
from hpc_ecg.log import tracked
from hpc_ecg.reporting.numbers import format_percent, format_with_interval
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.open_run import finished_run, load_run
from hpc_ecg.training.predict import predict
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.weights import load_model
from hpc_ecg.weights.reading import resolve_file

AUDIT = "audit.json"
AT = {"not_measured?": str} | dict.fromkeys(("value?", "low?", "high?"), int | float)
ATTACKED = {"auroc": INTERVAL, "found_at": {f"{rate:g}": AT for rate in FALSE_POSITIVE_RATES}}
FOUND = {"members": int, "non_members": int} | dict.fromkeys(ATTACKS, ATTACKED)
WARN_AUROC, WARN_FOUND = 0.6, 0.05
"""A lower limit above these is reported before release: an attack ranks a member above another
patient in 6 of 10 pairs, or finds one in twenty at a false-positive rate of 1 % (chance: one in a
hundred)."""


def audit(run_dir: str) -> dict[str, Any]:
    """Attack the run's best weights with its own training and test patients, and write audit.json
    into its folder. ValueError: unfinished, a regression, too few patients, other shards."""
    folder, config, shards, labels = open_trained(run_dir, "the audit")
    source = ShardSource(shards, config.data)
    datasets = [open_split(shards, split, labels, source) for split in ("train", "test")]
    with closing(Engine(config.engine.for_inference(), folder.path)) as engine:
        engine.prepare_inference(load_model(folder.best, model_config=config.model))
        logits = [predict(engine, dataset, config.data.batch_size) for dataset in datasets]
    label_NK = np.concatenate([dataset.labels_NK for dataset in datasets]).astype(np.float64)
    logit_NK = np.concatenate(logits)
    patient_N = np.concatenate([np.array(dataset.patients, dtype=str) for dataset in datasets])
    is_member_N = np.arange(len(label_NK)) < len(datasets[0])
    columns = zip(label_NK.T, logit_NK.T, strict=True)
    attacks = (membership(*both, patient_N, is_member_N) for both in columns)
    found = dict(zip(labels, tracked("labels attacked", attacks, len(labels)), strict=True))
    if engine.is_rank_zero:
        write_record(folder.path / AUDIT, {"labels": found}, [resolve_file(folder.best)])
    return found


def open_trained(run_dir: str, verb: str) -> tuple[RunFolder, FinetuneConfig, ShardSet, list[str]]:
    """A finished run with yes/no labels, its shards and labels. ValueError: it is none, or they are
    not what it was trained on."""
    folder, config = finished_run(run_dir), load_run(run_dir, [])
    if config.data.task == "regression":
        raise ValueError(f"{verb} is for yes/no labels; this run predicts numbers")
    shards, labels = open_shards(config.data)
    environment = read_record(folder.environment, {"data_index_sha256": str})
    if shards.index_sha256 != environment["data_index_sha256"]:
        raise ValueError(f"data.shards={config.data.shards} is not what {run_dir} was trained on")
    return folder, config, shards, labels


def describe_audit(labels: dict[str, Any]) -> list[str]:
    """Lines for a terminal or a card."""
    lines = []
    for name, found in labels.items():
        who = f"{found['members']} members, {found['non_members']} non-members"
        for attack in ATTACKS:
            parts = [f"AUROC {format_with_interval(found[attack]['auroc'])}"]
            for rate in FALSE_POSITIVE_RATES:
                entry = found[attack]["found_at"][f"{rate:g}"]
                text = entry.get("not_measured") or format_with_interval(entry)
                parts.append(f"found at {format_percent(rate)} false positives: {text}")
            lines.append(f"{name}, {attack} attack ({who}): {'; '.join(parts)}")
    return lines


def warnings_of(labels: dict[str, Any]) -> list[str]:
    """One line for each label whose training patients an attack distinguishes from others."""
    lines = []
    for name, found in labels.items():
        for attack in ATTACKS:
            auroc, at = found[attack]["auroc"], found[attack]["found_at"]["0.01"]
            if auroc["low"] > WARN_AUROC or at.get("low", 0.0) > WARN_FOUND:
                lines.append(
                    f"{name}: the {attack} attack distinguishes training patients from others "
                    f"(AUROC {format_with_interval(auroc)}); consider who gets these weights"
                )
                break
    return lines


def read_audit(run: Path) -> dict[str, Any]:
    """The labels of a run's audit.json; {} if it was not audited."""
    return RunFolder(run).read_about(AUDIT, {"labels": {"*": FOUND}}).get("labels", {})
