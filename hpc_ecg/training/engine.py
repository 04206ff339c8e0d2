"""One optimizer step on any number of processes, through Accelerate; nothing else imports it.

The engine is handed this rank's micro-batches and what the whole global batch is divided by; it
returns the loss and gradient norm of the global batch. Accelerate never sees a data loader: it
would deal records its own way (DESIGN: the order is ours). The gradient of rank r is its local sum
times W over the global count, so DDP's mean over W ranks is the mean over the global batch.
"""

# B batch, n records of a micro-batch, C leads, S samples, K labels, W ranks

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from hpc_ecg.cluster import join_world
from hpc_ecg.data.batches import MicroBatch, StepBatch
from hpc_ecg.data.schedule import Share
from hpc_ecg.training.inputs import Augment, model_inputs

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    precision: str = "auto"
    """Arithmetic: auto (bf16 on GPUs that have it, fp32 elsewhere), fp32, bf16 or fp16."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    micro_batch_size: int | None = None
    """Records of one forward on one process; null = its whole part of the batch at once."""
    cpu_threads: int | None = None
    """Threads of torch on a CPU; null = torch's own choice."""
    timeout_min: int = 30
    """Minutes after which a process that waits for the others gives up."""

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            allowed = ", ".join(("auto", *PRECISIONS))
            raise ValueError(f"engine.precision must be one of {allowed}, got {self.precision!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"engine.device must be auto, cpu or cuda, got {self.device!r}")
        for name in ("micro_batch_size", "cpu_threads", "timeout_min"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"engine.{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Of the global batch; tensors, so that a GPU is not waited for until they are read."""

    loss: Tensor
    grad_norm: Tensor


class Engine:
    def __init__(self, config: EngineConfig) -> None:
        """Join the other processes. ValueError if the wish cannot be met on this machine."""
        on_cpu, precision = _choose_hardware(config)
        ranks = join_world(os.environ)
        _forget_earlier_engine()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            self._accelerator = Accelerator(
                cpu=on_cpu,
                mixed_precision=PRECISIONS[precision],
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout_min))
                ],
            )
        if config.cpu_threads:
            torch.set_num_threads(config.cpu_threads)
        self._check_world(ranks.world_size)
        self.precision = precision
        self.device = self._accelerator.device
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self.is_first = ranks.rank == 0
        self.share = Share(
            rank=self.rank, world_size=self.world_size, micro_batch_size=config.micro_batch_size
        )
        self._first_bad = torch.tensor(-1, device=self.device)
        self._model: Any = None
        self._optimizer: Any = None

    def _check_world(self, world_size: int) -> None:
        """Accelerate can fall back to single processes without a word; then it must not train."""
        seen = self._accelerator.num_processes
        if seen != world_size:
            raise RuntimeError(
                f"the launch promises {world_size} processes, but Accelerate runs with {seen} "
                f"({self._accelerator.distributed_type})"
            )

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the model to the device and, with an optimizer, tie it to the other ranks; what was
        tied before is let go. The set of parameters that train must be final: DDP does not
        synchronise what is unfrozen later."""
        self._release()
        if optimizer is None:
            self._model = model.to(self.device)
            return
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)

    def _release(self) -> None:
        """Undo what Accelerate did to the module of before (wrapper, autocast)."""
        if self._model is not None:
            self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        self._accelerator.free_memory()
        self._model = self._optimizer = None

    @property
    def device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "CPU"

    def take_step(
        self,
        batch: StepBatch,
        loss_sum: Callable[[Tensor, Tensor], Tensor],
        divide_by: float,
        clip_norm: float | None,
        millivolts_per_count: float,
        augment: Augment | None = None,
    ) -> StepResult:
        """Forward, backward, clip, update. `divide_by`: normalizer of the *global* batch. The
        learning rate is what the optimizer's groups say."""
        self._model.train()
        loss = torch.zeros((), device=self.device)
        for piece, micro in enumerate(batch.micro_batches):
            is_last = piece == len(batch.micro_batches) - 1
            hold = contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._model)
            with hold:
                inputs = model_inputs(micro, self.device, millivolts_per_count, augment)
                with self._accelerator.autocast():
                    logits_nK = self._model(*inputs)
                targets_nK = torch.from_numpy(micro.labels_nK).to(self.device)
                local = loss_sum(logits_nK.float(), targets_nK) * (micro.weight / divide_by)
                self._accelerator.backward(local * self.world_size)
            loss += local.detach()
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        grad_norm = self._accelerator.clip_grad_norm_(parameters, clip_norm or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad()
        loss = self._accelerator.reduce(loss, "sum")
        self._watch(batch.step, loss, grad_norm)
        return StepResult(loss=loss, grad_norm=grad_norm)

    def seed_dropout(self, seed: int) -> None:
        """Of this process and its device alone: torch.manual_seed would keep a note for each GPU
        library that is not in use, at every call."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _watch(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Remember the first step that was not finite, on the device: nothing waits for it.
        Under fp16 an infinite gradient is no failure: that step is skipped."""
        fine = loss.isfinite()
        if self.precision != "fp16":
            fine = fine & grad_norm.isfinite()
        self._first_bad = torch.where(fine | (self._first_bad >= 0), self._first_bad, step)

    def first_bad_step(self) -> int | None:
        """The first step whose loss or gradient was not finite, counted from 0."""
        step = int(self._first_bad)
        return None if step < 0 else step

    @property
    def scaler(self) -> dict[str, Any] | None:
        """State of fp16's loss scale, plain numbers; None in other precisions."""
        scaler = self._accelerator.scaler
        return scaler.state_dict() if scaler else None

    @scaler.setter
    def scaler(self, state: dict[str, Any] | None) -> None:
        if state and self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state)

    @torch.inference_mode()
    def infer(self, micro: MicroBatch, millivolts_per_count: float) -> Tensor:
        """Logits [n, K] in eval mode, float32, on the CPU; no communication."""
        model = self._accelerator.unwrap_model(self._model).eval()
        with self._accelerator.autocast():
            return model(*model_inputs(micro, self.device, millivolts_per_count)).float().cpu()

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, in the order of the ranks; as many rows from each."""
        return self._accelerator.gather(rows.to(self.device)).cpu()

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Do it on the first process and give its result, or its ValueError, to all of them."""
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome = [action(), None]
            except ValueError as error:
                outcome = [None, str(error)]
        if self.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise ValueError(outcome[1])
        return outcome[0]

    def wait_for_all(self) -> None:
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group, so that another engine can be made in this process."""
        self._release()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _forget_earlier_engine()


def _choose_hardware(config: EngineConfig) -> tuple[bool, str]:
    """(run on the CPU?, precision); an explicit wish that cannot be met is an error."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("engine.device=cuda, but torch sees no GPU here; use engine.device=cpu")
    on_cpu = config.device == "cpu" or not has_gpu
    if config.precision == "auto":
        return on_cpu, "bf16" if not on_cpu and torch.cuda.is_bf16_supported() else "fp32"
    if on_cpu and config.precision == "fp16":
        raise ValueError("engine.precision=fp16 needs a GPU; on a CPU use fp32 or bf16")
    return on_cpu, config.precision


def _forget_earlier_engine() -> None:
    """Accelerate keeps its state in the classes; a second run in one process must start afresh."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
