"""`explain`: maps mark what a model was taught; a model that has learned nothing gets no map; the
pages state what was found and name nobody."""

import html
import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from recorded import copy_of_0_1
from synthetic import Population, draw_patient, synthesize
from torch import nn

from hpc_ecg.cli.command import main
from hpc_ecg.ecg.delineation import SEGMENTS, segment
from hpc_ecg.ecg.signal import LEADS, SignalSpec
from hpc_ecg.evaluation.predictions import Predictions, write_predictions
from hpc_ecg.inference import attribution, cohort_context
from hpc_ecg.inference.attribution import DividedECG, LabelOutput, attribute, occlude
from hpc_ecg.inference.cohort_context import risks_by_outcome
from hpc_ecg.inference.map_checks import BOUNDS, check_maps
from hpc_ecg.model.layers import randomize_head
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.reporting.ecg_paper import LOWERS, RAISES, draw_ecg
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.weights.export import save_model

V1 = LEADS.index("V1")
SIGNAL = SignalSpec()


@pytest.fixture(scope="module")
def ecgs() -> np.ndarray:
    """12 ECGs in sinus rhythm; in every second one lead V1 is upside down."""
    found, population = [], Population(af_prevalence=0)
    for number in range(12):
        rng = np.random.default_rng([1, number])
        patient = draw_patient(rng, population)
        about = {"af": False, "patient": patient, "population": population}
        found.append(synthesize(rng, **about, sample_rate_hz=250))
    found = np.stack(found)
    found[1::2, V1] *= -1
    return found


def random_network(seed: int) -> LabelOutput:
    return LabelOutput([build_model(TINY, 1, ModelConfig(), seed)], 0, is_regression=False)


