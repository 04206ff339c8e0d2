"""`hpc-ecg plan`: what a run would need and cost. Settings in, lines out."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpc_ecg.atomic_io import write_json
from hpc_ecg.config.schema import check_settings, setting
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.hashing import read_record
from hpc_ecg.model.architecture import Architecture, resolve_architecture
from hpc_ecg.preflight.cards import Device, card_name, device_of
from hpc_ecg.preflight.footprint import Workload, largest_micro_batch, memory_gb, part_parameters
from hpc_ecg.preflight.step_time import (
    Network,
    factor_of,
    forward_s,
    read_measured,
    step_of_run,
    step_s,
)
from hpc_ecg.reporting.numbers import format_percent
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import Stage, StageSchedule, run_seconds, stages_of
from hpc_ecg.weights.reading import read_checkpoint
from hpc_ecg.weights.settings import RANDOM

if TYPE_CHECKING:
    from hpc_ecg.training.engine import Engine
    from hpc_ecg.training.prepare import PreparedRun

PLAN = "plan.json"
HEAD = "processes records    fit      step    epoch        run     hours     kWh   MB/s   weak"
LEGEND = """records, fit: of one process, and how many fit in a micro-batch; run: all epochs, with
validations (train.patience may end it sooner); hours: processes x hours; MB/s: of the shards, in
all (one process reads 1,600 from memory); weak: %, the speed of a process if each had the whole
batch, by that of one alone"""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The options of `hpc-ecg plan`, which describes them."""

    gpu: str = "cpu"
    gpus: list[int] = setting([1], at_least=1)
    records: list[int] = setting([], at_least=1)
    measured: str | None = None
    price: float = setting(0.0, at_least=0, below=float("inf"))
    kwh_price: float = setting(0.0, at_least=0, below=float("inf"))
    currency: str = "EUR"
    network_gbit: float = setting(100.0, above=0, below=float("inf"))
    gpus_per_node: int = setting(8, at_least=1)

    def __post_init__(self) -> None:
        check_settings(self, "")
        if len(self.records) not in (0, 2):
            raise ValueError(f"records must be two numbers, as 469197,68545, got {self.records}")


class Basis(NamedTuple):
    """What a plan is computed for and from."""

    asked: PlanConfig
    device: Device
    network: Network
    measured: dict[str, Any] | None

    def cost(self, hours: float) -> tuple[float, str]:
        """kWh of so many hours of the device, and their price as text, '' without prices."""
        kwh = hours * self.device.watts / 1000
        money = hours * self.asked.price + kwh * self.asked.kwh_price
        return kwh, f"  {money:,.2f} {self.asked.currency}" if money else ""


