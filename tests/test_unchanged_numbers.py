"""Numbers stay: what a report says of a finished sweep, the bytes of shards, what each step sees.

Floats of a report agree to nine digits; what depends on the clock is left out. Losses of runs
with weights that (almost) stand still show which records each step saw, with which dropout and
augmentation. Held elsewhere: the curve of a training (test_finetune), the reference's own curves
and orders (test_reference, test_order), small orders by value (test_order, test_schedule).
"""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recorded import WORDS, copy_of_0_1, hpc_ecg, same_as_recorded

# The imports of this file from inside of the package: what renames these has to change them here.
from hpc_ecg.data.augment import augment, record_seeds
from hpc_ecg.data.settings import AugmentConfig
from hpc_ecg.model.dropout import RecordDropout, token_seeds

SWEEPS = {
    "binary": ("sweeps/finished", ()),
    "multilabel": ("multilabel", ("--no-baselines",)),
    "regression": ("regression", ("--no-baselines",)),
}
CLOCK = ("varies",)
FITTED = ("adds", "baselines")
"""Parts of a comparison that hold regressions which iterate: to six digits."""
STILL = [
    *(word for word in WORDS["run"] if not word.startswith("model.")),
    *("init.checkpoint=wcr_afib_5y.safetensors", "init.head=keep", "train.calibration=none"),
    *("optim.lr=1e-12", "optim.weight_decay=0", "train.max_epochs=2"),
]
ALONE = ["data.batch_size=1", "model.activation_dropout=0"]
STREAM = ["data.read=stream", "data.stream_lanes=2", "data.stream_buffer=5"]
AUGMENTED = {
    "lead_mask": 0.2,
    "noise_mv": 0.1,
    "wander_mv": 0.2,
    "powerline_mv": 0.1,
    "shift_s": 0.5,
    "scale": 0.2,
}
CASES = {
    "all": ALONE,
    "another_seed": [*ALONE, "seed=1"],
    "balanced": [*ALONE, "data.sampling=balanced"],
    "one_per_patient": [*ALONE, "data.sampling=one_per_patient"],
    "stream": [*ALONE, *STREAM],
    "stream_balanced": [*ALONE, *STREAM, "data.sampling=balanced", "seed=2"],
    "fixed_batches": [*ALONE[1:], "data.batch_size=3", "data.order=fixed_batches", "seed=1"],
    "label_fraction": [*ALONE, "data.label_fraction=0.4"],
    "dropout": [
        "data.batch_size=3",
        *(f"model.{name}=0.2" for name in ("dropout", "dropout_input", "final_dropout")),
        *(f"model.{name}_dropout=0.2" for name in ("activation", "attention")),
    ],
    "augmentation": [*ALONE, *(f"augment.{name}={size}" for name, size in AUGMENTED.items())],
}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return copy_of_0_1(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module", params=SWEEPS)
def report(old, request):
    """The report of a sweep that is finished, as its name and its folder."""
    sweep_dir, more = SWEEPS[request.param]
    assert hpc_ecg(old, "report", sweep_dir, "--replicates", "200", *more) == 0
    return request.param, old / sweep_dir / "report"


def test_the_comparison_of_a_finished_sweep_has_the_numbers_that_it_had(report):
    name, folder = report
    found = json.loads((folder / "comparison.json").read_text())
    kept = {key: value for key, value in found.items() if key not in (*CLOCK, *FITTED)}
    same_as_recorded(f"comparison_{name}", kept, rtol=1e-9)
    same_as_recorded(f"comparison_{name}_fitted", {key: found[key] for key in FITTED}, rtol=1e-6)


def test_the_tables_of_a_report_have_the_numbers_that_they_had(report):
    name, folder = report
    tables = {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}
    del tables["cost"]
    if "curves" in tables:
        tables["curves"] = summed(tables["curves"])
    same_as_recorded(f"tables_{name}_fitted", tables.pop("baselines", {}), rtol=1e-6)
    same_as_recorded(f"tables_{name}", tables, rtol=1e-9)


def test_the_card_of_a_chosen_model_says_what_it_said(report):
    name, folder = report
    cards = {
        path.parent.name: path.read_text().splitlines()
        for path in sorted(folder.glob("cards/*/MODEL_CARD.md"))
    }
    same_as_recorded(f"cards_{name}", cards)


def read_table(path: Path) -> dict[str, list]:
    """Column -> cells; whole numbers stay the text that they are."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return {name: [as_cell(row[k]) for row in rows] for k, name in enumerate(header)}


def as_cell(text):
    try:
        return text if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def summed(table):
    """A long table in few numbers, which no cell and no order can change unseen."""
    short = {}
    for name, cells in table.items():
        try:
            numbers = [0.0 if cell == "" else float(cell) for cell in cells]
        except ValueError:
            short[name] = digest_of(cells)
            continue
        weights = np.sqrt(np.arange(1, len(cells) + 1))
        short[name] = [len(cells), float(np.sum(numbers)), float(weights @ numbers)]
    return short


def digest_of(values) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()


def test_shards_of_the_synthetic_cohort_are_byte_for_byte_what_they_were(cohort, shards):
    # other tests that share the cohort leave their own tables beside it
    recordings = [*sorted((cohort.parent / "records").rglob("*.*")), cohort]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in recordings]
    found = {"recordings": digest_of(digests)}
    found |= {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(shards.glob("*.tar"))
    }
    index = pd.read_parquet(shards / "index.parquet")
    found |= {f"index: {name}": of_column(values) for name, values in index.items()}
    same_as_recorded("shards", found, rtol=1e-9)


def of_column(values):
    kind, cells = str(values.dtype), values.tolist()
    if values.name == "sha256":
        return [kind, digest_of(cells)]
    return [kind, *(None if cell != cell else cell for cell in cells)]


@pytest.mark.parametrize("case", CASES)
def test_each_step_sees_the_records_dropout_and_augmentation_that_it_saw(old, case):
    assert hpc_ecg(old, "finetune", *STILL, *CASES[case], f"run_dir=orders/{case}") == 0
    lines = (old / "orders" / case / "metrics.jsonl").read_text().splitlines()
    losses = [event["loss"] for event in map(json.loads, lines) if event["event"] == "step"]
    same_as_recorded(f"losses_{case}", [round(loss, 6) for loss in losses], rtol=2e-5)


def test_masks_of_dropout_are_bit_for_bit_what_they_were():
    seeds_B = torch.tensor([0, 1, -(2**63), 2**62 + 12345])
    found = {}
    for p in (0.1, 0.5):
        for stream in (0, 3):
            ones_BTD = torch.ones(4, 7, 33)
            kept_BTD = RecordDropout(p, stream).train()(ones_BTD, token_seeds(seeds_B, 7)) != 0
            bits = np.packbits(kept_BTD.numpy().reshape(-1))
            found[f"p={p}, stream={stream}"] = bits.tobytes().hex()
    same_as_recorded("dropout_masks", found)


def test_augmented_records_are_what_they_were():
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(3)]
    ecg_nCS = torch.sin(torch.arange(3 * 12 * 500).view(3, 12, 500) / 40)
    found = {}
    for seed, step in ((0, 0), (0, 1), (7, 1000)):
        words = record_seeds(digests, seed, step)
        found[f"words of seed {seed}, step {step}"] = words.tolist()
        for name, size in AUGMENTED.items():
            out_nCS = augment(ecg_nCS.clone(), words, AugmentConfig(**{name: size}), 100)
            sample = out_nCS[:, ::5, ::83].reshape(-1).tolist()
            found[f"{name} of seed {seed}, step {step}"] = [round(x, 5) for x in sample]
    same_as_recorded("augmented", found, atol=2e-5)
