"""Which rows of a head are kept: by name if the labels are known, else in order."""

import pytest
import torch
from conftest import FIXTURES
from original_files import export_original

from hpc_ecg.ecg.signal import SignalSpec
from hpc_ecg.model.transformer import ModelConfig, build_model
from hpc_ecg.weights import load_model
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.initialize import initialize
from hpc_ecg.weights.reading import read_checkpoint
from hpc_ecg.weights.settings import InitConfig

AFIB = FIXTURES / "tiny_wcr_afib_5y.pt"
NAMES = [f"label_{k}" for k in range(77)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A model of 77 labels, as our file with names and as the original's without."""
    folder = tmp_path_factory.mktemp("many")
    architecture = read_checkpoint(AFIB).architecture
    model = build_model(architecture, 77, ModelConfig(), seed=4)
    model.head.bias.data.copy_(torch.arange(77.0))
    save_model(folder / "model.safetensors", model, architecture, NAMES, SignalSpec())
    export_original(folder / "many.pt", model)
    return folder


def start(checkpoint, labels, head="auto", names=(), seed=0):
    init = InitConfig(checkpoint=str(checkpoint), head=head, labels=list(names))
    return initialize(init, ModelConfig(), len(labels), list(labels), "auto", seed)


def refusal(*arguments, **keywords) -> str:
    with pytest.raises(ValueError, match="init") as error:
        start(*arguments, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_77_labels_are_kept_as_they_are(many):
    for file in (many / "model.safetensors", many / "many.pt"):
        started = start(file, NAMES, head="keep")
        assert torch.equal(started.model.head.weight, load_model(file).head.weight)
        assert started.report["head"]["taken"] == "keep"


def test_labels_are_found_by_name_in_any_order_and_number(many):
    labels = ["label_70", "label_3", "label_0"]
    started = start(many, labels, head="keep")
    assert started.model.head.bias.tolist() == [70, 3, 0]
    assert started.report["head"]["rows"] == [70, 3, 0]
    assert torch.equal(started.model.head.weight, load_model(many).head.weight[[70, 3, 0]])


def test_labels_can_be_named_for_a_file_that_does_not_name_them(many):
    started = start(many / "many.pt", ["label_5"], head="keep", names=NAMES)
    assert started.model.head.bias.tolist() == [5]


def test_labels_that_the_file_lacks_get_new_rows_on_request(many):
    labels = ["label_9", "unheard", "label_1"]
    message = refusal(many, labels, head="keep")
    assert "this run has unheard" in message and "init.head=by_label" in message
    started = start(many, labels, head="by_label", seed=3)
    fresh = start(many, labels, head="new", seed=3)
    assert started.model.head.bias.tolist() == [9, 0, 1]
    assert torch.equal(started.model.head.weight[1], fresh.model.head.weight[1])
    assert started.report["parameters"]["head.weight"]["origin"] == "loaded in part"
    head = started.report["head"]
    assert (head["taken"], head["rows"]) == ("by_label", [9, None, 1])
    assert head["reason"] == "new for unheard, the others by name"


def test_a_head_without_names_and_of_another_size_is_refused_with_advice(many):
    message = refusal(many / "many.pt", ["af", "flutter"], head="keep")
    assert "has 77 labels, this run has 2 (af, flutter); name the labels of the file" in message
    assert "does not name its labels" in refusal(many / "many.pt", ["af"], head="by_label")


def test_wrong_numbers_of_names_and_duplicates_are_refused(many):
    assert "must name each of the 77 labels" in refusal(many / "many.pt", ["a"], names=["a"])
    twice = [*NAMES[:-1], NAMES[0]]
    assert "once, got 77" in refusal(many / "many.pt", ["label_0"], names=twice)


def test_given_names_override_those_in_the_file(many):
    renamed = ["afib", *NAMES[1:]]
    started = start(many, ["afib"], head="keep", names=renamed)
    assert started.model.head.bias.tolist() == [0]


def test_a_run_without_any_label_in_common_is_told_to_start_new(many):
    message = refusal(many, ["af"], head="by_label")
    assert message.endswith("use init.head=new")
    assert "and 71 more" in message
