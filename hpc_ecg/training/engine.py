"""One optimizer step on any number of processes, through Accelerate; only engine*.py import it.

The engine is handed this rank's micro-batches and what the whole global batch is divided by; it
returns the loss and gradient norm of the global batch. Accelerate never sees a data loader: it
would deal records its own way (DESIGN: the order is ours). The gradient of rank r is its local sum
times W over the global count, so the mean over W ranks is the mean over the global batch, whatever
ties the ranks (engine_native.py: DDP, FSDP2; engine_zero.py: DeepSpeed).
"""

# B batch, n records of a micro-batch, C leads, S samples, K labels, W ranks

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from hpc_ecg.data.batches import MicroBatch, StepBatch
from hpc_ecg.data.sampler import RankSlice
from hpc_ecg.distributed.deepspeed_backend import DeepSpeedBackend
from hpc_ecg.distributed.process_group import enter_world, leave_world, share_failures
from hpc_ecg.distributed.settings import EngineConfig, choose_hardware
from hpc_ecg.distributed.torch_backends import OptimizerBuilder, TorchBackend
from hpc_ecg.distributed.watchdog import Watchdog
from hpc_ecg.training.inputs import TrainingTransform, model_inputs


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Of the global batch; tensors, so that a GPU is not waited for until they are read."""

    loss: Tensor
    grad_norm: Tensor
    wishes: Tensor
    """Sum of the wishes of all ranks."""
    skipped: bool = False
    """The weights were left as they were: loss or gradient was not finite."""


class Engine:
    def __init__(self, config: EngineConfig, rendezvous_dir: Path | None = None) -> None:
        """Join the other processes, which under Slurm meet through a file in `meeting`. ValueError
        if the wish cannot be met on this machine."""
        self.config = config
        on_cpu, self.precision = choose_hardware(config)
        self._accelerator, ranks, self._store = enter_world(
            config, rendezvous_dir, on_cpu, self.precision
        )
        self.share_failures = partial(share_failures, ranks, self._store)
        if config.cpu_threads:
            torch.set_num_threads(config.cpu_threads)
        self.device = self._accelerator.device
        is_gpu = self.device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(self.device) if is_gpu else "CPU"
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self.is_rank_zero = ranks.rank == 0
        self.share = RankSlice(
            rank=self.rank, world_size=self.world_size, micro_batch_size=config.micro_batch_size
        )
        self._first_bad = torch.tensor(-1, device=self.device)
        self._model: Any = None
        self.ties: Any = None
        """NativeTies or ZeroTies, while something trains."""
        self._watchdog = Watchdog(60 * config.timeout_min, self.rank)

    def prepare(
        self,
        module: nn.Module,
        build: OptimizerBuilder | None = None,
        clip_norm: float | None = None,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Move the module to the device and, with a builder of its optimizer, tie it to the other
        ranks, with the `moments` of a checkpoint; what was tied before is let go. The set of
        parameters that train must be final: no rank hears of what is unfrozen later."""
        self._release()
        if build is None:
            self._model = module.to(self.device)
            return
        if stage := self.config.zero_stage:
            self.ties = DeepSpeedBackend(self._accelerator, module, build, clip_norm, stage)
        else:
            shard = self.config.parallel == "fsdp2"
            self.ties = TorchBackend(self._accelerator, module, build, clip_norm, shard)
        self._model = self.ties.called
        if self.config.compile:
            self.ties.own.compile()
        if moments:
            self.ties.restore(moments)
        self._watchdog.start()

    def _release(self) -> None:
        if self.ties is not None:
            self.ties.release()
        self._accelerator.free_memory()
        self._model = self.ties = None

    def take_step(
        self,
        batch: StepBatch,
        loss_sum: Callable[[Tensor, Tensor], Tensor],
        divide_by: float,
        millivolts_per_count: float,
        change: TrainingTransform | None = None,
        wishes: tuple[float, ...] = (),
        may_skip: bool = False,
    ) -> StepResult:
        """Forward, backward, clip, update. `divide_by`: normalizer of the *global* batch. The
        learning rate is what the optimizer's groups say. `wishes`: this rank's, to be summed.
        `may_skip`: no update if loss or gradient is not finite (waits for the device)."""
        self._watchdog.beat()
        self._model.train()
        loss = torch.zeros((), device=self.device)
        for piece, micro in enumerate(batch.micro_batches):
            is_last = piece == len(batch.micro_batches) - 1
            with self.ties.hold(is_last):
                inputs = model_inputs(micro, self.device, millivolts_per_count, change)
                with self._autocast():
                    logits_nK = self._model(*inputs)
                targets_nK = torch.from_numpy(micro.labels_nK).to(self.device)
                local = loss_sum(logits_nK.float(), targets_nK) * (micro.weight / divide_by)
                self.ties.backward(local * self.world_size, is_last)
            loss += local.detach()
        grad_norm = self.ties.clip()
        said = torch.stack([loss, *torch.tensor(wishes, device=self.device)])
        said = self._accelerator.reduce(said, "sum")
        skipped = may_skip and not bool(said[0].isfinite() & grad_norm.isfinite())
        if not skipped:
            self.ties.update()
            self._watch(batch.step, said[0], grad_norm)
        self.ties.forget_gradients()
        return StepResult(loss=said[0], grad_norm=grad_norm, wishes=said[1:], skipped=skipped)

    def _autocast(self) -> torch.autocast:
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=self.precision != "fp32")

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
    def runs_together(self) -> bool:
        """Whether every rank must run each forward, as its weights lie in parts."""
        return self.ties is not None and self.ties.runs_together

    @torch.no_grad()
    def infer(self, micro: MicroBatch, millivolts_per_count: float) -> Tensor:
        """Logits [n, K] in eval mode, float32, on the CPU."""
        self._watchdog.beat()
        model = self.ties.own if self.ties and not self.runs_together else self._model
        model.eval()
        with self._autocast():
            logits_nK = model(*model_inputs(micro, self.device, millivolts_per_count))
        return logits_nK.float().cpu()

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, in the order of the ranks; as many rows from each."""
        return self._accelerator.gather(rows.to(self.device)).cpu()

    def run_on_rank_zero(self, action: Callable[[], Any]) -> Any:
        """Do it on the first process and give its result, or its ValueError, to all of them."""
        outcome: list[Any] = [None, None]
        if self.is_rank_zero:
            try:
                outcome = [action(), None]
            except (ValueError, OSError) as error:
                outcome = [None, str(error)]
        if self.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise ValueError(outcome[1])
        return outcome[0]

    def start_trackers(self, settings: Mapping[str, Any]) -> None:
        """`settings`: of the run, by dotted key."""
        if self.config.trackers:
            plain = {key: str(value) for key, value in settings.items()}
            self._accelerator.init_trackers("hpc_ecg", config=plain)

    def track(self, values: Mapping[str, float], step: int) -> None:
        if self.config.trackers:
            self._accelerator.log(dict(values), step=step)

    def wait_for_all(self) -> None:
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group, so that another engine can be made in this process."""
        self._watchdog.stop()
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._release()
        leave_world(self._store, self.config.zero_stage is not None)
