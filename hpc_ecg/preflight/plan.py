"""`hpc-ecg plan`: what a run would need and cost. Settings in, lines out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hpc_ecg.atomic_io import write_json
from hpc_ecg.config.schema import check_settings, setting
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.hashing import read_record
from hpc_ecg.model.architecture import resolve_architecture
from hpc_ecg.model.flops import peak_flops
from hpc_ecg.preflight import step_time
from hpc_ecg.preflight.devices import device_of, with_convolution
from hpc_ecg.preflight.footprint import Workload, largest_micro_batch, memory_gb, part_parameters
from hpc_ecg.reporting.numbers import format_percent
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import Stage, run_seconds, stages_of
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
    gpus: list[int] = setting([1], at_least=1, at_most=4096)
    records: list[int] = setting([], at_least=1, at_most=10**12)
    measured: str | None = None
    price: float = setting(0.0, at_least=0, at_most=10**9)
    kwh_price: float = setting(0.0, at_least=0, at_most=10**9)
    currency: str = "EUR"
    network_gbit: float = setting(100.0, at_least=0.001, at_most=10**9)
    gpus_per_node: int = setting(8, at_least=1)

    def __post_init__(self) -> None:
        check_settings(self, "")
        if len(self.records) not in (0, 2):
            raise ValueError(f"records must be two numbers, as 469197,68545, got {self.records}")
        if not self.gpus:
            raise ValueError("gpus must be numbers such as 1,2,8, got none")


class Planned(NamedTuple):
    """One run, opened as far as a plan needs it. `work`: of the stage that trains most; `records`:
    to train and to validate on; `factor`: measured by computed seconds; `knows_sizes`: the network
    is that of a file or of random weights, not assumed."""

    config: FinetuneConfig
    asked: PlanConfig
    stages: list[Stage]
    work: Workload
    records: list[int]
    epoch_steps: int
    network: step_time.Network
    factor: float
    knows_sizes: bool

    def step_s(self, processes: int, records: int = 0, stage: Stage | None = None) -> float:
        """Of a stage, with `records` on each process; by default its share of the batch. Every
        `engine.verify_every`-th step counts twice."""
        records = records or -(-self.config.data.batch_size // processes)
        work = workload(self.work, stage) if stage else self.work
        step_s = step_time.step_s(work, processes, records, self.network, self.factor)
        return step_s * (1 + 1 / (work.engine.verify_every or math.inf))

    def seconds(self, processes: int) -> float:
        """Of the whole run on so many processes, if nothing stops it early."""
        forward_s = self.factor * step_time.forward_s(self.work) / processes
        steps = [self.step_s(processes, stage=stage) for stage in self.stages]
        return run_seconds(self.stages, self.epoch_steps, self.records, steps, forward_s)

    def cost(self, hours: float) -> tuple[float, str]:
        """kWh of so many hours of the device, and their price as text, '' without prices."""
        kwh = hours * self.work.device.watts / 1000
        money = hours * self.asked.price + kwh * self.asked.kwh_price
        return kwh, f"  {money:,.2f} {self.asked.currency}" if money else ""


def workload(common: Workload, stage: Stage) -> Workload:
    return common._replace(freeze=stage.freeze, freeze_layers=stage.train.freeze_layers)


def _largest(common: Workload, stages: Sequence[Stage]) -> Workload:
    """Of the stage that trains most."""
    return min((workload(common, stage) for stage in stages), key=lambda work: work.lowest)


def open_planned(config: FinetuneConfig, asked: PlanConfig) -> Planned:
    """Open shards and weights as far as a plan needs them; `asked.records` stand for the shards,
    and the published sizes for weights that are not here. ValueError: they, the card or the
    measured step cannot be used."""
    device, start = device_of(asked.gpu, config.engine.precision), config.init.checkpoint
    is_here = start not in (None, RANDOM) and Path(str(start)).exists()
    known = read_checkpoint(str(start)).architecture if is_here else None
    labels, samples, records = config.data.labels, config.init.signal.num_samples, asked.records
    if records:
        steps = -(-records[0] // config.data.batch_size)
    else:
        shards, labels = open_shards(config.data)
        train, valid = (open_split(shards, split, labels) for split in ("train", "valid"))
        steps = EpochSampler.for_split(train, config.data, config.seed).steps_per_epoch
        records, samples = [len(train), len(valid)], shards.signal.num_samples
    stages = stages_of(config.train, config.optim, start != RANDOM)
    sizes = resolve_architecture(config.model, known), samples, max(1, len(labels))
    device = with_convolution(device, sizes[0])
    common = Workload(*sizes, config.model, config.engine, device)
    work = _largest(common, stages)
    network = step_time.Network(asked.network_gbit, asked.gpus_per_node, device.link_gb_s)
    factor = 1.0
    if asked.measured:
        factor = step_time.factor_of(step_time.read_measured(asked.measured), work, network)
    knows_sizes = is_here or start == RANDOM
    return Planned(config, asked, stages, work, records, steps, network, factor, knows_sizes)


def keep_plan(engine: "Engine", prepared: "PreparedRun") -> None:
    """Rank 0 of a run on a GPU of the data sheets keeps the formula's step in plan.json, unless its
    data sheet lacks the precision: a V100 emulates bf16."""
    config, data, name = prepared.config, prepared.data, engine.device_name
    path, asked = Path(config.run_dir) / PLAN, PlanConfig()
    if engine.is_rank_zero and peak_flops(name, engine.precision) and not path.exists():
        device = device_of(name, engine.precision)
        sizes = prepared.start.architecture, data.shards.signal.num_samples, 1
        work = _largest(Workload(*sizes, config.model, config.engine, device), prepared.stages)
        network = step_time.Network(asked.network_gbit, asked.gpus_per_node, device.link_gb_s)
        share = -(-config.data.batch_size // engine.world_size)
        step_s = step_time.step_s(work, engine.world_size, share, network)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"step_s": step_s, "device": device.name})


def describe_run(planned: Planned) -> list[str]:
    """The plan of one run as lines for a terminal."""
    work, fewest, (train, valid) = planned.work, min(planned.asked.gpus), planned.records
    share = -(-planned.config.data.batch_size // fewest)
    micro = min(share, work.engine.micro_batch_size or share)
    parts, most = memory_gb(work, fewest, micro), largest_micro_batch(work, fewest)
    memory = ", ".join(f"{name} {gb:.2f}" for name, gb in parts.items())
    head, legend = HEAD, LEGEND
    if not work.device.is_gpu:
        head = head.replace("     kWh", "").replace("   weak", "")
        legend = legend.split("; weak")[0]
    head += "  price" * bool(planned.cost(1)[1])
    advice = f"; too much, {most} records would fit (engine.micro_batch_size)" * (most < micro)
    return [
        f"{sum(part_parameters(work.sizes)) / 1e6:.1f} million parameters, {train:,} records to "
        f"train and {valid:,} to validate on, {work.device.precision}, {work.engine.parallel}",
        describe_basis(planned),
        *_outcome(Path(planned.config.run_dir)),
        f"{sum(parts.values()):.1f} GB with a micro-batch of {micro}: {memory}{advice}",
        *("", head, *(_row(planned, number) for number in planned.asked.gpus), legend),
    ]


def describe_basis(planned: Planned) -> str:
    """What the device is, where the seconds of a step come from, and which network is assumed."""
    device, asked = planned.work.device, planned.asked
    origin = f"a product measured here, {device.flops_per_s / 1e9:.3g} GFLOP/s"
    if asked.measured:
        origin = f"a measured one, {planned.factor:.2f} x the formula"
    elif device.is_gpu:
        origin = "operations, memory traffic and the data sheet, not measured"
    more = f", {device.watts} W; {asked.network_gbit:g} Gbit/s between nodes of "
    more = f"{more}{asked.gpus_per_node}" * device.is_gpu
    text = f"{device.name}, {device.memory_gb:.0f} GB{more}; a step from {origin}"
    if planned.knows_sizes:
        return text
    start = planned.config.init.checkpoint
    given = f"{start} (init.checkpoint) is not here" if start else "no init.checkpoint is given"
    return f"{text}; {given}, so the sizes of the published network are assumed"


def _outcome(run_dir: Path) -> list[str]:
    """What was planned of a finished run and what it took; [] where either is missing."""
    if not (run_dir / PLAN).exists() or not RunFolder(run_dir).is_finished():
        return []
    planned_s = read_record(run_dir / PLAN, {"step_s": float})["step_s"]
    took_s = step_time.step_of_run(RunFolder(run_dir))["seconds"]
    error = format_percent(planned_s / took_s - 1)
    return [f"a step was planned to take {planned_s:.3g} s and took {took_s:.3g} s: {error} off"]


def _row(planned: Planned, processes: int) -> str:
    work, batch, step = planned.work, planned.config.data.batch_size, planned.step_s(processes)
    weak = 100 * planned.step_s(1) / planned.step_s(processes, batch)
    seconds, most = planned.seconds(processes), largest_micro_batch(work, processes)
    kwh, price = planned.cost(processes * seconds / 3600)
    mb_s = work.sizes.in_d * work.num_samples * 2 * batch / step / 1e6
    of_gpus = (f" {kwh:>7.2f}", f" {weak:>6.1f}") if work.device.is_gpu else ("", "")
    return (
        f"{processes:<10} {-(-batch // processes):>6} {most:>6} {1000 * step:>6.0f} ms"
        f" {duration(planned.epoch_steps * step):>8} {duration(seconds):>10}"
        f" {processes * seconds / 3600:>9.2f}{of_gpus[0]} {mb_s:>6.0f}{of_gpus[1]}{price}"
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, also of more than a day."""
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest_s:02}"
