"""Training loops to compare: ours as a run has it, bare PyTorch, Accelerate alone, HF's Trainer.

A host loop calls `Pairs.turn` before each of its steps. In its pauses the peers take as many steps
as it took, so that whatever else this machine does falls on all of them alike. All have the same
model, weights, batches, dropout seeds, AdamW and clipping; their losses must agree.
"""

# B batch, C leads, S samples, K labels

import json
import time
from collections.abc import Callable, Iterable, Iterator
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
Batch = tuple[tuple[Tensor | None, ...], Tensor]
"""What the model is called with, and its targets [B, K]."""


class Pairs:
    """Seconds per step of a host loop and of its peers, in alternating blocks of steps: by the
    wall's clock, and of this process on any core, which others disturb less."""

    def __init__(self, peers: dict[str, Callable[[], object]], block: int) -> None:
        self._peers, self._block = peers, block
        self._calls, self._began = 0, _now()
        self._host: list[np.ndarray] = []
        self._of: dict[str, list[np.ndarray]] = {name: [] for name in peers}

    def turn(self) -> None:
        """To be called by the host before each of its steps."""
        if self._calls % self._block == 0:
            if self._calls:
                self._host.append((_now() - self._began) / self._block)
            for name, step in self._peers.items():
                began = _now()
                for _ in range(self._block):
                    step()
                self._of[name].append((_now() - began) / self._block)
            self._began = _now()
        self._calls += 1

    def ratio(self, reference: str) -> np.ndarray:
        """Host over peer, whose blocks before and after count together: the median, by each clock.
        Without the first block, in which memory is taken."""
        host, other = np.array(self._host), np.array(self._of[reference])
        return np.median((host / ((other[1:] + other[:-1]) / 2))[1:], axis=0)

    def seconds(self, reference: str | None = None) -> np.ndarray:
        """Of a step, by each clock."""
        return np.median((self._of[reference] if reference else self._host)[1:], axis=0)


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def host_steps(block: int, num_pairs: int) -> int:
    """Steps of a host for so many pairs: the first block warms up, the last step ends a block."""
    return block * (num_pairs + 1) + 1


def batches_of(config: FinetuneConfig, num_steps: int) -> list[Batch]:
    """As the model takes them, the same records and dropout seeds as in our run."""
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


def model_of(architecture: Architecture, config: FinetuneConfig) -> ECGClassifier:
    return build_model(architecture, 1, config.model, config.seed).train()


# Ours


def run_ours(config: FinetuneConfig, turn: Callable[[], None]) -> dict[int, float]:
    """`finetune` itself, with its log lines; returns the losses in them by number of step. Its
    meter is told of each step first: that is where the peers come in."""

    class Turning(meter.Meter):
        def waiting_for_data(self) -> Any:
            turn()
            return super().waiting_for_data()

    with mock.patch("hpc_ecg.training.finetune.Meter", Turning):
        run = finetune(config)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["event"] == "step"}


# Peers


def bare_loop(model: nn.Module, batches: Iterable[Batch], optim: OptimConfig) -> Iterator[float]:
    """A loop that does nothing but train; its losses."""
    optimizer = build_optimizer(model, optim, CPU)
    for inputs, targets_BK in batches:
        loss = F.binary_cross_entropy_with_logits(model(*inputs), targets_BK)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


class AsRecords(Dataset[dict[str, Tensor]]):
    """Batches cut into records, for loaders that make batches themselves."""

    def __init__(self, batches: list[Batch]) -> None:
        whole = [batch for batch in batches if len(batch[1]) == len(batches[0][1])]
        self._ecgs = [ecg_CS for inputs, _ in whole for ecg_CS in _given(inputs[0])]
        self._seeds = [seed for inputs, _ in whole for seed in _given(inputs[2])]
        self._labels = [labels_K for _, labels_BK in whole for labels_K in labels_BK]

    def __len__(self) -> int:
        return len(self._ecgs)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        parts = self._ecgs[number], self._seeds[number], self._labels[number]
        return dict(zip(("ecg_BCS", "seeds_B", "labels"), parts, strict=True))


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def run_accelerate(
    model: nn.Module,
    records: AsRecords,
    batch_size: int,
    optim: OptimConfig,
    turn: Callable[[], None],
) -> None:
    """The loop of Accelerate's own examples."""
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(records, batch_size=batch_size)
    model, optimizer, loader = accelerator.prepare(
        model, build_optimizer(model, optim, CPU), loader
    )
    for batch in loader:
        turn()
        with accelerator.accumulate(model):
            logits_BK = model(batch["ecg_BCS"], None, batch["seeds_B"])
            loss = F.binary_cross_entropy_with_logits(logits_BK, batch["labels"])
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()


def run_trainer(
    model: nn.Module,
    records: AsRecords,
    batch_size: int,
    optim: OptimConfig,
    turn: Callable[[], None],
    folder: Path,
) -> bool:
    """Hugging Face's Trainer, logging every 10 steps as we do; whether its weights stayed finite
    (beside the bare loop in one process they did not; alone they do)."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Turn(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            turn()

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
        callbacks=[Turn()],
    ).train()
    is_finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    if not is_finite:
        print("Trainer's weights are not finite: its numbers are left out")
    return is_finite


class WithLoss(nn.Module):
    """As Trainer wants it: the loss is the model's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ecg_BCS: Tensor, seeds_B: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits_BK = self.model(ecg_BCS, None, seeds_B)
        return {
            "loss": F.binary_cross_entropy_with_logits(logits_BK, labels),
            "logits": logits_BK.detach(),
        }
