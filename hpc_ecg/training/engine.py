"""One optimizer step on any number of processes.

The engine takes this rank's micro-batches and the normalizer of the global batch, and returns the
loss and gradient norm of the global batch. Accelerate never sees a data loader, because it would
distribute the records its own way. Each rank's gradient is its local sum times W over the global
normalizer, so the mean over W ranks is the mean over the global batch, whatever the backend
(`distributed/ddp_backend.py`).
"""

# B batch, n records of a micro-batch, C leads, S samples, K labels, W ranks

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from hpc_ecg.data.loader import MicroBatch, StepBatch
from hpc_ecg.data.sampler import RankSlice
from hpc_ecg.distributed.backends import backend_of
from hpc_ecg.distributed.ddp_backend import DDPBackend, OptimizerBuilder
from hpc_ecg.distributed.failures import share_failures
from hpc_ecg.distributed.process_group import (
    choose_hardware,
    join_process_group,
    leave_process_group,
)
from hpc_ecg.distributed.settings import EngineConfig
from hpc_ecg.distributed.step_check import compute_twice
from hpc_ecg.distributed.stop_signals import NO_REQUESTS, Requests
from hpc_ecg.distributed.watchdog import Watchdog
from hpc_ecg.log import describe_error
from hpc_ecg.training.choose_kernels import KernelChoice
from hpc_ecg.training.model_inputs import TrainingTransform, model_inputs
from hpc_ecg.training.step_result import StepResult

T = TypeVar("T")


