"""Does a step's arithmetic repeat? A failing GPU or CPU computes wrong numbers now and then,
without an error, and a run that averages them in is lost without a trace.

A checked step is computed twice from one state: the outputs, this process's own gradients and those
averaged over all processes must agree. Bitwise where kernels are deterministic (on a CPU, or with
torch.use_deterministic_algorithms); elsewhere within `TOLERANCE`, which finds what would do harm.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor

from hpc_ecg.distributed.ddp_backend import DDPBackend
from hpc_ecg.distributed.failures import PeerLost
from hpc_ecg.distributed.watchdog import EXIT_CORRUPTED, SUSPECT

TOLERANCE = 2**-6
"""Of a tensor's norm: atomic additions in another order, rounded to bfloat16, stay below it."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
OUTPUT, AVERAGED = "the output", "the averaged gradient of "
Signatures = dict[str, Tensor]


class CorruptedStep(PeerLost):
    """A step that was computed twice gave two results; the run can resume on other nodes."""

    exit_code = EXIT_CORRUPTED


def compute_twice(
    accumulate: Callable[[], Tensor], step: int, backend: DDPBackend, device: torch.device
) -> Tensor:
    """Call `accumulate` twice from the same state, and return its loss, with the gradients left to
    be used. Collective. CorruptedStep on all processes: the calls differed on one of them."""
    is_gpu = device.type == "cuda"
    bitwise = not is_gpu or torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng([device] if is_gpu else []), _recorded(backend, bitwise) as first:
        accumulate()
    backend.zero_grad()
    with _recorded(backend, bitwise) as second:
        loss = accumulate()
    found = gather_object([(_describe_place(device), _first_difference(first, second))])
    _raise_if_corrupted(step, found)
    return loss


def _describe_place(device: torch.device) -> str:
    """Which hardware this is, for whoever repairs it: node, and GPU with its number."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # a container has its own
    if device.type != "cuda":
        return node
    gpu = torch.cuda.get_device_properties(device)
    return f"{node}, {gpu.name}, GPU-{gpu.uuid}"


def _raise_if_corrupted(step: int, found: list[tuple[str, str]]) -> None:
    """CorruptedStep where a process found a difference; `found`: place and difference by process.

    A wrong local gradient spreads to all processes with the average, so what differs locally tells
    the place; if only averages differ (sharded weights, or the network), each place is suspect.
    """
    differing = [(place, what) for place, what in found if what]
    if not differing:
        return
    local = [item for item in differing if not item[1].startswith(AVERAGED)] or differing
    nodes = ",".join(sorted({place.partition(",")[0] for place, _ in local}))
    found_text = " and ".join(sorted({f"{what} on {place}" for place, what in local})[:4])
    raise CorruptedStep(
        f"step {step + 1} was computed twice with different results: {found_text}. Hardware may be "
        f"failing; nothing was updated, and the run goes on from its checkpoint. {SUSPECT}{nodes}; "
        f"keep it out with --exclude={nodes}"
    )


@contextmanager
def _recorded(backend: DDPBackend, bitwise: bool) -> Iterator[Signatures]:
    """The signatures, in the order of computation, of what is computed inside."""
    seen: Signatures = {}

    def see(name: str, tensor: Tensor) -> None:
        number = sum(key.startswith(f"{name}#") for key in seen) if f"{name}#0" in seen else 0
        seen[f"{name}#{number}"] = _signature(tensor, bitwise)

    parameters = backend.trainable_parameters()
    hooks = [backend.wrapped.register_forward_hook(lambda *call: see(OUTPUT, call[-1]))]
    for name, parameter in parameters.items():
        hook = parameter.register_hook(lambda grad, name=name: see(f"the gradient of {name}", grad))
        hooks.append(hook)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            see(AVERAGED + name, parameter.grad)


def _signature(tensor: Tensor, bitwise: bool) -> Tensor:
    """An integer of all bits, which each single flip changes; or a projection and the norm."""
    tensor = tensor.detach()
    x_N = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).contiguous().flatten()
    odd_N = 2 * torch.arange(len(x_N), device=x_N.device) + 1
    if bitwise:
        return (x_N.view(INTEGERS[x_N.element_size()]).long() * odd_N).sum()[None]
    sign_N = 1 - 2 * ((odd_N * 739982445 >> 9) & 1)
    return torch.stack([(x_N.float() * sign_N).sum(), x_N.float().norm()])


def _first_difference(first: Signatures, second: Signatures) -> str:
    if first.keys() != second.keys():
        return "other tensors"
    a_TS, b_TS = (torch.stack(list(signatures.values())) for signatures in (first, second))
    limit_T1 = TOLERANCE * a_TS[:, -1:] if a_TS.is_floating_point() else 0
    same_TS = (a_TS == b_TS) | ((a_TS - b_TS).abs() <= limit_T1) | (a_TS.isnan() & b_TS.isnan())
    all_same_T = same_TS.all(1).tolist()
    names = [name for name, is_same in zip(first, all_same_T, strict=True) if not is_same]
    return names[0].rpartition("#")[0] if names else ""
