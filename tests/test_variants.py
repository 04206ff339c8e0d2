"""The variants of the model that benchmarks measure compute what the model computes."""

import pytest
from benchmarks.variants import measure_variants
from conftest import TINY


@pytest.mark.slow
def test_every_variant_is_measured():
    numbers = measure_variants(TINY, batch_size=2, repeats=1)
    names = ("fft", "plain", "torch", "off", "checkpoint", "compiled")
    assert {f"variant_{name}_to_own" for name in names} < set(numbers)
    assert all(number > 0 for number in numbers.values())
