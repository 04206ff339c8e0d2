#!/usr/bin/env python3
"""Kill a tiny run at random moments and restart it until it finishes, again and again.

Every finished run must equal the undisturbed one bit by bit: best weights, checkpoints,
predictions, and the loss of each step. Runs are forks of this process, which has imported
everything and computed nothing: much faster than a new interpreter. Exit code 1 if a run differs or
a process ends in an unexpected way.
"""

import argparse
import gc
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR2
from typing import Any

# Before numpy starts threads, which a fork would not copy.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import torch._dynamo  # noqa: F401 - takes seconds; the first optimizer imports it
from forks import fork, free_port, has_ended, wait_for
from safetensors.numpy import load_file
from synthetic import Population, write_cohort

from hpc_ecg.cli import main as hpc_ecg
from hpc_ecg.distributed.stop_signals import EXIT_REQUEUE
from hpc_ecg.distributed.watchdog import EXIT_PEER_LOST
from hpc_ecg.sweep.folder import read_events
from hpc_ecg.training import finetune, loop
from hpc_ecg.training.engine import Engine

PHASES = ("starting", "stepping", "saving", "evaluating", "ending")
SIGNALS = (SIGKILL, SIGKILL, SIGTERM, SIGUSR2)
EXPECTED = {0, EXIT_REQUEUE, EXIT_PEER_LOST, -SIGKILL, -SIGTERM, -SIGUSR2}
SETTINGS = """
model:
  encoder_layers: 2
  encoder_embed_dim: 48
  encoder_ffn_embed_dim: 96
  encoder_attention_heads: 4
  conv_feature_layers: "[(16, 2, 2)] * 4"
  conv_pos: 8
  conv_pos_groups: 4
data: {batch_size: 12}
init: {checkpoint: random}
optim: {lr: 0.002}
train:
  max_epochs: 3
  eval_every: 3
  save_every: 1
  log_every: 1
  patience: null
  average: ema
  calibration: temperature
engine: {device: cpu, cpu_threads: 1, timeout_min: 1}
"""


def main() -> int:
    options = parse_options()
    folder = Path(tempfile.mkdtemp(prefix="hpc_ecg-soak-"))
    soak = Soak(folder, options.ranks, np.random.default_rng(options.seed))
    runs = 0
    while soak.kills.total() < options.cycles:
        soak.run_to_the_end(f"run-{runs:04d}", options.cycles)
        runs += 1
    phases = ", ".join(f"{soak.kills[phase]} {phase}" for phase in PHASES)
    print(
        f"{soak.kills.total()} cycles of kill and resume in {runs} runs, {options.ranks} rank(s), "
        f"seed {options.seed}: killed while {phases}; {len(soak.mismatches)} mismatches"
    )
    if soak.mismatches:
        print(f"\nthe run folders are kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--cycles", type=int, default=200, metavar="N", help="minimum number of kills (200)"
    )
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2), help="processes (1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills (0)")
    return parser.parse_args()