@pytest.fixture(scope="module")
def trained(ecgs) -> list[LabelOutput]:
    """Two seeds that have learned to tell whether V1 is upside down."""
    networks = []
    for seed in (0, 1):
        model = build_model(TINY, 1, ModelConfig(), 0)
        randomize_head(model.head, seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        labels = torch.arange(12) % 2
        for _ in range(25):
            logits = model(torch.from_numpy(ecgs[:12]).float())[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        networks.append(LabelOutput([model], 0, is_regression=False))
    return networks


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / "v1.safetensors"
    save_model(path, trained[0].members[0], TINY, ["v1 <b>flipped"], SIGNAL)
    return path


def explained(network, ecg_LS, samples=2500):
    ecg = DividedECG(ecg_LS, samples, SIGNAL)
    return ecg, ecg.sums(attribute(network, ecg)[0])


def text_of(page) -> str:
    text = re.sub(r"<(style|svg).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


# Segments and pieces


def test_segments_are_where_the_waves_were_drawn():
    from test_delineation import draw

    ecg_LS, beats = draw(pr=160, qrs=96, qt=400)
    segment_S, found, unmeasured = segment(ecg_LS, LEADS, 250)
    assert unmeasured == [] and len(found) == len(beats)
    middle = int(beats[4])
    onset = middle - 12
    for number, (start, end) in {1: (-40, 0), 2: (0, 24), 3: (24, 100)}.items():
        expected = np.arange(onset + start, onset + end)
        share = (segment_S[expected] == number).mean()
        assert share > 0.75, (SEGMENTS[number], share)
    assert segment_S[onset + 115] == 0
    without_p, _ = draw(p_mv=0)
    assert segment(without_p, LEADS, 250)[2] == ["P"]


def test_pieces_tile_the_recorded_samples_and_are_replaced_by_lines(ecgs):
    ecg = DividedECG(ecgs[0], 2000, SIGNAL)
    assert ecg.starts[0] == 0 and (np.diff(ecg.starts) > 0).all() and ecg.starts[-1] < 2000
    assert set(ecg.segment_P) == {0, 1, 2, 3}
    is_out_LP = np.zeros(ecg.shape, bool)
    is_out_LP[3, 5] = True
    out_LS = ecg.without(is_out_LP)
    start, end = ecg.starts[5], ecg.starts[6]
    np.testing.assert_allclose(np.diff(out_LS[3, start - 1 : end + 1], 2), 0, atol=1e-12)
    is_same_LS = np.ones(ecgs[0].shape, bool)
    is_same_LS[3, start:end] = False
    assert (out_LS == ecgs[0])[is_same_LS].all()


def test_an_ecg_with_too_few_beats_is_refused(ecgs):
    with pytest.raises(ValueError, match=r"it has \d similar heartbeats, 3 are needed"):
        DividedECG(ecgs[0], 400, SIGNAL)


# Attribution and its checks


class Sum(nn.Module):
    """The sum of lead V1: what each piece adds is known."""

    def forward(self, ecg_BLS, mask_BS):
        return ecg_BLS[:, V1].sum(dim=1, keepdim=True) * self.factor

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))


def test_a_linear_model_has_the_map_that_can_be_computed(ecgs):
    network = LabelOutput([Sum()], 0, is_regression=True)
    ecg = DividedECG(ecgs[0], 2500, SIGNAL)
    map_LS, missing = attribute(network, ecg)
    bridged_LS = ecg.without(np.ones(ecg.shape, bool))
    expected_LS = np.zeros(map_LS.shape)
    expected_LS[V1] = 2 * (ecgs[0] - bridged_LS)[V1]
    np.testing.assert_allclose(map_LS, expected_LS, atol=1e-5)
    assert missing < 1e-3
    table = occlude(network, ecg)
    sums = [ecg.sums(map_LS)[V1, ecg.segment_P == number].sum() for number in range(4)]
    np.testing.assert_allclose(table[V1, :4], sums, atol=1e-3)
    np.testing.assert_allclose(table[[V1, 12], 4], sum(sums), atol=1e-3)
    assert np.abs(np.delete(table, [V1, 12], axis=0)).max() < 1e-3


def test_an_ensemble_has_the_logit_of_its_mean_probability(ecgs):
    members = [random_network(seed).members[0] for seed in (1, 2)]
    logits = [LabelOutput([m], 0, False).outputs(list(ecgs[:3]), 2500) for m in members]
    for platt in ((), [(2.0, -1.0), (0.5, 0.3)]):
        fits = zip(platt or [(1, 0), (1, 0)], logits, strict=True)
        mean = np.mean([1 / (1 + np.exp(-(a * logit + b))) for (a, b), logit in fits], axis=0)
        found = LabelOutput(members, 0, False, platt).outputs(list(ecgs[:3]), 2500)
        np.testing.assert_allclose(found, np.log(mean / (1 - mean)), rtol=1e-5)


def test_a_trained_model_relies_on_the_lead_that_it_was_taught(trained, ecgs):
    whole_L = np.zeros(12)
    for ecg_LS in ecgs[1:6:2]:
        whole_L += np.abs(occlude(trained[0], DividedECG(ecg_LS, 2500, SIGNAL))[:12, 4])
    assert whole_L.argmax() == V1


def test_a_trained_model_passes_and_random_ones_fail(trained, ecgs):
    checked = check_maps(trained[0], [explained(trained[0], ecgs[1])], trained, 0)
    assert checked["passed"] == {"weights": True, "deletion": True, "seeds": True}
    assert checked["gap"] > 3 * checked["shuffled"] and checked["gap"] > 3 * checked["random"]
    assert checked["has_map"]
    networks = [random_network(seed) for seed in (3, 4)]
    failed = check_maps(networks[0], [explained(networks[0], ecgs[1])], networks, 0)
    assert failed["passed"] == {"weights": False, "deletion": True, "seeds": False}
    assert failed["gap"] < 1.6 * failed["shuffled"] and abs(failed["agreement"]) < 0.3
    assert not failed["has_map"]


def test_a_map_that_marks_the_wrong_pieces_fails_deletion(trained, ecgs):
    ecg, map_LP = explained(trained[0], ecgs[1])
    checked = check_maps(trained[0], [(ecg, -map_LP)], [], 0)
    assert checked["passed"] == {"weights": False, "deletion": False, "seeds": None}
    assert checked["gap"] < 0


def test_a_map_depends_on_its_ecg_alone_and_not_on_what_follows_it(trained, ecgs):
    map_LS, missing = attribute(trained[0], DividedECG(ecgs[1], 2500, SIGNAL))
    attribute(trained[0], DividedECG(ecgs[2], 2500, SIGNAL))
    again_LS, _ = attribute(trained[0], DividedECG(ecgs[1], 2500, SIGNAL))
    assert (map_LS == again_LS).all() and missing < 0.1
    padded_LS = ecgs[1].copy()
    padded_LS[:, 2000:] = 0
    short = DividedECG(padded_LS, 2000, SIGNAL)
    short_LS, missing = attribute(trained[0], short)
    assert short.starts[-1] < 2000 and not short_LS[:, 2000:].any() and missing < 0.1
    masked = trained[0].outputs([padded_LS], 2000) - trained[0].outputs([padded_LS], 2500)
    assert abs(masked[0]) > 1e-4  # the padding mask reaches the model


# Pages


def test_shades_lie_behind_the_samples_that_they_are_of():
    shade_LS = np.zeros((12, 2500))
    shade_LS[V1, 1300:1350], shade_LS[V1, 1350:1400] = 0.5, -2
    svg = draw_ecg(np.zeros((12, 2500)), LEADS, 250, "x", shade_LS=shade_LS)
    found = [r.attrib for r in ElementTree.fromstring(svg).findall(".//{*}rect")]
    assert [(rect["fill"], rect["fill-opacity"]) for rect in found] == [
        (RAISES, "0.40"),
        (LOWERS, "0.80"),
    ]
    for rect, start in zip(found, (5.2, 5.4), strict=True):
        assert float(rect["x"]) == pytest.approx(7 + 25 * start) and rect["width"] == "5"


def test_a_file_of_weights_explains_an_array(weights, ecgs, tmp_path, capsys):
    np.save(tmp_path / "x.npy", ecgs[1])
    out = tmp_path / "x.html"
    words = ["explain", str(weights), str(tmp_path / "x.npy"), "--rate", "250", "--out", str(out)]
    assert main(words) == 0
    page, text = out.read_text(), text_of(out)
    assert page.count("fill-opacity") > 100 and "<b>flipped" not in page and "http" not in page
    assert "The map passed both checks that could be made" in text
    risks = tmp_path / "risks.parquet"
    assert main(["predict", *words[1:5], "--workers", "1", "--out", str(risks)]) == 0
    expected = pd.read_parquet(risks)["v1 <b>flipped_logit"][0]
    stated = re.search(r"Logit ([−\d.]+)\.", text)[1].replace("−", "-")
    assert float(stated) == pytest.approx(expected, abs=1e-3)
    assert "Not known: risks of validation are in a run" in text and "Not shown: a run" in text
    assert main(words) == 2
    assert f"{out} exists; give --force to replace it" in capsys.readouterr().err


def test_a_model_without_learning_gets_a_page_without_a_map(tmp_path, monkeypatch, capsys):
    folder = copy_of_0_1(tmp_path)
    monkeypatch.chdir(folder)
    words = [str(folder / "cohort" / "records" / "r001.hea"), "--strategy", "random"]
    sweep, out = folder / "sweeps" / "finished", tmp_path / "x.html"
    assert main(["explain", str(sweep), *words, "--label", "af", "--out", str(out)]) == 3
    assert "a check failed, so it has no map" in capsys.readouterr().out
    text = text_of(out)
    assert "No map is drawn, since a check failed." in text and "Failed: shuffled weights." in text
    assert "fill-opacity" not in out.read_text() and "occlusion-table" not in out.read_text()
    assert re.search(r"Seeds (passed|failed) mean rank correlation .* maps of 2 models", text)
    assert re.search(r"Of \d+ validation patients with the outcome, \d+ to \d+ % have", text)
    # the members' ages, sexes and labels, and nothing that names them
    index = pd.read_parquet(folder / "shards" / "index.parquet")
    assert not any(name in text for column in ("patient", "sha256") for name in index[column])
    cells = re.findall(r"<tr><td class=\"number\">(.*?)</tr>", out.read_text())
    found = [re.sub(r"<[^>]+>", " ", cell).split()[:3] for cell in cells]
    members = index[index["split"] == "train"]
    known = {
        (f"{a:g}", s or "–", f"{y:g}") for a, s, y in members[["age", "sex", "label.af"]].values
    }
    assert len(found) == 5 and {tuple(member) for member in found} <= known


def test_a_sample_has_a_mean_map_by_outcome(tmp_path, trained, shards, monkeypatch):
    monkeypatch.setattr(cohort_context, "CHECKED", 1)
    monkeypatch.setattr(attribution, "POINTS", (24,))
    monkeypatch.setitem(BOUNDS, "orders", 2)
    monkeypatch.setitem(BOUNDS, "shuffles", 1)
    path, out = tmp_path / "af.safetensors", tmp_path / "x.html"
    save_model(path, trained[0].members[0], TINY, ["af"], SIGNAL)
    words = ["explain", str(path), str(shards), "--sample", "4", "--out", str(out)]
    code, text = main(words), text_of(out)
    assert code in (0, 3) and "one ECG a patient: 2 with af = 1, of which" in text
    assert ("No map is drawn" in text) == (code == 3)
    titles = re.findall(r"aria-label=\"(af = .*?)\"", out.read_text())
    assert titles == ["af = 1: mean beat, n = 2", "af = 0: mean beat, n = 2"]
    first = out.read_bytes()
    assert main([*words, "--force"]) == code and out.read_bytes() == first


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["W", "E", "--out", "OUT/x.pdf"], "--out OUT/x.pdf: the ending must be .html"),
        (["OUT/m.onnx", "E"], "OUT/m.onnx: gradients need the weights, which ONNX merges"),
        (["OUT/none", "E"], "OUT/none: no such run, sweep, bundle or file of weights"),
        (["W", "OUT/none.npy"], "OUT/none.npy: no such file or folder"),
        (["W", "E"], "e.npy holds 2 recordings; give one, such as"),
        (["W", "E::0", "--sample", "5"], "--sample is for shards; here it would do nothing"),
        (["W", "E::0", "--seed", "-1"], "--seed must be at least 0 and below 2^32, got -1"),
        (["W", "E::0", "--label", "v2"], "--label must be one of v1 <b>flipped"),
        (["W", "E::0", "--strategy", "x"], "--strategy chooses among the runs of a sweep"),
        (["W", "E::1"], "e.npy::1: "),
        (["W", "E::0", "--missing-leads", "x"], "--missing-leads must be leave_out or zero"),
        (["W", "SHARDS"], "holds shards; give --sample N for their mean maps"),
        (["W", "SHARDS", "--sample", "1"], "--sample must be at least 2 and below 2^32, got 1"),
        (["W", "SHARDS", "--sample", "9"], "has the labels af, not v1 <b>flipped"),
        (["W", "SHARDS", "--sample", "9", "--rate", "250"], "--rate is for one recording"),
    ],
)
def test_a_mistake_is_one_line(words, expected, weights, shards, ecgs, tmp_path, capsys):
    flat = np.zeros((12, 2500))
    np.save(tmp_path / "e.npy", np.stack([ecgs[0], flat]))
    place = {"W": weights, "E": tmp_path / "e.npy", "SHARDS": shards, "OUT": tmp_path}
    for name, path in place.items():
        words = [re.sub(rf"^{name}(?=$|/|::)", str(path), word) for word in words]
    words += [] if "--out" in words else ["--out", str(tmp_path / "x.html")]
    words += [] if str(shards) in words else ["--rate", "250"]
    assert main(["explain", *words]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("hpc-ecg: ")]
    assert expected.replace("OUT", str(tmp_path)) in line
    assert not (tmp_path / "x.html").exists()


