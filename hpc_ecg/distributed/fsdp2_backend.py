"""FSDP2: torch's `fully_shard`, on every device.

It bypasses Accelerate, which on a CPU would silently run plain DDP, or processes that never join
each other. It works on a copy, so that the caller's module stays unsharded; `gather_weights` copies
the weights back. Mixed precision is done by autocast, as under DDP, so their numbers agree.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hpc_ecg.distributed.ddp_backend import DDPBackend, OptimizerBuilder


class FSDP2Backend(DDPBackend):
    collective_forward: bool = True
    wrapped: FSDPModule

    def _wrap(self, module: nn.Module, build_optimizer: OptimizerBuilder) -> None:
        self.module = _fully_shard(copy.deepcopy(module).to(self._accelerator.device))
        assert isinstance(self.module, FSDPModule)
        self.wrapped = self.module
        self.optimizer = self._accelerator.prepare_optimizer(build_optimizer(self.module))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self.wrapped.set_requires_gradient_sync(is_last)
        self._accelerator.backward(loss)

    def clip_gradients(self) -> Tensor:
        return unshard(super().clip_gradients())

    def gather_weights(self) -> None:
        weights = {name: unshard(tensor) for name, tensor in self.module.state_dict().items()}
        self._original.load_state_dict(weights)

    def moments(self) -> dict[str, Tensor]:
        return self.full_tensors(self._state_by_name())

    def full_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().full_tensors({name: unshard(value) for name, value in tensors.items()})

    def shard_like_params(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters, copies = self.trainable_parameters(), super().shard_like_params(tensors)
        for key, value in copies.items():
            parameter = parameters.get(key.rpartition("/")[2])
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                mesh, placements = parameter.device_mesh, parameter.placements
                copies[key] = distribute_tensor(value, mesh, placements, src_data_rank=None)
        return copies


def unshard(tensor: Tensor) -> Tensor:
    """The full tensor of a tensor that may be sharded. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _fully_shard(module: nn.Module) -> nn.Module:
    """Shard each encoder layer as one unit, and everything else as another."""
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for name, part in module.named_modules():
        if name.endswith("encoder.layers"):
            for layer in part.children():
                fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module
