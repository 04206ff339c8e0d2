"""Hashes of integers: the recorded bits, the same in numpy, in torch and by the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpc_ecg.atomic_io import write_json
from hpc_ecg.hashing import (
    check_file,
    check_record,
    multiply_shift,
    read_record,
    sha256_of_value,
    shift_right,
    splitmix64,
)

INPUTS = [0, 1, 2, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF]
RECORDED = {
    splitmix64: [
        0,
        6238072747940578789,
        -2606959012126976886,
        -5417735806833148549,
        6514504133438201533,
        2720858781877447050,
        -5566351399199633108,
    ],
    multiply_shift: [
        -6483969158015810077,
        -3806075663560614111,
        -135196023893129493,
        -1257701671565273444,
        -6981815459101288804,
        -5180970030671526429,
        8947099428397624218,
    ],
}
anything = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50)


@pytest.mark.parametrize("function", RECORDED, ids=lambda function: function.__name__)
def test_bits_stay_as_recorded(function):
    assert function(np.array(INPUTS)).tolist() == RECORDED[function]
    assert function(torch.tensor(INPUTS)).tolist() == RECORDED[function]


@given(anything)
def test_numpy_and_torch_give_the_same_bits(numbers):
    for function in (splitmix64, multiply_shift, lambda x: shift_right(x, 41)):
        ours = function(torch.tensor(numbers))
        assert ours.dtype == torch.int64
        assert ours.tolist() == function(np.array(numbers, np.int64)).tolist()


@given(anything)
def test_splitmix64_is_the_published_one_on_unsigned_numbers(numbers):
    x = np.array(numbers, np.int64).view(np.uint64)
    known = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    known = (known ^ (known >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    known = known ^ (known >> np.uint64(31))
    assert (splitmix64(x.view(np.int64)).view(np.uint64) == known).all()
    assert shift_right(x.view(np.int64), 41).tolist() == (x >> np.uint64(41)).tolist()


@pytest.mark.parametrize("digests", [[], "x", 5, None, True])
def test_digests_that_are_no_object_are_one_line_though_the_record_vouches_for_itself(
    tmp_path, digests
):
    record = {"x": 1, "digests": digests}
    write_json(tmp_path / "r.json", record | {"sha256": sha256_of_value(record)})
    for check in (read_record, check_record, lambda path: check_file(tmp_path / "a", path)):
        with pytest.raises(ValueError, match=r"r\.json is damaged: digests cannot be"):
            check(tmp_path / "r.json")
