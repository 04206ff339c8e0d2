"""Losses against the original's values, and missing labels."""
# B batch, K labels

from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_ecg.model.losses import check_loss, loss_sum, normalizer
from hpc_ecg.model.settings import LOSSES, LossConfig

FIXTURE = np.load(Path(__file__).parent / "fixtures" / "losses.npz")
POSITIVES = {"reduction": "positives"}
CONFIGS = {
    "bce": LossConfig(**POSITIVES),
    "bce[pos_weight=[3.0]]": LossConfig(**POSITIVES, pos_weight=[3.0]),
    "as": LossConfig(**POSITIVES, name="as"),
    "as[gamma_neg=2.0,gamma_pos=1.0,clip=0.0]": LossConfig(
        **POSITIVES, name="as", gamma_neg=2.0, gamma_pos=1.0, clip=0.0
    ),
    "bf": LossConfig(**POSITIVES, name="bf"),
    "bf[alpha=0.75,gamma=1.0]": LossConfig(**POSITIVES, name="bf", alpha=0.75, gamma=1.0),
    "mlsml": LossConfig(**POSITIVES, name="mlsml"),
    "mse": LossConfig(**POSITIVES, name="mse"),
    "mse2": LossConfig(**POSITIVES, name="mse2"),
}
CASES = sorted(key.removesuffix("/loss") for key in FIXTURE.files if key.endswith("/loss"))
NAN = float("nan")


@pytest.mark.parametrize("case", CASES)
def test_value_gradient_and_divisor_are_those_of_the_original(case):
    loss_name, _, data = case.rpartition("/")
    logits = torch.tensor(FIXTURE[f"{data}/logits"]).requires_grad_()
    targets = torch.tensor(FIXTURE[f"{data}/target"]).float()
    loss = loss_sum(logits, targets, CONFIGS[loss_name])
    loss.backward()
    value, gradient = FIXTURE[f"{case}/loss"], FIXTURE[f"{case}/grad"]
    assert abs(loss.item() - value) <= 2e-7 * max(1, abs(value))
    error = np.abs(logits.grad.numpy() - gradient)
    assert (error <= 2e-7 * np.maximum(1, np.abs(gradient))).all()
    size = float(FIXTURE[f"{case}/sample_size"])
    assert normalizer(targets, CONFIGS[loss_name]) == max(size, 1)


def test_all_cases_of_the_fixture_are_covered():
    assert len(CASES) == 37
    assert {case.rpartition("/")[0] for case in CASES} == set(CONFIGS)


@pytest.mark.parametrize("name", LOSSES)
def test_a_missing_label_gives_no_loss_and_no_gradient_even_under_a_broken_logit(name):
    config = LossConfig(name=name)
    logits = torch.tensor([[0.3, NAN], [float("inf"), -1.0]], requires_grad=True)
    loss = loss_sum(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]]), config)
    loss.backward()
    kept = loss_sum(torch.tensor([[0.3], [-1.0]]), torch.tensor([[1.0], [0.0]]), config)
    times = 2 if name == "mlsml" else 1  # the mean over two labels, not one
    assert loss.item() * times == pytest.approx(kept.item(), rel=1e-6)
    assert logits.grad[0, 1] == 0
    assert logits.grad[1, 0] == 0
    assert logits.grad[0, 0] != 0


def test_a_batch_without_any_label_has_zero_loss_and_divisor_one():
    targets = torch.full((2, 3), NAN)
    assert loss_sum(torch.randn(2, 3), targets, LossConfig()).item() == 0
    assert normalizer(targets, LossConfig()) == 1
    assert normalizer(targets, LossConfig(reduction="positives")) == 1


def test_mean_counts_labels_present_and_positives_counts_ones():
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0], [0.0, 0.0]])
    assert normalizer(targets, LossConfig()) == 5
    assert normalizer(targets, LossConfig(reduction="positives")) == 2
    assert normalizer(targets, LossConfig(name="mse", reduction="positives")) == 5
    assert normalizer(targets, LossConfig(name="mlsml")) == 2.5
    fractions = torch.tensor([[1.7, -0.4], [2.2, NAN]])
    assert normalizer(fractions, LossConfig(name="mse2", reduction="positives")) == 3


def test_sums_over_slices_of_a_batch_add_up_to_the_sum_of_the_batch():
    logits, targets = torch.randn(7, 2), torch.randint(0, 2, (7, 2)).float()
    parts = sum(
        loss_sum(z, t, LossConfig()) for z, t in zip(logits.split(3), targets.split(3), strict=True)
    )
    torch.testing.assert_close(parts, loss_sum(logits, targets, LossConfig()))


def test_half_precision_logits_give_a_float32_loss():
    loss = loss_sum(torch.randn(4, 1).bfloat16(), torch.ones(4, 1), LossConfig())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "focal"},
            "loss.name must be one of bce, as, bf, mlsml, mse, mse2, got 'focal'",
        ),
        ({"reduction": "sum"}, "loss.reduction must be one of mean, positives, got 'sum'"),
        ({"name": "as", "gamma_neg": -1.0}, "loss.gamma_neg must be at least 0, got -1.0"),
        ({"name": "bf", "alpha": 1.5}, "loss.alpha must be in [0, 1], got 1.5"),
        ({"pos_weight": [1.0, 2.0]}, "loss.pos_weight must have 1 or 3 values, got 2"),
        ({"pos_weight": [-1.0]}, "loss.pos_weight must be positive or null, got [-1.0]"),
        ({"name": "mse", "pos_weight": [1.0]}, "loss.pos_weight is for loss.name=bce"),
    ],
)
def test_a_wrong_loss_setting_is_named(settings, message):
    with pytest.raises(ValueError, match="loss") as error:
        check_loss(LossConfig(**settings), 3)
    assert message in str(error.value)
