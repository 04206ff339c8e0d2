"""A step that does not repeat: what is found, and which node is named."""

import socket
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY

from hpc_ecg.data.loader import MicroBatch, StepBatch
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
from hpc_ecg.model.layers import EncoderLayer
from hpc_ecg.model.losses import loss_sum
from hpc_ecg.model.measure_kernels import KINDS
from hpc_ecg.model.settings import LossConfig, ModelConfig
from hpc_ecg.model.transformer import build_model
from hpc_ecg.training import engine as engine_module
from hpc_ecg.training.choose_kernels import KernelChoice
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.settings import OptimConfig


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


# With compiled layers


def flip(tensor):
    """As if one bit of the first number were wrong: 2**-11 of it."""
    factor = torch.ones_like(tensor)
    factor.flatten()[0] += 2**-11
    return tensor * factor


@pytest.fixture(scope="module")
def compiled_losses():
    """Losses of three steps with compiled layers; with a `part`, the second computation, which
    opens the second step, meets a wrong bit in its input or its loss."""

    def losses(verify_every=None, part=""):
        calls, real = [], engine_module.model_inputs

        def model_inputs(micro, *more):
            calls.append(1)
            ecg, *others = real(micro, *more)
            return (flip(ecg) if part == "input" and len(calls) == 2 else ecg, *others)

        def loss_of(logits, targets, micro):
            total = loss_sum(logits, targets, LossConfig())
            return flip(total) if part == "loss" and len(calls) == 2 else total

        with closing(Engine(EngineConfig(device="cpu", verify_every=verify_every))) as engine:
            engine.kernels = KernelChoice(kernels=dict.fromkeys(KINDS, "auto"))
            engine.kernels.kernels["compile"] = "compiled"
            model = build_model(TINY, 1, ModelConfig(), seed=1)
            optimizer = partial(build_optimizer, config=OptimConfig(), device=engine.device)
            engine.prepare_training(model, optimizer, 1.0)
            patch.setattr(engine_module, "model_inputs", model_inputs)
            found = []
            for step in range(3):
                engine.seed_dropout(step)
                counts = np.random.default_rng(step).integers(-300, 300, (2, 12, 500), np.int16)
                labels = np.array([[0], [1]], np.float32)
                micro = MicroBatch(
                    counts_nCS=counts, samples_n=None, positions=np.arange(2), labels_nK=labels
                )
                batch = StepBatch(
                    step=step,
                    micro_batches=[micro],
                    global_labels_BK=labels,
                    positions=micro.positions,
                )
                found.append(float(engine.take_step(batch, loss_of, 2.0, 0.005).loss))
            patch.setattr(engine_module, "model_inputs", real)
            return found

    with pytest.MonkeyPatch.context() as patch:
        quick = partial(EncoderLayer.compile, backend="aot_eager")  # all of it but the code
        patch.setattr(EncoderLayer, "compile", lambda layer: quick(layer))
        yield losses
    torch._dynamo.reset()


@pytest.mark.slow
def test_checked_steps_of_compiled_layers_change_no_loss(compiled_losses):
    torch._dynamo.utils.counters.clear()
    losses = compiled_losses()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "layers were compiled"
    assert len(set(losses)) == 3
    assert compiled_losses(2) == losses


@pytest.mark.slow
@pytest.mark.parametrize(("part", "what"), [("input", "the output"), ("loss", "the gradient of")])
def test_a_planted_flip_in_compiled_layers_is_caught(compiled_losses, part, what):
    with pytest.raises(CorruptedStep, match=f"step 2 was computed twice .*: {what}"):
        compiled_losses(2, part)
