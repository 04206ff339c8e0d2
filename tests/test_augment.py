"""Augmentation: numbers of the right kind, the same wherever and with whomever a record is seen."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpc_ecg.data.augment import _normal, _uniform, augment, record_seeds
from hpc_ecg.data.settings import AugmentConfig

RATE = 250


def digests_of(num):
    return [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(num)]


DIGESTS = digests_of(40)
ALL = AugmentConfig(
    lead_mask=0.2, noise_mv=0.1, wander_mv=0.2, powerline_mv=0.05, shift_s=0.5, scale=0.2
)


@pytest.fixture(scope="module")
def ecg():
    time_S = torch.arange(2500) / RATE
    leads_C = torch.linspace(0.2, 1.0, 12)[:, None]
    return (leads_C * torch.sin(2 * torch.pi * 1.3 * time_S)).expand(40, 12, 2500).clone()


def change(ecg_nCS, config, digests=DIGESTS, seed=0, step=0):
    return augment(ecg_nCS, record_seeds(digests, seed, step), config, RATE)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=5), st.integers(0, 999))
def test_a_record_becomes_the_same_in_any_batch_at_any_place(ecg, rows, step):
    alone = [change(ecg[:1], ALL, [DIGESTS[row]], step=step)[0] for row in rows]
    together = change(ecg[: len(rows)], ALL, [DIGESTS[row] for row in rows], step=step)
    assert torch.equal(torch.stack(alone), together)


def test_steps_seeds_and_records_differ(ecg):
    base = change(ecg, ALL)
    assert not torch.equal(base[0], base[1])
    for other in (change(ecg, ALL, step=1), change(ecg, ALL, seed=1)):
        assert (other != base).flatten(1).any(1).all()


def test_nothing_asked_for_is_nothing_changed(ecg):
    assert not AugmentConfig().is_on
    assert torch.equal(change(ecg, AugmentConfig()), ecg)


def seeds(num):
    return torch.from_numpy(record_seeds(digests_of(num), 3, 7))[:, None, None]


def test_uniform_numbers_are_uniform_and_unrelated():
    numbers = _uniform(seeds(500), 0, 12, 50).double().numpy()
    assert numbers.min() > 0 and numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for a, b in [
        (numbers[:-1], numbers[1:]),  # of neighbouring records
        (numbers[:, :-1], numbers[:, 1:]),  # of neighbouring leads
        (numbers[..., :-1], numbers[..., 1:]),  # of neighbouring counters
    ]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


def test_noise_is_standard_normal_and_unrelated_over_time_and_leads():
    noise = _normal(seeds(50), 1, 12, 500).double().numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.03


# Each kind does what its name says


def test_leads_are_masked_as_often_as_asked_and_never_all(ecg):
    digests = digests_of(2000)
    flat = torch.ones(2000, 12, 4)
    masked = change(flat, AugmentConfig(lead_mask=0.3), digests)[..., 0] == 0
    assert abs(float(masked.float().mean()) - 0.3) < 0.02
    heavily = change(flat, AugmentConfig(lead_mask=0.99), digests)
    assert (heavily != 0).flatten(1).any(1).all()


@pytest.mark.parametrize(("kind", "rms"), [("noise_mv", 1), ("wander_mv", 2), ("powerline_mv", 2)])
def test_what_is_added_is_at_most_as_large_as_asked(ecg, kind, rms):
    added = change(ecg, AugmentConfig(**{kind: 0.4})) - ecg
    sizes = added.pow(2).mean((1, 2)).mul(rms).sqrt()
    assert float(sizes.max()) < 0.42 and 0.1 < float(sizes.mean()) < 0.3
    assert float(sizes.min()) < 0.1  # each record draws its own


@pytest.mark.parametrize(
    ("config", "low", "high"),
    [
        (AugmentConfig(powerline_mv=1), 49.5, 50.5),
        (AugmentConfig(powerline_mv=1, powerline_hz=60), 59.5, 60.5),
        (AugmentConfig(wander_mv=1), 0, 0.7),
    ],
)
def test_hum_and_wander_have_their_frequencies(ecg, config, low, high):
    added = (change(ecg, config) - ecg).double() * torch.hann_window(2500)
    power_F = torch.fft.rfft(added).abs().pow(2).mean((0, 1))
    hz_F = torch.fft.rfftfreq(2500, 1 / RATE)
    inside = (hz_F >= low) & (hz_F <= high)
    assert float(power_F[inside].sum() / power_F.sum()) > 0.99


def test_a_shift_moves_all_leads_alike_and_fills_with_zeros():
    ramp = torch.arange(1, 2501).float().expand(40, 12, 2500)
    shifted = change(ramp, AugmentConfig(shift_s=0.5))
    moved = set()
    for record in shifted:
        assert torch.equal(record, record[:1].expand(12, -1))
        inside = record[0] != 0
        by = (torch.arange(1, 2501)[inside] - record[0][inside]).unique()
        assert len(by) == 1 and int(inside.sum()) == 2500 - abs(int(by))
        moved.add(int(by))
    assert max(moved) <= 125 and min(moved) >= -125 and len(moved) > 20


def test_amplitude_changes_by_one_factor_for_all_leads(ecg):
    factor = change(ecg, AugmentConfig(scale=0.2))[..., 50] / ecg[..., 50]
    torch.testing.assert_close(factor, factor[:, :1].expand(-1, 12))
    assert 0.8 <= float(factor.min()) < 0.9 and 1.1 < float(factor.max()) <= 1.2