# Risks of validation


@pytest.mark.parametrize(
    ("patients", "steps"), [(39, 1), (40, 2), (99, 4), (100, 5), (399, 10), (400, 20), (2000, 100)]
)
def test_a_bundle_has_20_patients_behind_each_step(patients, steps, tmp_path):
    number = np.repeat(np.arange(patients), 3)  # three ECGs each, which do not count as three
    risk = number / patients
    predictions = Predictions(
        record_N=np.arange(len(number)).astype(str).astype(object),
        patient_N=number.astype(str).astype(object),
        labels=["af"],
        label_NK=np.ones((len(number), 1)),
        logit_NK=np.zeros((len(number), 1)),
        probability_NK=risk[:, None],
    )
    (tmp_path / "predictions").mkdir()
    write_predictions(tmp_path / "predictions" / "valid.parquet", predictions)
    found = risks_by_outcome(SimpleNamespace(runs=[RunFolder(tmp_path)], labels=["af"]))["af"]
    if steps == 1:
        assert found == {}
        return
    stated = json.loads(json.dumps(found))["with the outcome"]
    percents = [percent for percent, _ in stated["risks"]]
    assert percents == [100 * step // steps for step in range(1, steps)]
    assert stated["patients"] == patients and list(found) == ["with the outcome"]
    expected = np.percentile(np.arange(patients) / patients, percents)
    np.testing.assert_allclose([value for _, value in stated["risks"]], expected)