class Engine:
    def __init__(self, config: EngineConfig, rendezvous_dir: Path | None = None) -> None:
        """Join the other processes; under Slurm they find each other through `rendezvous_dir`.

        ValueError if this machine cannot do what a setting asks, or not all processes join in time.
        """
        self.config = config
        on_cpu, self.precision = choose_hardware(config)
        self._accelerator, ranks, self._store = join_process_group(
            config, rendezvous_dir, on_cpu, self.precision
        )
        self.share_failures = partial(share_failures, ranks, self._store)
        if config.cpu_threads:
            torch.set_num_threads(config.cpu_threads)
        self.device = self._accelerator.device
        is_gpu = self.device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(self.device) if is_gpu else "CPU"
        self.rank, self.world_size, self.is_rank_zero = ranks.rank, ranks.world_size, not ranks.rank
        self.rank_slice = RankSlice(
            rank=self.rank, world_size=self.world_size, micro_batch_size=config.micro_batch_size
        )
        self._first_bad = torch.tensor(-1, device=self.device)
        self.kernels: KernelChoice | None = None
        self._model: nn.Module | None = None
        self._backend: DDPBackend | None = None
        self._watchdog = Watchdog(60 * config.timeout_min, self.rank)

    def prepare_training(
        self,
        module: nn.Module,
        build_optimizer: OptimizerBuilder,
        clip_norm: float | None,
        moments: Mapping[str, Tensor] | None = None,
    ) -> DDPBackend:
        """Wrap the module for training on all ranks, with the `moments` of a checkpoint if given.

        Releases the module that was prepared before. The set of trainable parameters must not
        change afterwards: the wrapper would not synchronize one that is unfrozen later.
        """
        self._release()
        make_backend = backend_of(self.config)
        backend = make_backend(self._accelerator, module, build_optimizer, clip_norm)
        if self.kernels and self.kernels.kernels["compile"] == "compiled":
            backend.module.compile()
        if moments:
            backend.load_moments(moments)
        self._backend, self._model = backend, backend.wrapped
        self._watchdog.start()
        return backend

    def prepare_inference(self, module: nn.Module) -> None:
        """Move the module to the device; release the one that was prepared before."""
        self._release()
        self._model = module.to(self.device)

    def _release(self) -> None:
        if self._backend is not None:
            self._backend.release()
        self._accelerator.free_memory()
        self._model = self._backend = None

    def take_step(
        self,
        batch: StepBatch,
        loss_sum: Callable[[Tensor, Tensor, MicroBatch], Tensor],
        divide_by: float,
        millivolts_per_count: float,
        transform: TrainingTransform | None = None,
        requests: Requests = NO_REQUESTS,
        may_skip: bool = False,
    ) -> StepResult:
        """Forward, backward, clip and update, at the learning rates of the optimizer's groups.

        `loss_sum(logits [n, K], targets [n, K], micro-batch)` is a sum; `divide_by` is the
        normalizer of the *global* batch; `requests` are those of this rank. With `may_skip` there
        is no update if loss or gradient is not finite, and each step waits for the device.
        """
        backend, model, every = self._backend, self._model, self.config.verify_every
        assert model is not None and backend is not None
        self._watchdog.beat()
        model.train()

        def accumulate() -> Tensor:
            loss = torch.zeros((), device=self.device)
            for number, micro in enumerate(batch.micro_batches, start=1):
                is_last = number == len(batch.micro_batches)
                with backend.no_sync(is_last):
                    inputs = model_inputs(micro, self.device, millivolts_per_count, transform)
                    with self._autocast():
                        logits_nK = model(*inputs)
                    targets_nK = torch.from_numpy(micro.labels_nK).to(
                        self.device, non_blocking=True
                    )
                    total = loss_sum(logits_nK.float(), targets_nK, micro)
                    local = total * (micro.weight / divide_by)
                    backend.backward(local * self.world_size, is_last)
                loss += local.detach()
            return loss

        if every and (batch.step + 1) % every == 0:
            loss = compute_twice(accumulate, batch.step, backend, self.device)
        else:
            loss = accumulate()
        grad_norm = backend.clip_gradients()
        asked = torch.tensor(requests, dtype=loss.dtype).to(self.device, non_blocking=True)
        sums = self._accelerator.reduce(torch.cat([loss[None], asked]), "sum")
        skipped = may_skip and not bool(sums[0].isfinite() & grad_norm.isfinite())
        if skipped and self.precision == "fp16":  # an infinite gradient is for its loss scale
            skipped = not bool(sums[0].isfinite())
        if not skipped:
            backend.step()
            self._remember_if_bad(batch.step, sums[0], grad_norm)
        elif self._accelerator.scaler:  # it must know of the step
            self._accelerator.scaler.update()
        backend.zero_grad()
        return StepResult(sums, grad_norm, skipped)

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def seed_dropout(self, seed: int) -> None:
        """Seed torch's generators of the CPU and this process's device. torch.manual_seed would
        also queue a call for every GPU library that is not in use."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _remember_if_bad(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Keep the number of the first non-finite step on the device, so that nothing waits for it.

        Under fp16 an infinite gradient is not a failure: the scaler skips that step.
        """
        is_finite = loss.isfinite()
        if self.precision != "fp16":
            is_finite = is_finite & grad_norm.isfinite()
        is_unchanged = is_finite | (self._first_bad >= 0)
        number = torch.full_like(self._first_bad, step)  # torch.where would wait to copy a number
        self._first_bad = torch.where(is_unchanged, self._first_bad, number)

    def first_bad_step(self) -> int | None:
        """The first step (from 0) with a loss or gradient that was not finite; None without one."""
        step = int(self._first_bad)
        return None if step < 0 else step

    @property
    def collective_forward(self) -> bool:
        """Whether every rank must take part in each forward pass, because weights are sharded."""
        return self._backend is not None and self._backend.collective_forward

    @torch.no_grad()
    def infer(self, micro: MicroBatch, millivolts_per_count: float) -> Tensor:
        """Outputs [n, K] in eval mode, float32, on the device, which may still compute them."""
        assert self._model is not None
        self._watchdog.beat()
        is_replicated = self._backend is not None and not self.collective_forward
        model = self._backend.module if self._backend and is_replicated else self._model
        model.eval()
        with self._autocast():
            logits_nK = model(*model_inputs(micro, self.device, millivolts_per_count))
        return logits_nK.float()

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows, in the order of the ranks; each rank must give the same number."""
        return self._accelerator.gather(rows.to(self.device)).cpu()

    def gather_objects(self, items: list[T]) -> list[T]:
        return cast(list[T], gather_object(items))

    def run_on_rank_zero(self, action: Callable[[], T]) -> T:
        """Call `action` on rank 0; all ranks return its result or raise its error as ValueError."""
        outcome: list[Any] = [None, None]
        if self.is_rank_zero:
            try:
                outcome = [action(), None]
            except (ValueError, OSError) as error:
                outcome = [None, describe_error(error)]
        if self.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise ValueError(outcome[1])
        return cast(T, outcome[0])

    def start_trackers(self, settings: Mapping[str, object]) -> None:
        """Start the experiment trackers with the run's settings, by dotted key."""
        if self.config.trackers:
            self._accelerator.init_trackers("hpc_ecg", {k: str(v) for k, v in settings.items()})

    def track(self, values: Mapping[str, float], step: int) -> None:
        if self.config.trackers:
            self._accelerator.log(dict(values), step=step)

    def barrier(self) -> None:
        if torch.distributed.is_initialized():  # Accelerate's own takes a GPU also on CPUs
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the process group, so that this process can make another engine."""
        self._watchdog.stop()
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._release()
        leave_process_group(self._store, uses_deepspeed=self.config.zero_stage is not None)
