"""Training loops to compare: `finetune`, bare PyTorch, Accelerate alone, Hugging Face's Trainer.

A host loop calls `PairedTimer.before_step` before each step. Between blocks of its steps, the peers
take the same number of steps, so other load on the machine affects all loops alike. All have the
same model, weights, batches, dropout seeds, AdamW and clipping; their losses must agree.
"""

# B batch, C leads, S samples, K labels

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.loader import collate_step
from hpc_ecg.data.sampler import EpochSampler, RankSlice
from hpc_ecg.data.source import ShardSource
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.model.transformer import ECGClassifier, build_model
from hpc_ecg.training import meter
from hpc_ecg.training.finetune import finetune
from hpc_ecg.training.model_inputs import TrainingTransform, model_inputs
from hpc_ecg.training.optimizer import build_optimizer
from hpc_ecg.training.settings import FinetuneConfig, OptimConfig

CPU = torch.device("cpu")
Step = Callable[[], object]
Batch = tuple[tuple[Tensor | None, ...], Tensor]
"""Arguments of the model, and targets [B, K]."""


class PairedTimer:
    """Measures seconds per step of a host loop and its peers, in alternating blocks of steps.

    Uses two clocks: wall time, and CPU time of this process, which other load disturbs less.
    """

    def __init__(self, peers: Mapping[str, Step], block: int, wait: Step = lambda: None) -> None:
        """`wait`: for the device, before a look at the clock."""
        self._peers, self._block, self._wait = peers, block, wait
        self._calls, self._began = 0, _now()
        self._host: list[np.ndarray] = []
        self._peer_seconds: dict[str, list[np.ndarray]] = {name: [] for name in peers}

    def before_step(self) -> None:
        """The host calls this before each of its steps; peers run at the end of each block."""
        if self._calls % self._block == 0:
            self._wait()
            if self._calls:
                self._host.append((_now() - self._began) / self._block)
            for name, step in self._peers.items():
                began = _now()
                for _ in range(self._block):
                    step()
                self._wait()
                self._peer_seconds[name].append((_now() - began) / self._block)
            self._began = _now()
        self._calls += 1

    def ratio(self, reference: str) -> np.ndarray:
        """Median ratio of host to peer, by each clock.

        A block of the host is compared with the mean of the peer's blocks before and after it. The
        first block is left out because it allocates memory.
        """
        host, peer = np.array(self._host), np.array(self._peer_seconds[reference])
        return np.median((host / ((peer[1:] + peer[:-1]) / 2))[1:], axis=0)

    def seconds(self, reference: str | None = None) -> np.ndarray:
        """Median seconds per step of the host or of a peer, by each clock."""
        blocks = self._peer_seconds[reference] if reference else self._host
        return np.median(blocks[1:], axis=0)


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def host_steps(block: int, num_pairs: int) -> int:
    """Steps that a host needs for this many pairs: the first block warms up, and one more step ends
    the last block."""
    return block * (num_pairs + 1) + 1


def make_batches(config: FinetuneConfig, num_steps: int) -> list[Batch]:
    """The first batches of `finetune` as inputs of the model, with the same dropout seeds."""
    shards, labels = open_shards(config.data)
    train = open_split(shards, "train", labels, ShardSource(shards, config.data))
    schedule = EpochSampler.for_split(train, config.data, config.seed)
    batches: list[Batch] = []
    for number in range(num_steps):
        micro = collate_step(train, number, schedule, RankSlice()).micro_batches[0]
        change = TrainingTransform(
            dataset=train, augment=config.augment, seed=config.seed, step=number
        )
        inputs = model_inputs(micro, CPU, train.millivolts_per_count, change)
        batches.append((inputs, torch.from_numpy(micro.labels_nK)))
    return batches


def make_model(architecture: Architecture, config: FinetuneConfig) -> ECGClassifier:
    return build_model(architecture, 1, config.model, config.seed).train()


# Ours


def run_ours(config: FinetuneConfig, before_step: Callable[[], None]) -> dict[int, float]:
    """Run `finetune`, including its log lines; returns the logged losses by step.

    The meter is called first in each step, so a subclass of it calls `before_step`.
    """

    class PausingMeter(meter.Meter):
        def waiting_for_data(self) -> Any:
            before_step()
            return super().waiting_for_data()

    with mock.patch("hpc_ecg.training.run_state.Meter", PausingMeter):
        run = finetune(config)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["event"] == "step"}


# Peers


def bare_loop(model: nn.Module, batches: Iterable[Batch], optim: OptimConfig) -> Iterator[float]:
    """A loop that only trains; yields the loss of each step."""
    optimizer = build_optimizer(model, optim, CPU)
    for inputs, targets_BK in batches:
        loss = F.binary_cross_entropy_with_logits(model(*inputs), targets_BK)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


class RecordDataset(Dataset[dict[str, Tensor]]):
    """Batches split into records, for loaders that make batches themselves."""

    def __init__(self, batches: list[Batch]) -> None:
        full = [batch for batch in batches if len(batch[1]) == len(batches[0][1])]
        self._ecgs = [ecg_CS for inputs, _ in full for ecg_CS in _not_none(inputs[0])]
        self._seeds = [seed for inputs, _ in full for seed in _not_none(inputs[2])]
        self._labels = [labels_K for _, labels_BK in full for labels_K in labels_BK]

    def __len__(self) -> int:
        return len(self._ecgs)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        parts = self._ecgs[number], self._seeds[number], self._labels[number]
        return dict(zip(("ecg_BCS", "seeds_B", "labels"), parts, strict=True))


def _not_none(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def run_accelerate(
    model: nn.Module,
    records: RecordDataset,
    batch_size: int,
    optim: OptimConfig,
    before_step: Callable[[], None],
) -> None:
    """The training loop of Accelerate's examples."""
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(records, batch_size=batch_size)
    model, optimizer, loader = accelerator.prepare(
        model, build_optimizer(model, optim, CPU), loader
    )
    for batch in loader:
        before_step()
        with accelerator.accumulate(model):
            logits_BK = model(batch["ecg_BCS"], None, batch["seeds_B"])
            loss = F.binary_cross_entropy_with_logits(logits_BK, batch["labels"])
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()


def run_trainer(
    model: nn.Module,
    records: RecordDataset,
    batch_size: int,
    optim: OptimConfig,
    before_step: Callable[[], None],
    folder: Path,
) -> bool:
    """Run Hugging Face's Trainer, logging every 10 steps as `finetune` does; returns whether its
    weights stayed finite (alone they do; in one process with the bare loop they did not)."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class PauseCallback(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            before_step()

    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        max_grad_norm=optim.clip_norm or 0.0,
        lr_scheduler_type="constant",
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(
        model=WithLoss(model),
        args=arguments,
        train_dataset=records,
        optimizers=(build_optimizer(model, optim, CPU), None),
        callbacks=[PauseCallback()],
    ).train()
    is_finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    if not is_finite:
        print("the weights of Trainer are not finite: its numbers are left out")
    return is_finite


class WithLoss(nn.Module):
    """A model that returns its loss, as Trainer expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ecg_BCS: Tensor, seeds_B: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits_BK = self.model(ecg_BCS, None, seeds_B)
        return {
            "loss": F.binary_cross_entropy_with_logits(logits_BK, labels),
            "logits": logits_BK.detach(),
        }
