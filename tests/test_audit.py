"""The audit finds the members of a model that remembers them, and nobody where it does not."""

import json

import numpy as np
import pytest

from hpc_ecg.cli.command import main
from hpc_ecg.evaluation import membership as attacks
from hpc_ecg.evaluation.membership import membership
from hpc_ecg.hashing import write_record
from hpc_ecg.inference import audit as auditing
from hpc_ecg.training.run_folder import WEIGHTS, RunFolder

pytestmark = pytest.mark.slow

PATIENTS = 4000


def simulated(rng, gain: float, hard: float = 0.0) -> dict:
    """Two ECGs a patient. `gain`: how much surer the model is of members; `hard`: how much less
    sure of positives than of negatives."""
    patient_N = np.repeat(np.arange(PATIENTS), 2)
    is_member_N = patient_N % 2 == 0
    label_N = (rng.random(PATIENTS) < 0.3)[patient_N].astype(float)
    margin_N = rng.normal(1.0, 1.0, PATIENTS)[patient_N] + rng.normal(0, 0.3, 2 * PATIENTS)
    margin_N += gain * is_member_N - hard * label_N
    return membership(
        label_N, (2 * label_N - 1) * margin_N, patient_N.astype(str), is_member_N, seed=1
    )


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_without_memory_an_attack_finds_as_many_as_it_accuses_wrongly(rng, attack):
    found = simulated(rng, gain=0.0)[attack]
    assert found["auroc"]["low"] < 0.5 < found["auroc"]["high"]
    assert found["auroc"]["high"] - found["auroc"]["low"] < 0.1
    assert found["found_at"]["0.01"]["low"] <= 0.01 <= found["found_at"]["0.01"]["high"]


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_members_of_a_model_that_remembers_are_found(rng, attack):
    found = simulated(rng, gain=1.5)[attack]
    # two normal distributions 1.5 apart, SD (1 + .09 / 2)^.5: Φ(1.5 / (2^.5 · 1.022)) = .85
    assert found["auroc"]["value"] == pytest.approx(0.85, abs=0.02)
    assert found["found_at"]["0.01"]["low"] > 0.05


def test_calibration_sees_members_where_labels_differ_in_difficulty(rng):
    found = simulated(rng, gain=1.0, hard=4.0)
    assert found["calibrated"]["auroc"]["low"] > found["loss"]["auroc"]["high"]


def test_rates_that_cannot_be_measured_are_not_stated(rng):
    found = simulated(rng, gain=0.0)
    assert found["non_members"] + found["references"] == PATIENTS // 2
    assert 900 < found["non_members"] < 1100
    if found["non_members"] < 1000:
        text = f"needs 1000 non-members, there are {found['non_members']}"
        assert found["loss"]["found_at"]["0.001"] == {"not_measured": text}
    else:
        assert set(found["loss"]["found_at"]["0.001"]) == {"value", "low", "high"}


def test_a_run_with_few_patients_is_refused(undisturbed, capsys):
    assert main(["audit", str(undisturbed)]) == 2
    assert "the audit needs at least 20 patients each" in capsys.readouterr().err
    assert not (undisturbed / "audit.json").exists()


@pytest.mark.slow
def test_a_run_is_audited_and_its_bundle_says_so(undisturbed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(attacks, "MIN_PATIENTS", 2)
    assert main(["audit", str(undisturbed)]) == 0
    out = capsys.readouterr().out
    found = json.loads((undisturbed / "audit.json").read_text())["labels"]["af"]
    assert f"({found['members']} members, {found['non_members']} non-members)" in out
    assert found["members"] > 15 and found["non_members"] + found["references"] > 5
    assert main(["bundle", str(undisturbed), str(tmp_path / "bundle")]) == 0
    assert "not audited" not in capsys.readouterr().out
    card = (tmp_path / "bundle" / "CARD.md").read_text()
    assert f"- af, loss attack ({found['members']} members, " in card
    (undisturbed / "audit.json").unlink()

    class OfAnotherRank(auditing.Engine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.is_rank_zero = False

    monkeypatch.setattr(auditing, "Engine", OfAnotherRank)
    assert auditing.audit(str(undisturbed))["af"] == found
    assert not (undisturbed / "audit.json").exists(), "process 0 alone writes"


def test_an_unfinished_run_is_refused(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert f"{tmp_path} is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["audit.json", "update.json"])
def test_a_record_counts_for_the_weights_that_it_is_about(tmp_path, name):
    record, weights, other = (tmp_path / n for n in (name, WEIGHTS, "metrics.jsonl"))
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    other.write_text("{}")
    run = RunFolder(tmp_path)
    assert run.read_about(name) == {}
    write_record(record, {"labels": {"af": 1}}, [weights])
    assert run.read_about(name)["labels"] == {"af": 1}
    weights.write_bytes(b"new")
    with pytest.raises(ValueError, match=r"model\.safetensors has changed since"):
        run.read_about(name)
    for files in ([], [other]):
        write_record(record, {"labels": {"af": 1}}, files)
        with pytest.raises(ValueError, match="does not say which weights it is about"):
            run.read_about(name)
    record.write_text(record.read_text().replace("1", "2", 1))
    with pytest.raises(ValueError, match="has changed since"):
        run.read_about(name)
