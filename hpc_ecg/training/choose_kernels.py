"""The kernels of a run: those of its settings and, for settings on auto, the fastest ones.

Rank 0 measures, and all ranks take its choice. It is kept in RUN/kernels.json, so that a run that
resumes goes on with the same bits, and in the folder of a sweep, so that runs with the same device
and sizes measure once. An explicit setting is never overruled.
"""

from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from hpc_ecg.atomic_io import write_json
from hpc_ecg.hashing import read_record, sha256_of_value
from hpc_ecg.model.measure_kernels import KINDS, KernelLoad, measure_kernel
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.settings import FinetuneConfig

ENOUGH_STEPS = 1000
"""Training steps from which on engine.kernels=auto measures on a GPU, and compiling is tried."""
KINDS_OF_BATCHES = 3
"""Compilations of a run: for whole batches, for the short one of an epoch, for validation."""


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
    """One of each of KINDS, or auto; the content of kernels.json, if any, and the file that it was
    read from; lines for the log."""

    kernels: dict[str, str]
    measured: dict[str, Any] | None = None
    lines: tuple[str, ...] = ()
    file: Path | None = None

    def apply(self, model: ECGClassifier) -> None:
        model.use_kernels(*(self.kernels[name] for name in KINDS if name != "compile"))


def seconds_won(steps: int, saved_s: float, compile_s: float) -> float:
    """Seconds that a run of so many more steps wins by torch.compile, which saves `saved_s` in each
    and takes `compile_s` for each kind of batch; negative if it loses."""
    return steps * saved_s - KINDS_OF_BATCHES * compile_s


def device_kind(device: torch.device) -> str:
    """The name of a GPU, or the vector instructions that torch uses on this processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def kept_kernels(
    config: FinetuneConfig, device: torch.device, has_mask: bool = False
) -> KernelChoice:
    """The kernels of the settings and, where these are auto, of kernels.json in run_dir if it is of
    this kind; its attention for padded records only if measured with them. ValueError: damaged."""
    path, kind = RunFolder(config.run_dir).kernels, device_kind(device)
    if config.engine.kernels == "reference" or not path.exists():
        return KernelChoice(kernels=kernels_of(config, {}))
    kept, line = _read(path), f"{path} is not for {kind}: it is of "
    if kept["device"] != kind:
        return KernelChoice(kernels=kernels_of(config, {}), lines=(line + kept["device"],))
    fits = not has_mask or kept["sizes"].get("has_mask") == "True"
    chosen = {name: kind for name, kind in kept["chosen"].items() if fits or name != "attention"}
    now, line = str(torch.__version__), f"kernels as in {path}: {chosen}"
    if (torch_then := kept.get("torch", now)) != now:
        line += f", measured with torch {torch_then}; numbers of torch {now} may differ"
    return KernelChoice(kernels=kernels_of(config, chosen), measured=kept, lines=(line,), file=path)


def choose_kernels(
    config: FinetuneConfig,
    model: ECGClassifier,
    load: KernelLoad,
    steps: int,
    sweep_dir: Path | None,
) -> KernelChoice:
    """The kernels of a run of so many training steps, on rank 0, before its folder is claimed."""
    kept, asked = kept_kernels(config, load.device, load.has_mask), kernels_of(config, {})
    began_without = RunFolder(config.run_dir).config.exists() and not kept.lines
    is_worth_it = load.device.type == "cuda" and steps >= ENOUGH_STEPS and not began_without
    measures = {"auto": is_worth_it, "measure": True, "reference": False}[config.engine.kernels]
    if kept.measured or not measures or "auto" not in asked.values():
        return kept
    sizes = {name: str(value) for name, value in asdict(load).items() if name != "device"}
    about = {"device": device_kind(load.device), "torch": torch.__version__, "asked": asked}
    about |= {"sizes": asdict(model.architecture) | sizes | {"steps": steps}}
    path = sweep_dir and sweep_dir / f"kernels-{sha256_of_value(about)[:16]}.json"
    with FileLock(f"{path}.lock") if path else nullcontext():  # other runs of the sweep wait
        file = path if path and path.exists() else None
        found = _read(file) if file else _measure(about, model, load, steps)
        if path and not file:
            write_json(path, found)
    kernels, lines = kernels_of(config, found["chosen"]), (*kept.lines, *describe(found))
    return KernelChoice(kernels=kernels, measured=found, lines=lines, file=file)


def describe(measured: dict[str, Any]) -> list[str]:
    """A line for each kernel that was measured: what was taken, and how all candidates did."""
    text = "{ms:.3g} ms ({ratio:.2f} of the reference's, error {error:.1g})"
    return [
        f"{name} on {measured['device']}: {measured['chosen'][name]} is taken; "
        + "; ".join(f"{k} {f.get('out') or text.format(**f)}" for k, f in candidates.items())
        for name, candidates in measured["candidates"].items()
    ]


def kernels_of(config: FinetuneConfig, chosen: dict[str, str]) -> dict[str, str]:
    """The kernels of the settings, and for those on auto the chosen ones."""
    compiles = {None: "auto", False: "eager", True: "compiled"}[config.engine.compile]
    asked = {name: getattr(config.model, name, compiles) for name in KINDS}
    return {n: chosen.get(n, kind) if kind == "auto" else kind for n, kind in asked.items()}


def _read(path: Path) -> dict[str, Any]:
    found = read_record(path, {"device": str, "chosen": dict, "candidates": dict})
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        chosen, sizes = found["chosen"].items(), found.setdefault("sizes", {})
        if isinstance(sizes, dict) and all(kind in KINDS[n] for n, kind in chosen):
            describe(found)
            return found
    raise ValueError(f"{path} is damaged: it does not say what was measured; delete it")


def _measure(
    about: dict[str, Any], model: ECGClassifier, load: KernelLoad, steps: int
) -> dict[str, Any]:
    chosen, candidates = dict[str, str](), dict[str, Any]()
    for name in [name for name in KINDS if about["asked"][name] == "auto"]:
        if name == "compile":  # the last one: with the kernels chosen before
            KernelChoice(kernels=about["asked"] | chosen).apply(model)
            if steps < ENOUGH_STEPS or not load.backward:
                continue
        if found := measure_kernel(name, model, load):
            chosen[name], candidates[name] = found["chosen"], found["candidates"]
    if chosen.get("compile") == "compiled":
        eager, compiled = candidates["compile"].values()
        saved_s = model.architecture.encoder_layers * (eager.get("ms", 0) - compiled["ms"]) / 1000
        if seconds_won(steps, saved_s, compiled["first_call_s"]) <= 0:
            chosen["compile"] = "eager"
        torch._dynamo.reset()  # the run compiles for its own batches
    return about | {"chosen": chosen, "candidates": candidates}
