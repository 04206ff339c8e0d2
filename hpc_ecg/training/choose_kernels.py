"""The kernels of a run: those of its settings and, for settings on auto, the fastest ones.

Rank 0 measures, and all ranks take its choice. It is kept in RUN/kernels.json, so that a run that
resumes goes on with the same bits, and in the folder of a sweep, so that runs with the same device
and sizes measure once. An explicit setting is never overruled.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from hpc_ecg.atomic_io import write_json
from hpc_ecg.hashing import check_kinds, read_record, sha256_of_value
from hpc_ecg.model.measure_kernels import Workload, measure_kernel
from hpc_ecg.model.settings import ATTENTION_KINDS, DROPOUT_KINDS, POSITIONAL_CONV_KINDS
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

ENOUGH_STEPS = 1000
"""Training steps from which on engine.kernels=auto measures on a GPU, and compiling is tried."""
KINDS_OF_BATCHES = 3
"""Compilations of a run: for whole batches, for the short one of an epoch, for validation."""
KINDS = {
    "attention": ATTENTION_KINDS,
    "positional_conv": POSITIONAL_CONV_KINDS,
    "record_dropout": DROPOUT_KINDS,
    "compile": ("eager", "compiled"),
}


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
    """One of each of KINDS; the content of kernels.json, if any; and lines for the log."""

    kernels: dict[str, str]
    measured: dict[str, Any] | None = None
    lines: tuple[str, ...] = ()

    @property
    def compiles(self) -> bool:
        return self.kernels["compile"] == "compiled"

    def apply(self, model: ECGClassifier) -> None:
        model.use_kernels(*(self.kernels[name] for name in KINDS if name != "compile"))


def seconds_won(steps: int, saved_s: float, compile_s: float) -> float:
    """Seconds that a run of so many more steps wins by torch.compile, which saves `saved_s` in each
    and takes `compile_s` for each kind of batch; negative if it loses."""
    return steps * saved_s - KINDS_OF_BATCHES * compile_s


def kept_kernels(config: FinetuneConfig, device: torch.device) -> KernelChoice:
    """The kernels of the settings and, where these are auto, of kernels.json in run_dir if it is of
    this kind of device. ValueError: the file is damaged."""
    path = RunFolder(config.run_dir).kernels
    if config.engine.kernels == "reference" or not path.exists():
        return _merged(config, None)
    kept = _read(path)
    if kept["device"] == _kind_of(device):
        return _merged(config, kept, f"kernels as in {path}: {kept['chosen']}")
    return _merged(config, None, f"{path} is of {kept['device']}: not for {_kind_of(device)}")


def choose_kernels(
    config: FinetuneConfig, model: ECGClassifier, load: Workload, steps: int, sweep_dir: Path | None
) -> KernelChoice:
    """The kernels of a run of so many training steps, on rank 0, before its folder is claimed."""
    kept, asked = kept_kernels(config, load.device), _asked(config)
    began_without = RunFolder(config.run_dir).config.exists() and not kept.lines
    is_worth_it = load.device.type == "cuda" and steps >= ENOUGH_STEPS and not began_without
    measures = {"auto": is_worth_it, "measure": True, "reference": False}[config.engine.kernels]
    if kept.measured or not measures or "auto" not in asked.values():
        return kept
    sizes = {name: str(value) for name, value in asdict(load).items()} | {"steps": steps}
    about = {"device": _kind_of(load.device), "torch": torch.__version__, "asked": asked}
    about |= {"sizes": asdict(model.architecture) | sizes}
    measure = partial(_measure, about, model, load, steps)
    found = measure() if sweep_dir is None else _measured_once(sweep_dir, about, measure)
    return _merged(config, found, *kept.lines, *describe(found))


def _measured_once(
    sweep_dir: Path, about: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    path = sweep_dir / f"kernels-{sha256_of_value(about)[:16]}.json"
    with FileLock(f"{path}.lock"):  # other runs of the sweep wait
        if not path.exists():
            write_json(path, measure())
        return _read(path)


def describe(measured: dict[str, Any]) -> list[str]:
    """A line for each kernel that was measured: what was taken, and how all candidates did."""
    text = "{ms:.3g} ms ({ratio:.2f} of the reference's, error {error:.1g})"
    return [
        f"{name} on {measured['device']}: {measured['chosen'][name]}, of "
        + "; ".join(f"{k} {f.get('out') or text.format(**f)}" for k, f in candidates.items())
        for name, candidates in measured["candidates"].items()
    ]


def _kind_of(device: torch.device) -> str:
    """The name of a GPU, or the vector instructions that torch uses on this processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def _read(path: Path) -> dict[str, Any]:
    """What was measured. ValueError: damaged, or of kernels that are not known."""
    found = read_record(path, {"device": str, "chosen": dict, "candidates": dict})
    check_kinds(path, found["candidates"], dict.fromkeys(found["chosen"], dict))
    for name, kind in found["chosen"].items():
        if kind not in KINDS.get(name, ()):
            raise ValueError(f"{path} is damaged: {name} cannot be {str(kind)[:40]!r}; delete it")
    return found


def _measure(
    about: dict[str, Any], model: ECGClassifier, load: Workload, steps: int
) -> dict[str, Any]:
    chosen: dict[str, str] = {}
    candidates: dict[str, Any] = {}
    for name in [name for name in KINDS if about["asked"][name] == "auto"]:
        if name == "compile":  # the last one: with the kernels chosen before
            KernelChoice(kernels=about["asked"] | chosen).apply(model)
            if steps < ENOUGH_STEPS or not load.backward:
                continue
        if found := measure_kernel(name, model, load):
            chosen[name], candidates[name] = found["chosen"], found["candidates"]
    if chosen.get("compile") == "compiled":
        eager, compiled = candidates["compile"].values()
        saved_s = model.architecture.encoder_layers * (eager["ms"] - compiled["ms"]) / 1000
        if seconds_won(steps, saved_s, compiled["first_call_s"]) <= 0:
            chosen["compile"] = "eager"
        torch._dynamo.reset()  # the run compiles for its own batches
    return about | {"chosen": chosen, "candidates": candidates}


def _asked(config: FinetuneConfig) -> dict[str, str]:
    """The kernels of the settings; `auto` where they leave the choice."""
    asked = {name: getattr(config.model, name, "auto") for name in KINDS}
    compiled = config.engine.compile
    return asked if compiled is None else asked | {"compile": KINDS["compile"][compiled]}


def _merged(config: FinetuneConfig, measured: dict[str, Any] | None, *lines: str) -> KernelChoice:
    """What the settings ask for; where they are auto, what was measured, or else the reference."""
    asked, chosen = _asked(config), {"compile": "eager"} | (measured or {}).get("chosen", {})
    kernels = {n: chosen.get(n, kind) if kind == "auto" else kind for n, kind in asked.items()}
    return KernelChoice(kernels=kernels, measured=measured, lines=lines)
