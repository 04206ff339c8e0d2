"""Dropout by torch.compile and by Triton makes the plain masks, and keeps none for backward."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import TINY

from hpc_ecg.model.dropout import RecordDropout, token_seeds
from hpc_ecg.model.measure_kernels import KernelLoad, fault_of
from hpc_ecg.model.settings import ModelConfig
from hpc_ecg.model.transformer import build_model

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")

# Both scripts print nothing if all is right. Triton decides on import whether it interprets.
COMPARE = """
import torch
from hpc_ecg.model.dropout import RecordDropout, token_seeds

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for shape, p in (((2, 5, 7), 0.2), ((1, 5, 1100), 0.5)):
        for after_gelu in (False, True):
            seeds = token_seeds(torch.randint(-(2**63), 2**63 - 1, shape[:1]), shape[1])
            x, gradient = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
            found = []
            for kind in ("plain", "triton"):
                x = x.detach().requires_grad_()
                out = RecordDropout(p, 3, kind)(x, seeds, after_gelu=after_gelu)
                found.append((out.detach(), *torch.autograd.grad(out, x, gradient)))
            for plain, ours in zip(*found):
                case = dtype, shape, after_gelu
                assert ours.dtype == dtype and torch.equal(ours == 0, plain == 0), case
                # The interpreter cuts off digits for bfloat16, where a GPU rounds.
                if dtype == torch.bfloat16 or after_gelu:
                    limit = 0.02 if dtype == torch.bfloat16 else 1e-3
                    torch.testing.assert_close(ours, plain, rtol=limit, atol=limit)
                else:
                    assert torch.equal(ours, plain), case
x = torch.tensor([float("nan"), float("inf"), -1.0]).view(1, 1, 3)
for seed in range(8):
    seeds = torch.tensor([[seed]])
    plain, ours = (RecordDropout(0.5, 1, kind)(x, seeds) for kind in ("plain", "triton"))
    torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)
"""
TRANSLATE = """
from itertools import product
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hpc_ecg.model.triton_dropout import _drop

for dtype, gelu, backward in [("bf16", True, True), ("bf16", False, False), ("fp32", False, True)]:
    types = [f"*{dtype}", f"*{dtype}", "*i64", "*i32", f"*{dtype}", *["i32"] * 3, "fp32"]
    names = dict(zip(_drop.arg_names, [*types, "constexpr", "constexpr"]))
    aligned = {(n,): [["tt.divisibility", 16]] for n in (0, 1, 2, 3, 4, 6)}
    source = ASTSource(_drop, names, constexprs={(9,): gelu, (10,): backward}, attrs=aligned)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "ld.global.v4" in code and "st.global.v4" in code, "16 bytes per access"
    assert gelu or "fma.rn.f32" not in code, "the bits of separate operations"
    assert dtype != "bf16" or "cvt.rn.bf16" in code, "rounded to the nearest"
"""


def run_script(script, tmp_path, **more):
    path = tmp_path / "script.py"  # Triton reads the source of its kernels
    path.write_text(script)
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(path)], env=environment | more, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@needs_triton
def test_the_interpreted_triton_kernel_makes_the_plain_bits(tmp_path):
    run_script(COMPARE, tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_the_triton_kernel_translates_for_a_gpu_that_is_not_here(tmp_path):
    run_script(TRANSLATE, tmp_path)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_compiled_kernel_makes_the_plain_masks_and_keeps_none(fresh_compiler):
    seeds_BT = token_seeds(torch.arange(2), 9)
    found, kept = {}, []
    for kind in ("plain", "compiled"):
        x_BTD = torch.randn(2, 9, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            out = RecordDropout(0.3, 2, kind)(x_BTD, seeds_BT, after_gelu=True)
        found[kind] = out.detach(), *torch.autograd.grad(out.square().sum(), x_BTD)
    for ours, plain in zip(found["compiled"], found["plain"], strict=True):
        assert torch.equal(ours == 0, plain == 0)
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    assert [x.dtype for x in kept] == [torch.int64, torch.float32]


def test_a_kernel_that_cannot_run_is_said_in_one_line():
    model = build_model(TINY, 1, ModelConfig())
    load = KernelLoad(num_tokens=9, device=torch.device("cpu"), dtype=torch.float32)
    fault = fault_of("record_dropout", "triton", model, load)
    assert re.fullmatch(r"cannot run: .+, on cpu of \S+", fault)
    assert fault_of("record_dropout", "plain", model, load) == ""
