"""What a step gives, to be read once the device is done with it."""

import torch
from torch import Tensor

from hpc_ecg.distributed.stop_signals import Requests


class StepResult:
    """Loss and gradient norm of the global batch, as 0-d tensors, so that only reading them waits
    for a GPU; and whether the update was skipped because one of them was not finite."""

    def __init__(self, sums: Tensor, grad_norm: Tensor, skipped: bool) -> None:
        """`sums` over all ranks: the loss, then the requests."""
        self.loss, self.grad_norm, self.skipped = sums[0], grad_norm, skipped
        self._requests = sums[1:].detach().to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if sums.is_cuda else None

    def requests(self) -> Requests:
        """The requests of all ranks. Waits for this step, not for those queued after it."""
        if self._copied:
            self._copied.synchronize()
        return Requests(*self._requests.tolist())
