"""A model tied to its ranks by torch: DDP through Accelerate, or FSDP2 (`fully_shard`).

FSDP2 is torch's own, not through Accelerate: on a CPU Accelerate would run plain DDP, or processes
that never meet, without a word. It works on a copy, so that the caller's module stays whole;
`collect` brings the weights home. Arithmetic is autocast's in both, so their numbers agree.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

OptimizerBuilder = Callable[[nn.Module], torch.optim.Optimizer]


class TorchBackend:
    """`called`: what forward goes through; `own`: the module whose parameters train."""

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        build: OptimizerBuilder,
        clip_norm: float | None,
        shard: bool,
    ) -> None:
        self._accelerator, self._clip_norm = accelerator, clip_norm or float("inf")
        self._home = module
        if shard:
            self.own = self.called = _shard(copy.deepcopy(module).to(accelerator.device))
            self.optimizer = accelerator.prepare_optimizer(build(self.own))
            assert isinstance(self.called, FSDPModule)
        else:
            self.own = module.to(accelerator.device)
            self.called, self.optimizer = accelerator.prepare(self.own, build(self.own))
            alone = accelerator.num_processes == 1
            assert alone or isinstance(self.called, DistributedDataParallel)

    @property
    def runs_together(self) -> bool:
        """Whether a forward needs all ranks."""
        return isinstance(self.called, FSDPModule)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.own.named_parameters() if p.requires_grad}

    def backward(self, loss: Tensor, is_last: bool) -> None:
        if isinstance(self.called, FSDPModule):
            self.called.set_requires_gradient_sync(is_last)
        self._accelerator.backward(loss)

    def hold(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """DDP adds the ranks' gradients up in the last piece of a step alone."""
        if is_last or isinstance(self.called, FSDPModule):
            return contextlib.nullcontext()
        return self._accelerator.no_sync(self.called)

    def clip(self) -> Tensor:
        """The norm of the whole gradient, before it is clipped."""
        parameters = list(self.trained().values())
        return full(self._accelerator.clip_grad_norm_(parameters, self._clip_norm))

    def update(self) -> None:
        self.optimizer.step()

    def forget_gradients(self) -> None:
        self.optimizer.zero_grad()

    def collect(self) -> None:
        """Bring the weights back into the module that was given; all ranks take part."""
        if self.own is not self._home:
            self._home.load_state_dict({k: full(v) for k, v in self.own.state_dict().items()})

    def moments(self) -> dict[str, Tensor]:
        """`<moment>/<parameter name>` -> whole tensor, so that no position in a list has to agree;
        all ranks take part. Under DDP they are the same on all: only the first copies them."""
        if not self._accelerator.is_main_process and not self.runs_together:
            return {}
        return self.whole(
            {
                f"{moment}/{name}": value
                for name, parameter in self.trained().items()
                for moment, value in self.optimizer.state.get(parameter, {}).items()
            }
        )

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        parameters = self.trained()
        # AdamW keeps `step` on the CPU unless it is fused
        is_fused = self.optimizer.param_groups[0].get("fused")
        for key, value in self.in_parts(moments).items():
            moment, _, name = key.partition("/")
            here = value.cpu() if moment == "step" and not is_fused else value
            self.optimizer.state[parameters[name]][moment] = here

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU; all ranks take part."""
        return {name: full(value).detach().cpu().clone() for name, value in tensors.items()}

    def in_parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the device, cut as the parameter is whose name the key ends in."""
        parameters, parts = self.trained(), {}
        for key, value in tensors.items():
            parameter = parameters.get(key.rpartition("/")[2])
            here = value.to(self._accelerator.device, copy=True)
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                mesh, places = parameter.device_mesh, parameter.placements
                here = distribute_tensor(here, mesh, places, src_data_rank=None)
            parts[key] = here
        return parts

    @property
    def scaler(self) -> dict[str, Any] | None:
        """State of fp16's loss scale, plain numbers; None in other precisions."""
        scaler = self._accelerator.scaler
        return scaler.state_dict() if scaler else None

    @scaler.setter
    def scaler(self, state: dict[str, Any] | None) -> None:
        if state and self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state)

    def release(self) -> None:
        """Undo what Accelerate did to the module under fp16 (autocast)."""
        if self._accelerator.scaler:
            self._accelerator.unwrap_model(self.called, keep_fp32_wrapper=False)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may lie in parts; all ranks take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shard(module: nn.Module) -> nn.Module:
    """Each encoder layer is gathered on its own, and what lies around the layers together."""
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for name, part in module.named_modules():
        if name.endswith("encoder.layers"):
            for layer in part.children():
                fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module