class Planned(NamedTuple):
    """One run, opened as far as a plan needs it. `records`: to train and to validate on."""

    config: FinetuneConfig
    stages: list[Stage]
    sizes: Architecture
    num_samples: int
    num_labels: int
    records: list[int]
    epoch_steps: int

    @property
    def steps(self) -> int:
        schedules = (
            StageSchedule(config=s.train, epoch_steps=self.epoch_steps) for s in self.stages
        )
        return sum(schedule.steps for schedule in schedules)

    def work(self, device: Device, stage: Stage | None = None) -> Workload:
        """What a stage computes; by default the one that trains most."""
        common = *self[2:5], self.config.model, self.config.engine, device
        stages = [stage] if stage else self.stages
        works = [Workload(*common, s.freeze, s.train.freeze_layers) for s in stages]
        return min(works, key=lambda work: work.lowest)

    def step_s(
        self, basis: Basis, processes: int, records: int | None = None, stage: Stage | None = None
    ) -> float:
        """Of a stage, with `records` on each process; by default its share of the batch."""
        share = records or -(-self.config.data.batch_size // processes)
        factor = factor_of(basis.measured, self.work(basis.device), basis.network)
        return step_s(self.work(basis.device, stage), processes, share, basis.network, factor)

    def seconds(self, basis: Basis, processes: int) -> float:
        """Of the whole run on so many processes, if nothing stops it early."""
        work = self.work(basis.device)
        forward = factor_of(basis.measured, work, basis.network) * forward_s(work) / processes
        steps = [self.step_s(basis, processes, stage=stage) for stage in self.stages]
        return run_seconds(self.stages, self.epoch_steps, self.records, steps, forward)


def basis_of(asked: PlanConfig, precision: str) -> Basis:
    """ValueError: no such card, or it lacks the precision; or no step was measured there."""
    device = device_of(asked.gpu, precision)
    network = Network(asked.network_gbit, asked.gpus_per_node, device.link_gb_s)
    return Basis(asked, device, network, read_measured(asked.measured))


def open_planned(config: FinetuneConfig, records: list[int]) -> Planned:
    """Open shards and weights as far as a plan needs them; `records`, unless empty, stand for the
    shards. The published sizes stand for weights that are not here."""
    start, labels, steps = config.init.checkpoint, config.data.labels, 0
    is_here, samples = start not in (None, RANDOM), config.init.signal.num_samples
    known = (
        read_checkpoint(str(start)).architecture if is_here and Path(str(start)).exists() else None
    )
    if not records:
        shards, labels = open_shards(config.data)
        train, valid = (open_split(shards, split, labels) for split in ("train", "valid"))
        steps = EpochSampler.for_split(train, config.data, config.seed).steps_per_epoch
        records, samples = [len(train), len(valid)], shards.signal.num_samples
    steps = steps or -(-records[0] // config.data.batch_size)
    stages = stages_of(config.train, config.optim, start != RANDOM)
    sizes = resolve_architecture(config.model, known)
    return Planned(config, stages, sizes, samples, max(1, len(labels)), records, steps)


def keep_plan(engine: "Engine", prepared: "PreparedRun") -> None:
    """Rank 0 of a run on a GPU of the data sheets keeps the formula's step in plan.json."""
    path = Path(prepared.config.run_dir) / PLAN
    is_known = engine.device.type == "cuda" and card_name(engine.device_name) is not None
    if engine.is_rank_zero and is_known and not path.exists():
        basis = basis_of(PlanConfig(gpu=engine.device_name), engine.precision)
        step = open_planned(prepared.config, []).step_s(basis, engine.world_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path, {"step_s": step, "processes": engine.world_size, "device": basis.device.name}
        )


def describe_run(planned: Planned, basis: Basis) -> list[str]:
    """The plan of one run as lines for a terminal."""
    work, (train, valid), fewest = (
        planned.work(basis.device),
        planned.records,
        min(basis.asked.gpus),
    )
    share = -(-planned.config.data.batch_size // fewest)
    micro = min(share, work.engine.micro_batch_size or share)
    parts, most = memory_gb(work, fewest, micro), largest_micro_batch(work, fewest)
    memory = ", ".join(f"{name} {gb:.2f}" for name, gb in parts.items())
    advice = f"; too much: engine.micro_batch_size={most}" * (most < micro)
    return [
        f"{sum(part_parameters(work.sizes)) / 1e6:.1f} million parameters, {train:,} records to "
        f"train and {valid:,} to validate on, {work.device.precision}, {work.engine.parallel}",
        describe_basis(basis, work),
        *_outcome(Path(planned.config.run_dir)),
        f"{sum(parts.values()):.1f} GB with a micro-batch of {micro}: {memory}{advice}",
        *("", HEAD, *(_row(planned, basis, number) for number in basis.asked.gpus), LEGEND),
    ]


def describe_basis(basis: Basis, work: Workload) -> str:
    """What the device is, and where the seconds of a step come from."""
    device, network = basis.device, basis.network
    origin = "operations, memory traffic and the data sheet, not measured"
    if basis.measured:
        origin = f"a measured one, {factor_of(basis.measured, work, network):.2f} x the formula"
    elif not device.is_gpu:
        origin = f"a product measured here, {device.flops_per_s / 1e9:.3g} GFLOP/s"
    return (
        f"{device.name}, {device.memory_gb:.0f} GB{f', {device.watts} W' * device.is_gpu}; "
        f"{network.gbit:g} Gbit/s between nodes of {network.gpus_per_node}; a step from {origin}"
    )


def _outcome(run_dir: Path) -> list[str]:
    """What was planned of a finished run and what it took; [] where either is missing."""
    if not (run_dir / PLAN).exists() or not RunFolder(run_dir).is_finished():
        return []
    planned = read_record(run_dir / PLAN, {"step_s": float})["step_s"]
    took = step_of_run(RunFolder(run_dir))["seconds"]
    error = format_percent(planned / took - 1)
    return [
        f"this run: {1000 * planned:.3g} ms a step were planned, {1000 * took:.3g} taken: {error}"
    ]


def _row(planned: Planned, basis: Basis, processes: int) -> str:
    batch, seconds = planned.config.data.batch_size, planned.seconds(basis, processes)
    step = planned.step_s(basis, processes)
    weak = 100 * planned.step_s(basis, 1) / planned.step_s(basis, processes, batch)
    hours, (epoch, run) = (
        processes * seconds / 3600,
        map(duration, (planned.epoch_steps * step, seconds)),
    )
    kwh, price = basis.cost(hours)
    mb_s = planned.sizes.in_d * planned.num_samples * 2 * batch / step / 1e6
    most = largest_micro_batch(planned.work(basis.device), processes)
    return (
        f"{processes:<10}{-(-batch // processes):>7}{most:>7}{1000 * step:>7.0f} ms{epoch:>9}"
        f"{run:>11}{hours:>10.2f}{kwh:>8.2f}{mb_s:>7.0f}{weak:>7.1f}{price}"
    )


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
