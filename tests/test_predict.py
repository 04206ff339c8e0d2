"""`predict`: the risks of recordings without labels are those that `evaluate` gives. A bundle is a
model to hand over; the Python API gives what the commands give."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FIXTURES, words_for
from safetensors.torch import load_file
from scipy.special import expit

import hpc_ecg
from hpc_ecg.cli.command import main
from hpc_ecg.cli.predict import share_of
from hpc_ecg.config.load import load_config
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.files import find_recording, read_recording
from hpc_ecg.ecg.recording import RecordLocation
from hpc_ecg.hashing import SHA256, sha256_of_value
from hpc_ecg.inference import abstain
from hpc_ecg.inference import prediction_job as predicting
from hpc_ecg.inference.model_source import open_model
from hpc_ecg.inference.pictures import SweepComparison
from hpc_ecg.inference.prediction_job import PredictionJob, load_forward, predict_files
from hpc_ecg.inference.sources import find_sources
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.evaluate import evaluate, evaluate_weights
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.settings import FinetuneConfig

pytestmark = pytest.mark.slow
METHODS = ("youden", "sensitivity_90", "specificity_90")


@pytest.fixture(scope="module")
def sweep(shards, tmp_path_factory) -> Path:
    """Two finished, evaluated seeds of one strategy."""
    folder = tmp_path_factory.mktemp("predict") / "sweep"
    for seed in (0, 1):
        words = words_for(shards, folder / "ssl_new_head" / f"seed-{seed}", f"seed={seed}")
        config = load_config(FinetuneConfig, [], words)
        finetune(config)
        evaluate(config)
    return folder


@pytest.fixture(scope="module")
def run(sweep) -> Path:
    return sweep / "ssl_new_head" / "seed-0"


@pytest.fixture(scope="module")
def evaluated(run) -> pd.DataFrame:
    return pd.read_parquet(run / "predictions" / "test.parquet").set_index("record")


def command(*words: object) -> int:
    return main(["predict", *map(str, words), "--workers", "1"])


def read(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    return table.set_index("record")


def test_files_have_the_risks_of_evaluate_to_the_bit(run, cohort, evaluated, tmp_path, capsys):
    out = tmp_path / "risks.parquet"
    assert command(run, cohort, "--out", out) == 3
    table = read(out)
    points = json.loads((run / "best" / "operating_point.json").read_text())["af"]
    same = table.loc[evaluated.index]
    assert np.array_equal(same["af_logit"], evaluated["af.logit"])
    assert np.array_equal(same["af_probability"], evaluated["af.probability"])
    for method in METHODS:
        flagged = evaluated["af.probability"] >= points[method]["threshold"]
        assert (same[f"af_at_{method}"] == flagged).all(), method
    refused = table[table["reason"] != ""]
    assert len(refused) == len(table) - table["af_logit"].notna().sum() > 0
    assert refused[["af_probability", *(f"af_at_{m}" for m in METHODS)]].isna().all(axis=None)
    text = capsys.readouterr().out
    assert f"{len(table) - len(refused)} of {len(table)} recordings predicted: {out}" in text
    assert not (tmp_path / "risks.parquet.parts").exists()


def test_shards_folders_patterns_and_tables_are_the_same_recordings(run, shards, cohort, tmp_path):
    records, table = cohort.parent / "records", tmp_path / "some.csv"
    names = pd.read_csv(cohort).iloc[:9]["file"]
    names.to_frame("path").to_csv(table, index=False)
    ways = {
        "shards": [shards],
        "folder": [records],
        "pattern": [records / "*.*"],
        "files": sorted(records.iterdir())[::-1],
        "table": [table, "--file", "path", "--signals", cohort.parent],
    }
    found = {}
    for name, words in ways.items():
        out = tmp_path / f"{name}.csv"
        assert command(run, *words, "--out", out) in (0, 3), name
        risks = read(out)
        risks.index = [Path(record).with_suffix("").name for record in risks.index]
        found[name] = risks["af_logit"].dropna()
    assert len(found["table"]) > 0 and len(found["shards"]) > 50
    for name, logits in found.items():
        both = logits.index.intersection(found["folder"].index)
        assert len(both) == len(logits), name
        assert (logits == found["folder"][both]).all(), name


def test_a_risk_depends_on_its_recording_alone(run, cohort, tmp_path):
    """In any order and batch the same bits; with another size of batches, the same to 1e-6."""
    files = sorted((cohort.parent / "records").glob("*.hea"))
    runs = {"sorted": (files, 12), "reversed": (files[::-1], 12), "few": (files[5:8], 12)}
    runs |= {"other": (files, 7)}
    found = {}
    for name, (words, size) in runs.items():
        out = tmp_path / f"{name}.parquet"
        command(run, *words, "--out", out, "--batch-size", size)
        found[name] = read(out)["af_logit"].dropna()
    whole = found["sorted"]
    assert (found["reversed"].loc[whole.index] == whole).all()
    assert len(found["few"]) == 3 and (whole[found["few"].index] == found["few"]).all()
    np.testing.assert_allclose(found["other"], whole, atol=1e-6)


def test_an_ensemble_is_the_mean_probability_of_its_seeds(sweep, shards, tmp_path):
    paths = [sweep / "ssl_new_head" / f"seed-{seed}" for seed in (0, 1)]
    outs = [tmp_path / f"{n}.parquet" for n in range(4)]
    for path, out in zip(paths, outs, strict=False):
        assert command(path, shards, "--out", out) == 0
    assert command(sweep, shards, "--ensemble", "--out", outs[2]) == 0
    assert command(sweep, shards, "--strategy", "ssl_new_head", "--out", outs[3]) == 0
    first, second, ensemble, selected = map(read, outs)
    both = np.stack([first["af_probability"], second["af_probability"]])
    np.testing.assert_allclose(ensemble["af_probability"], both.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(ensemble["af_sd"], both.std(axis=0, ddof=1), rtol=1e-9)
    mean = both.mean(axis=0)
    np.testing.assert_allclose(ensemble["af_logit"], np.log(mean / (1 - mean)), rtol=1e-9)
    scores = [json.loads((path / "finished.json").read_text())["best_score"] for path in paths]
    best = (first, second)[int(np.argmax(scores))]
    assert (selected["af_logit"] == best["af_logit"]).all() and "af_sd" not in selected
    valid = [pd.read_parquet(path / "predictions" / "valid.parquet") for path in paths]
    rank = np.mean([v.sort_values("record")["af.probability"] for v in valid], axis=0)
    labels = valid[0].sort_values("record")["af.label"].to_numpy()
    points = open_model(sweep, None, True).points["af"]
    threshold = points["sensitivity_90"]["threshold"]
    assert (rank[labels == 1] >= threshold).mean() >= 0.9
    assert (ensemble["af_at_sensitivity_90"] == (mean >= threshold)).all()


def test_a_file_of_weights_in_any_format_gives_the_same_risks(run, shards, tmp_path):
    weights = run / "best" / "model.safetensors"
    logits = {}
    for ending in ("safetensors", "pt", "onnx"):
        copy = tmp_path / f"model.{ending}"
        if ending == "safetensors":
            shutil.copy(weights, copy)
        else:
            assert main(["weights", "convert", str(weights), str(copy)]) == 0
        assert command(copy, shards, "--out", tmp_path / f"{ending}.parquet") == 0
        table = read(tmp_path / f"{ending}.parquet")
        assert not [name for name in table if "_at_" in name], "a file has no thresholds"
        logits[ending] = table["af_logit"]
    assert (logits["pt"] == logits["safetensors"]).all()
    np.testing.assert_allclose(logits["onnx"], logits["pt"], atol=1e-4)


def job_of(run: Path, cohort: Path, out: Path, **changes) -> PredictionJob:
    model = open_model(run)
    sources = find_sources([str(cohort)], ArrayLayout())
    recordings = Recordings(signals=Path(), signal=model.signal)
    job = PredictionJob(model=model, sources=sources, recordings=recordings, out=out, batch_size=12)
    return replace(job, **changes)


def test_a_killed_job_goes_on_and_repeats_no_part(run, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "PART", 20)
    whole, out = tmp_path / "whole.parquet", tmp_path / "risks.parquet"
    with load_forward(open_model(run), tmp_path) as forward:
        assert predict_files(job_of(run, cohort, whole), forward) is not None
        calls = []

        def dying(counts_BCS, samples_B, after):
            calls.append(len(counts_BCS))
            if len(calls) > after:
                raise KeyboardInterrupt
            return forward(counts_BCS, samples_B)

        first = partial(dying, after=3)
        first.takes_padded = True
        with pytest.raises(KeyboardInterrupt):
            predict_files(job_of(run, cohort, out), first)
        parts = sorted(path.name for path in (tmp_path / "risks.parquet.parts").glob("part-*"))
        assert parts == ["part-000000.parquet"] and not out.exists()
        with pytest.raises(ValueError, match=r"parts holds the unfinished work of another command"):
            predict_files(job_of(run, cohort, out, batch_size=5), forward)
        calls.clear()
        second = partial(dying, after=100)
        second.takes_padded = True
        assert predict_files(job_of(run, cohort, out), second) is not None
    sources = len(find_sources([str(cohort)], ArrayLayout()))
    assert sum(calls) < sources - 20 + 12, "the finished part is not predicted again"
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(whole))


def test_processes_share_the_parts_and_the_last_joins_them(run, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "PART", 20)
    whole, out = tmp_path / "whole.csv", tmp_path / "shared.csv"
    with load_forward(open_model(run), tmp_path) as forward:
        predict_files(job_of(run, cohort, whole), forward)
        assert predict_files(job_of(run, cohort, out, share=(1, 2)), forward) is None
        assert not out.exists()
        assert predict_files(job_of(run, cohort, out, share=(0, 2)), forward) is not None
    assert out.read_text() == whole.read_text()


def test_a_process_without_a_part_leaves_what_the_others_wrote(run, cohort, tmp_path):
    """It may start after they have ended."""
    out = tmp_path / "risks.csv"
    with load_forward(open_model(run), tmp_path) as forward:
        assert predict_files(job_of(run, cohort, out), forward) is not None
        before = out.read_bytes()
        assert predict_files(job_of(run, cohort, out, share=(1, 2)), forward) is None
    assert out.read_bytes() == before and [*tmp_path.glob("*.parts")] == []


def test_two_processes_that_end_at_once_join_the_parts_once(run, cohort, tmp_path, monkeypatch):
    out, job = tmp_path / "risks.csv", job_of(run, cohort, tmp_path / "risks.csv")
    real = pd.read_parquet

    def joined_by_another(path):
        shutil.rmtree(job.folder)
        return real(path)

    with load_forward(open_model(run), tmp_path) as forward:
        monkeypatch.setattr(pd, "read_parquet", joined_by_another)
        assert predict_files(job, forward) is None
    assert not out.exists()


@pytest.mark.parametrize(
    ("task", "first", "last", "step", "count", "expected"),
    [(0, 0, 7, 1, 8, (1, 16)), (4, 2, 8, 2, 4, (3, 8)), (2, 0, 5, 1, 3, None)],
)
def test_tasks_of_an_array_share_the_work_or_are_refused(
    monkeypatch, task, first, last, step, count, expected
):
    names = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    if expected is None:
        with pytest.raises(ValueError, match=r"3 tasks, numbered from 0 to 5.*--array=0-2"):
            share_of(1, 2)
    else:
        assert share_of(1, 2) == expected


def test_windows_of_one_recording_have_names_of_their_own(run, cohort, tmp_path):
    model = open_model(run)
    signal = replace(model.signal, window="all")
    recordings = Recordings(signals=Path(), signal=signal)
    long = tmp_path / "long.npy"
    np.save(long, np.random.default_rng(0).normal(0, 0.3, (12, 5000)))
    layout = ArrayLayout(sample_rate_hz=250.0)
    job = replace(
        job_of(run, cohort, tmp_path / "risks.csv"),
        model=replace(model, signal=signal),
        sources=find_sources([str(long)], layout),
        recordings=replace(recordings, layout=layout),
    )
    with load_forward(model, tmp_path) as forward:
        table = predict_files(job, forward)
    assert table["record"].tolist() == [f"{long}-000", f"{long}-001"]


def test_arrays_of_many_are_predicted_row_by_row(run, cohort, tmp_path):
    files = sorted((cohort.parent / "records").glob("*.hea"))[:4]
    table = tmp_path / "files.csv"
    signals = [read_recording(find_recording(f.parent, f.name), ArrayLayout()) for f in files]
    np.save(tmp_path / "many.npy", np.stack([r.signal_LS for r in signals]))
    assert command(run, *files, "--out", table) == 0
    rate = f"{signals[0].sample_rate_hz:g}"
    out = tmp_path / "many.csv"
    assert command(run, tmp_path / "many.npy", "--rate", rate, "--out", out) == 0
    assert read(out).index.tolist() == [f"{tmp_path}/many.npy::{row}" for row in range(4)]
    assert (read(out)["af_logit"].array == read(table)["af_logit"].array).all()
    one = tmp_path / "one.csv"
    assert command(run, f"{tmp_path}/many.npy::2", "--rate", rate, "--out", one) == 0
    assert read(one)["af_logit"].tolist() == read(table)["af_logit"].tolist()[2:3]


def test_features_are_what_the_head_gets(run, shards, tmp_path, capsys):
    """The last layer's are the head's input; an earlier layer's those of a model cut off there."""
    out, base = tmp_path / "features.parquet", FIXTURES / "tiny_base_ssl.pt"
    assert main(["embed", str(run), str(shards), "--out", str(out)]) == 0
    features_ND = np.stack(read(out)["features"])
    head = load_file(run / "best" / "model.safetensors")
    logits = features_ND @ head["head.weight"].numpy().T + head["head.bias"].numpy()
    assert command(run, shards, "--out", tmp_path / "risks.parquet") == 0
    expected = read(tmp_path / "risks.parquet")["af_logit"]
    np.testing.assert_allclose(logits[:, 0], expected, atol=1e-5)
    found = {}
    for layer in (0, 1, 2):
        path = tmp_path / f"{layer}.parquet"
        words = ["embed", base, shards, "--layer", layer, "--out", path]
        assert main([str(word) for word in words]) == 0
        found[layer] = np.stack(read(path)["features"])
        assert found[layer].shape == features_ND.shape and np.isfinite(found[layer]).all()
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[1], found[2])
    for layer in ("3", "-1"):
        words = ["embed", base, shards, "--layer", layer, "--out", tmp_path / "x.parquet"]
        assert main([str(word) for word in words]) == 2
        assert "--layer must be from 0 to 2 for this model" in capsys.readouterr().err


