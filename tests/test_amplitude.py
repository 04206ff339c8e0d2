"""How large signals are: real cohorts are as expected, each known mistake is named."""

import numpy as np
import pandas as pd
import pytest

from hpc_ecg.ecg.amplitude import EXPECTED_MV, MISTAKES, amplitude_of, compare_amplitudes
from hpc_ecg.ecg.files import ArrayLayout, read_recording

COHORTS = ("ptbxl", "georgia", "cpsc2018", "code15")


@pytest.fixture(scope="module")
def measured(real_data):
    """Cohort -> amplitudes of up to 40 of its recordings, as recorded."""
    return {
        name: np.array(
            [
                amplitude_of(read_recording(path, ArrayLayout()).signal_LS)
                for path in sorted((real_data / "ecg" / name).rglob("*.hea"))[:40]
            ]
        )
        for name in COHORTS
    }


def test_a_wandering_baseline_and_an_artefact_hardly_move_the_amplitude(rng):
    beats_LS = np.zeros((12, 2500))
    beats_LS[:, ::200] = 1.2
    assert amplitude_of(beats_LS) == 1.2
    beats_LS += np.linspace(0, 1, 2500)
    beats_LS[3, 700] = 30
    assert amplitude_of(beats_LS) == pytest.approx(1.2, abs=0.35)
    assert amplitude_of(beats_LS[:, :1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("cohort", COHORTS)
def test_a_real_cohort_is_as_expected(measured, cohort):
    facts = compare_amplitudes(measured[cohort])
    assert facts.suggested_factor is None and "as expected" in facts.sentence
    assert facts.low < facts.median_mv < facts.high
    assert facts.ratio == pytest.approx(facts.median_mv / EXPECTED_MV, abs=1e-4)


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("times", [m for m in MISTAKES if not 0.4 < m < 2.5], ids="{:.3g}".format)
def test_a_mistake_made_with_a_real_cohort_is_named(measured, cohort, times):
    facts = compare_amplitudes(measured[cohort] * times)
    assert f"{MISTAKES[times]} (mended by × {1 / times:.3g})" in facts.sentence


@pytest.mark.parametrize("times", MISTAKES, ids="{:.3g}".format)
def test_the_suggested_factor_undoes_the_mistake(times, rng):
    values_N = EXPECTED_MV * 1.1 * times * np.exp(rng.normal(0, 0.25, 1000))
    facts = compare_amplitudes(values_N)
    if facts.suggested_factor is None:
        assert times == 0.5 or times == 2.0  # within what cohorts differ by
    else:
        assert facts.suggested_factor == pytest.approx(1 / times, rel=0.01)


def test_a_factor_that_no_mistake_makes_is_not_explained_away():
    facts = compare_amplitudes(np.full(100, EXPECTED_MV * 50))
    assert facts.suggested_factor is None and "check the unit and the gain" in facts.sentence
    assert "0 times" in compare_amplitudes(np.zeros(3)).sentence


def test_few_records_raise_no_alarm(measured):
    values = pd.Series(measured["code15"])
    for seed in range(50):
        assert compare_amplitudes(values.sample(3, random_state=seed)).suggested_factor is None
