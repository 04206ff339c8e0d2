"""A step that does not repeat: what is found, and which node is named."""

import socket

import pytest
import torch

from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.distributed.step_check import (
    AVERAGED,
    TOLERANCE,
    CorruptedStep,
    _describe_place,
    _first_difference,
    _raise_if_corrupted,
    _signature,
)


def differ(a, b, bitwise) -> bool:
    signatures = ({"the output#0": _signature(x, bitwise)} for x in (a, b))
    return _first_difference(*signatures) == "the output"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_single_bit_of_a_tensor_counts(dtype):
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    integers = {4: torch.int32, 2: torch.int16}[tensor.element_size()]
    for place in (0, 11, 34):
        for bit in range(8 * tensor.element_size() - 1):
            wrong = tensor.clone()
            wrong.view(integers).flatten()[place] ^= 1 << bit
            assert differ(tensor, wrong, bitwise=True), (place, bit)
    assert not differ(tensor, tensor.clone(), bitwise=True)


def test_where_kernels_are_not_deterministic_rounding_passes_and_a_wrong_number_does_not():
    tensor = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    assert not differ(tensor, tensor + 2**-9 * noise, bitwise=False)
    for size in (2 * TOLERANCE, 1e3, float("inf"), float("nan")):
        wrong = tensor.clone()
        wrong[3, 4] += size * tensor.norm()
        assert differ(tensor, wrong, bitwise=False), size
    assert not differ(wrong, wrong.clone(), bitwise=False), "a diverged run is another matter"


def test_the_node_whose_own_numbers_differ_is_named_and_else_all():
    averaged = AVERAGED + "head.weight"
    with pytest.raises(CorruptedStep, match=r"the output on b, GPU 1.*Suspect: b;.*exclude=b$"):
        _raise_if_corrupted(3, [("a", averaged), ("b, GPU 1", "the output"), ("c", averaged)])
    with pytest.raises(CorruptedStep, match=r"step 4 .*Suspect: a,c;"):
        _raise_if_corrupted(3, [("a", averaged), ("b", ""), ("c", averaged)])
    _raise_if_corrupted(3, [("a", ""), ("b", "")])


def test_the_node_is_named_as_slurm_names_it(monkeypatch):
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert _describe_place(torch.device("cpu")) == socket.gethostname()
    monkeypatch.setenv("SLURMD_NODENAME", "gpu17")
    assert _describe_place(torch.device("cpu")) == "gpu17", "a container has a name of its own"


def test_deepspeed_whose_gradients_are_its_own_is_refused():
    with pytest.raises(ValueError, match=r"verify_every=5 is not possible with .*zero2.* use ddp"):
        EngineConfig(parallel="zero2", verify_every=5)