def test_a_wrong_unit_is_said(run, cohort, tmp_path, capsys):
    record = cohort.parent / "records"
    names = sorted(record.glob("*.hea"))[:3]
    signals = [read_recording(find_recording(f.parent, f.name), ArrayLayout()) for f in names]
    np.save(tmp_path / "counts.npy", np.stack([r.signal_LS for r in signals]) * 10)
    words = ("--rate", f"{signals[0].sample_rate_hz:g}", "--out", tmp_path / "x.csv")
    assert command(run, tmp_path / "counts.npy", *words) == 0
    [line] = [text for text in capsys.readouterr().err.splitlines() if "amplitude" in text]
    assert "units of 0.1 mV taken for mV" in line and "not to be believed" in line


def test_names_are_no_formulas_and_broken_files_stop_nothing(run, cohort, tmp_path):
    good = sorted((cohort.parent / "records").glob("*.hea"))[0]
    recording = read_recording(find_recording(good.parent, good.name), ArrayLayout())
    folder = tmp_path / "inbox"
    folder.mkdir()
    np.save(folder / "=1+2.npy", recording.signal_LS)
    np.save(folder / "short.npy", recording.signal_LS[:, :100])
    (folder / "torn.dcm").write_bytes(bytes(200))
    table = tmp_path / "names.csv"
    table.write_text("file\n=1+2.npy\nshort.npy\ntorn.dcm\ngone.npy\n")
    out = tmp_path / "risks.csv"
    words = ("--signals", folder, "--rate", f"{recording.sample_rate_hz:g}", "--out", out)
    assert command(run, table, *words) == 3
    assert "\n'=1+2.npy," in out.read_text()
    found = pd.read_csv(out).set_index("record")
    assert found["reason"].fillna("").tolist() == ["", "too short", "unreadable", "not found"]
    assert found["message"].iloc[1].startswith("0.2 s at 500 Hz, the window is 10 s")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN", "nowhere.hea"), "nowhere.hea: no such file or folder, and no file fits it"),
        (("RUN", "STEM"), "as a pattern; did you mean"),
        (("nowhere", "FILE"), "nowhere: no such file"),
        (("RUN", "EMPTY"), "holds no recording; files that are read end in .dat, .dcm,"),
        (("RUN", "FILE", "--workers", "0"), "--workers must be at least 1"),
        (("RUN", "FILE", "--batch-size", "0"), "--batch-size must be at least 1"),
        (("RUN", "FILE", "--rate", "fast"), "--rate must be 50 to 10000 Hz, got fast"),
        (("RUN", "FILE", "--ensemble"), "--ensemble chooses among the runs of a sweep"),
        (("RUN", "FILE", "--strategy", "x"), "--strategy chooses among the runs of a sweep"),
        (("SWEEP", "FILE", "--strategy", "ssl_newhead"), "did you mean ssl_new_head?"),
        (("RUN", "FILE", "--out", "x.xlsx"), "--out x.xlsx: the ending must be .csv or .parquet"),
        (("RUN", "FILE", "--out", "EXISTS"), "exists; give --force to replace it"),
        (("RUN", "TABLE", "--file", "x"), "no column 'x'; the table has "),
        (("RUN", "SHARDS", "FILE"), "a folder of shards is predicted without other files"),
        (("BASE", "FILE"), "a pre-trained file without a head predicts nothing"),
        (("RUN", "FILE", "--unit", "x"), "unit must be one of mV, uV or V, got 'x'"),
        (("RUN", "FILE", "--record", "x"), "--record is for a table; here it would do nothing"),
        (("RUN", "SHARDS", "--rate", "500"), "--rate is for recordings, not shards"),
    ],
)
def test_a_mistake_is_one_line(sweep, run, shards, cohort, tmp_path, capsys, words, message):
    exists, empty = tmp_path / "exists.csv", tmp_path / "empty"
    exists.write_text("mine")
    empty.mkdir()
    places = {"RUN": run, "SWEEP": sweep, "SHARDS": shards, "EMPTY": empty, "EXISTS": exists}
    places |= {"TABLE": cohort, "BASE": FIXTURES / "tiny_base_ssl.pt"}
    places["FILE"] = next((cohort.parent / "records").glob("*.hea"))
    places["STEM"] = places["FILE"].with_suffix("")
    given = [places.get(word, word) for word in words]
    if "--out" not in words:
        given += ["--out", tmp_path / "risks.csv"]
    assert main(["predict", *map(str, given)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert exists.read_text() == "mine" and not (tmp_path / "risks.csv.parts").exists()


def test_a_wrong_model_is_said_before_torch_is_imported(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0")
    code = """
import sys
from hpc_ecg.cli.command import main
for model in ("nowhere", sys.argv[1]):
    assert main(["predict", model, "x.hea", "--out", sys.argv[1] + "/risks.csv"]) == 2
assert "torch" not in sys.modules
"""
    done = [sys.executable, "-c", code, str(tmp_path)]
    lines = subprocess.run(done, check=True, capture_output=True, text=True).stderr.splitlines()
    assert "nowhere: no such file" in lines[0] and "is not finished: start it again" in lines[1]


def test_all_real_formats_have_the_risks_of_their_shards(run, real_data, tmp_path):
    """Counts and so risks are those of `data shard` and `evaluate`, refusals with their reasons."""
    folder = real_data / "ecg" / "formats"
    sources = find_sources([str(folder)], ArrayLayout())
    table = tmp_path / "table.csv"
    rows = pd.DataFrame({"file": [source.file for source in sources]})
    rows.assign(af=np.arange(len(rows)) % 2, split="test").to_csv(table, index=False)
    words = ["--label", "af", "--signals", folder, "--out", tmp_path / "set", "--split", "split"]
    words += ["--one-patient-per-record", "--ids-as-written", "--workers", "1"]
    assert main(["data", "shard", str(table), *map(str, words)]) == 0
    config = load_config(FinetuneConfig, [str(run / "config.yaml")], [])
    result = tmp_path / "evaluated"
    shards = str(tmp_path / "set")
    data = replace(config.data, shards=shards)
    evaluate_weights(replace(config, data=data), run / "best", result, split="test")
    expected = pd.read_parquet(result / "predictions.parquet").set_index("record")["af.logit"]
    out = tmp_path / "risks.parquet"
    assert command(run, table, "--signals", folder, "--out", out) in (0, 3)
    found = read(out)
    assert (found.loc[expected.index, "af_logit"] == expected).all() and len(expected) == 14
    left_out = pd.read_csv(tmp_path / "set" / "left_out.csv")
    assert (found["reason"] != "").sum() == len(left_out)
    assert found["af_logit"].isna().sum() == len(left_out)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "af"
    assert main(["bundle", str(run), str(out), "--onnx"]) == 0
    return out


def test_a_bundle_gives_the_risks_of_its_run(bundle, run, shards, tmp_path, capsys):
    names = {path.name for path in bundle.iterdir()}
    assert names == {
        *("model.safetensors", "model.onnx", "model.json", "self-test.npy"),
        *("CARD.md", "README.md"),
    }
    assert main(["predict", str(bundle), "--self-test"]) == 0
    assert "self-test passed: logits of 3 ECGs are within 0.0e+00" in capsys.readouterr().out
    for model, out in ((bundle, "a.parquet"), (run, "b.parquet")):
        assert command(model, shards, "--out", tmp_path / out) == 0
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet"))
    assert len((bundle / "README.md").read_text().splitlines()) <= 20


def test_an_ensemble_travels_whole(sweep, shards, tmp_path):
    out = tmp_path / "both"
    assert main(["bundle", str(sweep), str(out), "--ensemble"]) == 0
    assert {path.name for path in out.glob("model*")} == {
        *("model-1.safetensors", "model-2.safetensors", "model.json"),
    }
    assert command(out, shards, "--out", tmp_path / "a.parquet") == 0
    assert command(sweep, "--ensemble", shards, "--out", tmp_path / "b.parquet") == 0
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet"))


def test_a_bundle_names_no_person_and_no_path(bundle, run, cohort, tmp_path):
    table = pd.read_csv(cohort)
    texts = [path.read_bytes().decode("latin-1") for path in bundle.iterdir()]
    places = {str(run), str(cohort.parent), "seed-0", "checkpoints"}
    people = {*table["record"], *table["patient_id"].astype(str)}
    for text in texts:
        assert not [place for place in places if place in text]
        assert not [name for name in people if re.search(rf"\b{re.escape(name)}\b", text)]


@pytest.mark.parametrize("name", ["model.safetensors", "self-test.npy", "CARD.md", "model.json"])
def test_a_changed_byte_is_refused_by_name(bundle, tmp_path, capsys, name):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert main(["predict", str(copy), "--self-test"]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "hpc_ecg/bundle/9"}, "its format is 'hpc_ecg/bundle/9', known is"),
        ({"weights": ["../model.safetensors"]}, "it has no digest of its weights"),
        ({"weights": []}, "it has no digest of its weights"),
        ({"labels": ["stroke"]}, "state other labels"),
        ({"settings": {"engine.precision": "fp4"}}, "engine.precision"),
        ({"settings": {"data.batch_size": "${oc.env:HOME}"}}, "data.batch_size"),
        ({"thresholds": {"af": {"youden": {"threshold": "x", "fitted_on": "valid"}}}}, "threshold"),
        ({"thresholds": {"af": {"youden": {"threshold": 0.5, "fitted_on": "test"}}}}, "'test'"),
        ({"self_test": {"logits": [[1.0]]}}, "the logits of its self-test do not fit"),
        ({"self_test": {"logits": [[[9.0]], [[9.0]], [[9.0]]]}}, "logits are off by"),
        ({"labels": None}, "labels cannot be 'None'"),
        ({"weights": [["model.safetensors"]]}, "it has no digest of its weights"),
        ({"combined": ["age"]}, "combined cannot be"),
        ({"abstention": ["distance"]}, "abstention cannot be"),
        ({"abstention": {"score": "chance", "percentiles": [1.0] * 50}}, "rule of abstention"),
        ({"abstention": {"score": "distance", "percentiles": [1.0] * 50}}, "it has no digest of"),
    ],
)
def test_an_edited_description_is_one_line(bundle, tmp_path, capsys, change, message):
    """Also if somebody computed its digest anew."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = json.loads((copy / "model.json").read_text()) | change
    content.pop(SHA256)
    content[SHA256] = sha256_of_value(content)
    (copy / "model.json").write_text(json.dumps(content))
    assert main(["predict", str(copy), "--self-test"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN", "THERE"), "exists; give the name of a new folder"),
        (("BUNDLE", "NEW"), "a bundle is made of a run or a sweep"),
        (("SWEEP", "NEW", "--ensemble", "--onnx"), "--onnx holds one model"),
        (("nowhere", "NEW"), "nowhere: no such file"),
    ],
)
def test_a_mistake_of_bundle_is_one_line(bundle, run, sweep, tmp_path, capsys, words, message):
    places = {"RUN": run, "SWEEP": sweep, "BUNDLE": bundle / "model.safetensors"}
    places |= {"THERE": tmp_path, "NEW": tmp_path / "new"}
    assert main(["bundle", *(str(places.get(word, word)) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_python_gives_what_the_command_gives(bundle, cohort, shards, tmp_path):
    records = cohort.parent / "records"
    assert command(bundle, records, "--out", tmp_path / "risks.parquet") == 3
    with hpc_ecg.load_predictor(bundle) as model:
        table = model.predict(records)
        few = model.predict([next(records.glob("*.hea"))])
        assert model.labels == ["af"] and set(model.thresholds["af"]) >= {"youden"}
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "risks.parquet"))
    assert len(few) == 1
    ecgs = hpc_ecg.open_shards(shards, "valid")
    ecg_LS, label_K = ecgs[0]
    assert ecg_LS.shape == (12, 2500) and ecg_LS.dtype == torch.float32
    assert ecgs.labels == ["af"] and label_K.shape == (1,)
    assert 0.2 < float(ecg_LS.abs().max()) < 10, "mV"
    assert torch.equal(ecgs[-1][0], ecgs[len(ecgs) - 1][0])
    with pytest.raises(IndexError):
        ecgs[len(ecgs)]
    with pytest.raises(ValueError, match="has the labels"):
        hpc_ecg.open_shards(shards, labels=["stroke"])


def test_a_recording_shows_itself(cohort):
    path = next((cohort.parent / "records").glob("*.hea"))
    ecg = hpc_ecg.read_recording(path)
    expected = read_recording(RecordLocation(path=path), ArrayLayout())
    assert np.array_equal(ecg.signal_LS, expected.signal_LS, equal_nan=True)
    assert ecg.leads[:3] == ("I", "II", "III")
    svg = ecg._repr_svg_()
    assert svg.startswith("<svg") and path.name in svg and "25 mm/s, 10 mm/mV" in svg
    assert ecg.plot()._repr_svg_() == svg == ecg.plot()


def test_evaluate_from_python(run, shards, tmp_path):
    stored = json.loads((run / "evaluation.json").read_text())
    result = hpc_ecg.evaluate(run)
    assert result["labels"] == stored["labels"]


def test_the_public_names_are_these_and_cost_nothing_until_used():
    assert hpc_ecg.__all__ == [
        *("__version__", "compare", "evaluate", "load_predictor", "open_shards", "read_recording"),
    ]
    code = "import sys, hpc_ecg; assert 'torch' not in sys.modules; hpc_ecg.read_recording"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = hpc_ecg.predict


def test_seeds_that_disagree_are_marked_in_predict_and_in_the_bundle(sweep, shards, tmp_path):
    outs = [tmp_path / f"{n}.parquet" for n in range(3)]
    assert command(sweep, shards, "--ensemble", "--out", outs[0], "--abstain", "0.8") == 0
    table = pd.read_parquet(outs[0]).set_index("record")
    seeds = [
        pd.read_parquet(sweep / "ssl_new_head" / f"seed-{n}" / "predictions" / "valid.parquet")
        for n in (0, 1)
    ]
    logits = [seed.sort_values("record")["af.logit"] for seed in seeds]
    names = seeds[0]["record"].sort_values()
    spread = {"logit_spread": np.std(logits, axis=0, ddof=1)}
    spread["probability_spread"] = np.std(expit(logits), axis=0, ddof=1)
    marked = table.loc[names, "abstained"].to_numpy(np.int64)
    wanted = {n: (s > np.percentile(s, 80)).astype(int) for n, s in spread.items()}
    assert any(np.array_equal(marked, w) for w in wanted.values())
    assert 0 < marked.mean() < 0.35 and table["af_probability"].notna().all()
    assert main(["bundle", str(sweep), str(tmp_path / "bundle"), "--ensemble"]) == 0
    assert command(tmp_path / "bundle", shards, "--out", outs[1], "--abstain", "0.8") == 0
    pd.testing.assert_frame_equal(pd.read_parquet(outs[1]).set_index("record"), table)
    assert command(tmp_path / "bundle", shards, "--out", outs[2]) == 0
    assert "abstained" not in pd.read_parquet(outs[2])
    source = hpc_ecg.load_predictor(tmp_path / "bundle", abstain=0.8)
    with source as model, pytest.raises(ValueError, match="no such file or folder"):
        model.predict("nowhere.hea")
    assert source._model.abstention["cut"] > 0


def test_a_run_is_far_from_its_training_where_the_features_are(
    sweep, shards, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(abstain, "MIN_PATIENTS", 10)
    run, outs = sweep / "ssl_new_head" / "seed-0", [tmp_path / f"{n}.parquet" for n in range(4)]
    assert command(run, shards, "--out", outs[0], "--abstain") == 2
    assert "has no rule" in capsys.readouterr().err
    assert command(run, "--fit-abstention") == 0
    record = json.loads((run / "abstention.json").read_text())
    assert record["score"] == "distance" and set(record["digests"]) == {
        *("best/model.safetensors", "best/abstention.safetensors"),
    }
    assert command(run, shards, "--out", outs[0], "--abstain", "0.8") == 0
    assert command(run, shards, "--out", outs[1]) == 0
    table, plain = (pd.read_parquet(out).set_index("record") for out in outs[:2])
    pd.testing.assert_frame_equal(table.drop(columns="abstained"), plain)
    assert main(["embed", str(run), str(shards), "--out", str(outs[2])]) == 0
    features = pd.read_parquet(outs[2]).set_index("record")["features"]
    index = pd.read_parquet(shards / "index.parquet")
    train = index[index["split"] == "train"].drop_duplicates("patient")["record"]
    x_ND = np.stack(features[train])
    precision = np.linalg.inv(abstain.ledoit_wolf(x_ND)[0])
    off_ND = np.stack(features) - x_ND.mean(axis=0)
    far = pd.Series(np.sqrt(np.einsum("nd,de,ne->n", off_ND, precision, off_ND)), features.index)
    valid = far[index.loc[index["split"] == "valid", "record"]]
    cut = np.percentile(valid, 80)
    clear = (far / cut - 1).abs() > 1e-3
    assert (table["abstained"][clear] == (far > cut)[clear]).all() and clear.sum() > 20
    assert main(["bundle", str(run), str(tmp_path / "bundle")]) == 0
    assert command(tmp_path / "bundle", shards, "--out", outs[3], "--abstain", "0.8") == 0
    pd.testing.assert_frame_equal(pd.read_parquet(outs[3]).set_index("record"), table)
    gaussian = run / "best" / "abstention.safetensors"
    gaussian.write_bytes(gaussian.read_bytes()[:-4] + b"\0\0\0\1")
    capsys.readouterr()
    assert command(run, shards, "--out", outs[3], "--abstain", "--force") == 2
    assert "abstention.safetensors has changed" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--self-test", "--fit-abstention"])
@pytest.mark.parametrize("others", [("a.xml",), ("--abstain",), ("--out", "risks.csv")])
def test_what_predicts_nothing_is_given_alone(run, capsys, option, others):
    assert command(run, option, *others) == 2
    assert f"{option} predicts nothing; give MODEL alone" in capsys.readouterr().err


def test_an_empty_option_is_not_left_out(run, cohort, tmp_path, capsys):
    assert command(run, cohort, "--out", tmp_path / "risks.csv", "--slurm", "") == 2
    assert "--slurm: expected words like jobs=8" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["", "0.3", "1", "90", "a.xml", "nan"])
def test_a_wrong_share_is_one_line(sweep, shards, tmp_path, capsys, share):
    words = [sweep, shards, "--ensemble", "--out", tmp_path / "risks.csv", "--abstain", share]
    assert command(*words) == 2
    expected = f"--abstain must be from 0.5 to 0.99, got {share!r}; FILES stand before it, or write"
    assert capsys.readouterr().err.strip().endswith(f"{expected} --abstain=0.9")


HOSTILE = "<script>alert(1)</script>\x07&"


def assert_is_text(html: str) -> None:
    """The hostile name is shown, as text."""
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html and "\x07" not in html


def test_results_show_themselves_with_their_numbers(sweep, run, shards, bundle):
    scores = hpc_ecg.evaluate(run)
    auroc = scores["labels"]["af"]["auroc"]
    assert f"{auroc['value']:.3f} ({auroc['low']:.3f}–{auroc['high']:.3f})" in scores._repr_html_()
    records = hpc_ecg.open_shards(shards, "valid")
    known = records._records.labels_NK[~np.isnan(records._records.labels_NK)]
    row = f"<td>af</td><td>{len(known)}</td><td>{len(records) - len(known)}</td>"
    assert f"{row}<td>{known.mean():.3f}</td>" in records._repr_html_()
    ecg = records.ecg(0)
    assert np.array_equal(ecg.signal_LS.astype(np.float32), records[0][0].numpy())
    assert ecg.name in ecg._repr_svg_() and ecg.sample_rate_hz == 250 and len(ecg.leads) == 12
    with hpc_ecg.load_predictor(bundle) as model:
        threshold = model.thresholds["af"]["youden"]
        assert f"<td>youden</td><td>{threshold:.4g}</td>" in model._repr_html_()
    comparison = hpc_ecg.compare(sweep, replicates=200)
    best = comparison.table.iloc[0]
    assert best["name"] == "ssl_new_head" and f"<td>{best['auroc']:.3f} (" in (
        comparison._repr_html_()
    )
    assert repr(comparison) == "\n".join(comparison.sentences)
    assert comparison._repr_html_().count("<svg") == 1


def test_a_name_from_a_file_is_never_markup(sweep, run, shards, cohort):
    scores = hpc_ecg.evaluate(run)
    scores["labels"] = {HOSTILE: scores["labels"]["af"]}
    assert_is_text(scores._repr_html_())
    records = hpc_ecg.open_shards(shards, "valid")
    records.labels = [HOSTILE]
    assert_is_text(records._repr_html_())
    with hpc_ecg.load_predictor(run) as model:
        model._model = replace(model._model, labels=[HOSTILE])
        assert_is_text(model._repr_html_())
    comparison = hpc_ecg.compare(sweep, replicates=200).comparison
    (strategy,) = comparison.strategies
    renamed = replace(comparison, strategies=[replace(strategy, name=HOSTILE)])
    assert_is_text(SweepComparison(renamed)._repr_html_())
    ecg = hpc_ecg.read_recording(next((cohort.parent / "records").glob("*.hea")))
    assert_is_text(replace(ecg, name=HOSTILE)._repr_svg_())


class OnGPU(torch.Tensor):
    """As a tensor of a GPU, it must be copied before NumPy can read it."""

    def numpy(self, *, force=False):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_outputs_of_a_device_are_copied_before_they_are_read(
    run, cohort, tmp_path, monkeypatch, verb
):
    real = Engine.infer
    monkeypatch.setattr(Engine, "infer", lambda *given: real(*given).as_subclass(OnGPU))
    name = next((cohort.parent / "records").glob("*.hea"))
    out = tmp_path / "out.parquet"
    assert main([verb, str(run), str(name), "--out", str(out), "--workers", "1"]) == 0
    assert len(pd.read_parquet(out)) == 1
