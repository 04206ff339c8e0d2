"""`predict`: the risks of recordings without labels are those that `evaluate` gives."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import FIXTURES, words_for

from hpc_ecg.cli.command import main
from hpc_ecg.config.load import load_config
from hpc_ecg.ecg.array_files import ArrayLayout
from hpc_ecg.ecg.files import find_recording, read_recording
from hpc_ecg.prediction import prediction_job as predicting
from hpc_ecg.prediction.model_source import open_model
from hpc_ecg.prediction.prediction_job import PredictionJob, load_forward, predict_files
from hpc_ecg.prediction.sources import find_sources
from hpc_ecg.shards.shard_task import Recordings
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
    ],
)
def test_a_mistake_is_one_line(sweep, run, shards, cohort, tmp_path, capsys, words, message):
    exists, empty = tmp_path / "exists.csv", tmp_path / "empty"
    exists.write_text("mine")
    empty.mkdir()
    places = {"RUN": run, "SWEEP": sweep, "SHARDS": shards, "EMPTY": empty, "EXISTS": exists}
    places |= {"TABLE": cohort, "BASE": FIXTURES / "tiny_base_ssl.pt"}
    places["FILE"] = next((cohort.parent / "records").glob("*.hea"))
    given = [places.get(word, word) for word in words]
    if "--out" not in words:
        given += ["--out", tmp_path / "risks.csv"]
    assert main(["predict", *map(str, given)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert exists.read_text() == "mine" and not (tmp_path / "risks.csv.parts").exists()


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
    evaluate_weights(config, run / "best", result, shards=shards, split="test")
    expected = pd.read_parquet(result / "predictions.parquet").set_index("record")["af.logit"]
    out = tmp_path / "risks.parquet"
    assert command(run, table, "--signals", folder, "--out", out) in (0, 3)
    found = read(out)
    assert (found.loc[expected.index, "af_logit"] == expected).all() and len(expected) == 14
    left_out = pd.read_csv(tmp_path / "set" / "left_out.csv")
    assert (found["reason"] != "").sum() == len(left_out)
    assert found["af_logit"].isna().sum() == len(left_out)