class Soak:
    """The undisturbed run, and the kills and mismatches of the other runs so far."""

    def __init__(self, folder: Path, ranks: int, rng: np.random.Generator) -> None:
        self.folder, self.ranks, self.rng = folder, ranks, rng
        self.kills: Counter[str] = Counter()
        self.mismatches: list[str] = []
        self.phase_of_rank = mmap.mmap(-1, ranks)
        gc.freeze()  # so that garbage collection in the forks skips imported objects
        record_phases(self.phase_of_rank)
        (folder / "run.yaml").write_text(SETTINGS)
        wait_for([fork(lambda: make_shards(folder), folder / "shards.log")])
        began = time.monotonic()
        codes = wait_for(self.start("undisturbed"))
        self.length_s = time.monotonic() - began
        if codes != [0] * ranks:
            raise RuntimeError(f"the undisturbed run ended with {codes}; see {folder}")

    def run_to_the_end(self, name: str, cycles: int) -> None:
        """Kill and restart the run until it finishes, then compare. Stop killing after `cycles`."""
        finished = self.folder / name / "finished.json"
        before = len(self.mismatches)
        while not finished.exists() and len(self.mismatches) == before:
            pids = self.start(name)
            phase = "" if self.kills.total() >= cycles else self.disturb(pids)
            codes = wait_for(pids)
            self.kills[phase] += bool(phase) and not finished.exists()
            if not set(codes) <= EXPECTED or (not phase and codes != [0] * self.ranks):
                self.mismatches.append(
                    f"{name}: killed {phase or 'not at all'}, ended with {codes}"
                )
        if len(self.mismatches) == before:
            self.mismatches += differences(self.folder / name, self.folder / "undisturbed")
        if len(self.mismatches) == before:
            shutil.rmtree(self.folder / name)
        print(*self.mismatches[before:], sep="\n", end="", file=sys.stderr, flush=True)

    def start(self, name: str) -> list[int]:
        """Start the processes of a run; returns their pids."""
        self.phase_of_rank[:] = bytes(self.ranks)
        settings = [f"{self.folder}/run.yaml", f"data.shards={self.folder}/set"]
        settings += [f"run_dir={self.folder / name}"]
        port, log = free_port(), self.folder / f"{name}.log"

        def run_rank(rank: int) -> int:
            size = str(self.ranks)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size)
            os.environ.update(LOCAL_WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            return hpc_ecg(["finetune", *settings])

        return [fork(partial(run_rank, rank), log) for rank in range(self.ranks)]

    def disturb(self, pids: list[int]) -> str:
        """Send a signal at a random moment, half of the time in a chosen phase.

        Returns the phase that the signal hit, or "" if the run ended first.
        """
        victim, number = self.rng.integers(self.ranks), self.rng.choice(SIGNALS)
        aim = self.rng.choice([*PHASES, *["any"] * len(PHASES)])
        share = self.rng.random() * (1.0 if aim == "any" else 0.5)
        moment = time.monotonic() + share * self.length_s
        while time.monotonic() < moment or aim not in ("any", PHASES[self.phase_of_rank[victim]]):
            if has_ended(pids[victim]):
                return ""
            time.sleep(0.001)
        time.sleep(self.rng.random() * 0.005)
        phase = PHASES[self.phase_of_rank[victim]]
        everyone = number != SIGKILL and self.rng.random() < 0.5  # as Slurm does
        for pid in pids if everyone else [pids[victim]]:
            os.kill(pid, number)
        return phase


def record_phases(phase_of_rank: mmap.mmap) -> None:
    """Patch the run so that each rank writes the number of its phase to `phase_of_rank[rank]`."""

    def record_phase(owner: Any, name: str, during: str, after: str) -> None:
        real = getattr(owner, name)

        def recorded(*arguments: Any, **named: Any) -> Any:
            rank = int(os.environ["RANK"])
            phase_of_rank[rank] = PHASES.index(during)
            result = real(*arguments, **named)
            phase_of_rank[rank] = PHASES.index(after)
            return result

        setattr(owner, name, recorded)

    record_phase(Engine, "take_step", "stepping", "stepping")
    record_phase(loop, "_save", "saving", "stepping")
    record_phase(loop, "_evaluate", "evaluating", "stepping")
    record_phase(finetune, "finish_run", "ending", "ending")


def make_shards(folder: Path) -> int:
    population = Population(af_prevalence=0.4)
    table = write_cohort(folder / "cohort", num_patients=40, seed=3, population=population)
    command = f"data shard {table} --signals {table.parent} --out {folder / 'set'} --label af "
    command += "--patient patient_id --fractions 0.5,0.25,0.25 --workers 1"
    return hpc_ecg(command.split())


def differences(run: Path, undisturbed: Path) -> list[str]:
    """One line for each output of `run` that is not bitwise equal to that of `undisturbed`."""
    files, expected = (
        sorted(p.relative_to(f) for p in f.rglob("*.safetensors")) for f in (run, undisturbed)
    )
    differing = [] if files == expected else [f"files {files}, not {expected}"]
    differing += [
        str(file)
        for file in expected
        if tensor_bytes(run / file) != tensor_bytes(undisturbed / file)
    ]
    differing += ["the loss curve"] if loss_curve(run) != loss_curve(undisturbed) else []
    tables = [pd.read_parquet(f / "predictions" / "valid.parquet") for f in (run, undisturbed)]
    differing += [] if tables[0].equals(tables[1]) else ["predictions"]
    return [f"{run.name}: {output} differs" for output in differing]


def tensor_bytes(file: Path) -> dict[str, bytes]:
    """The bytes of each tensor; whole files differ, because the order of their metadata is random.
    Empty if there is no such file."""
    return (
        {name: array.tobytes() for name, array in load_file(file).items()} if file.exists() else {}
    )


def loss_curve(run: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step. A step that ran twice counts with its last line."""
    steps = [line for line in read_events(run / "metrics.jsonl") if line["event"] == "step"]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in steps}


if __name__ == "__main__":
    sys.exit(main())
