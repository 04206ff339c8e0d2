"""From a full-size checkpoint to a model: this package compared with plain torch.

Each contender runs in a new process, contenders take turns, the file is in the page cache, and the
median counts. Time starts after the imports. Peak memory is the largest resident size of the
process less that after the imports, as a multiple of the file's size (Linux: VmHWM, reset through
/proc/self/clear_refs; mapped pages of the file count).

  load         load_model(file), compared with building the module, torch.load(weights_only=True)
               and load_state_dict (plain); the same with mmap=True (mmap); and the latter without
               the time to build the module (bare: only torch.load and load_state_dict, while ours
               also builds the module and verifies every checksum and value)
  first_step   initialize and one AdamW step on one ECG, compared with the plain way
  inspect      `hpc-ecg weights inspect file` as a whole process, including the start of Python
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = {
    "load_ratio": 1.2,
    "load_ratio_mmap": 1.2,
    "load_ratio_bare": 1.2,
    "load_peak_ratio": 1.3,
    "first_step_ratio": 1.2,
    "inspect_seconds": 2.0,
    "inspect_peak_ratio": 1.3,
}
SAMPLES = 2500


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file", type=Path, help="checkpoint with one label or none (default: generated)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="repeats of each contender (default 5)"
    )


def measure(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = options.file or Path(folder) / "full_size.pt"
        if options.file is None:
            _in_new_process("make", file)
        return {
            "file_megabytes": file.stat().st_size / 1e6,
            **_against_plain("load", ["plain", "mmap", "bare"], file, options.repeats),
            **_against_plain("first_step", ["plain"], file, options.repeats),
            **_inspect(file, options.repeats),
        }


def _against_plain(task: str, plain_ways: list[str], file: Path, repeats: int) -> dict[str, float]:
    """Median seconds and peaks of ours and each plain way, and median ratios of paired times."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    for _ in range(repeats):
        for way in ["ours", *plain_ways]:
            result = _in_new_process(f"{task}_{way}", file)
            seconds.setdefault(way, []).append(result["seconds"])
            peaks.setdefault(way, []).append(result["peak"] / file.stat().st_size)
    numbers = {}
    for way in plain_ways:
        pairs = zip(seconds["ours"], seconds[way], strict=True)
        suffix = "" if way == "plain" else f"_{way}"
        numbers[f"{task}_ratio{suffix}"] = statistics.median(a / b for a, b in pairs)
    numbers[f"{task}_peak_ratio"] = statistics.median(peaks["ours"])
    for way in ["ours", *plain_ways]:
        numbers[f"{task}_seconds_{way}"] = statistics.median(seconds[way])
        if way != "ours":
            numbers[f"{task}_peak_ratio_{way}"] = statistics.median(peaks[way])
    return numbers


def _inspect(file: Path, repeats: int) -> dict[str, float]:
    command = [sys.executable, "-m", "hpc_ecg", "weights", "inspect", str(file)]
    seconds, peaks = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise ValueError(f"weights inspect ended with status {process.returncode}")
        peaks.append(usage.ru_maxrss * 1024 / file.stat().st_size)
    return {
        "inspect_seconds": statistics.median(seconds),
        "inspect_peak_ratio": statistics.median(peaks),
    }


def _in_new_process(contender: str, file: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, contender, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{contender} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


# What each process does: imports first, then the clock starts.


def contender(name: str, file: Path) -> dict[str, float]:
    """Run one contender; returns its seconds and peak memory in bytes."""
    import torch
    from original_files import export_original

    from hpc_ecg.model.architecture import Architecture, architecture_from_settings
    from hpc_ecg.model.settings import ModelConfig
    from hpc_ecg.model.transformer import ECGClassifier, build_model
    from hpc_ecg.weights.initialize import initialize, load_model
    from hpc_ecg.weights.mapping import kind_of_keys, map_names
    from hpc_ecg.weights.settings import InitConfig

    def build() -> ECGClassifier:
        return ECGClassifier(Architecture(), 1, ModelConfig())

    def load_plain(model: ECGClassifier, *, mmap: bool = False) -> ECGClassifier:
        content = torch.load(file, weights_only=True, mmap=mmap)
        settings = content["cfg"]["model"]
        assert model.architecture == architecture_from_settings(settings, "cfg.model."), "sizes"
        tensors = content["model"]
        names = map_names(tensors, kind_of_keys(tensors))
        model.load_state_dict({ours: tensors[key] for ours, key in names.items()}, strict=False)
        return model

    def step(model: ECGClassifier) -> None:
        model.freeze("stem")
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        ecg_BCS = torch.randn(1, 12, SAMPLES, generator=torch.Generator().manual_seed(0))
        model(ecg_BCS).sum().backward()
        optimizer.step()

    def start_ours() -> None:
        init = InitConfig(checkpoint=str(file))
        step(initialize(init, ModelConfig(), 1, ["label"], "auto", 0).model)

    def make() -> None:
        model = build_model(Architecture(), 1, ModelConfig())
        export_original(file, model)

    ready = build() if name == "load_bare" else None
    work: dict[str, Callable[[], Any]] = {
        "make": make,
        "load_ours": lambda: load_model(file, num_labels=1),
        "load_plain": lambda: load_plain(build()),
        "load_mmap": lambda: load_plain(build(), mmap=True),
        "load_bare": lambda: load_plain(ready or build()),
        "first_step_ours": start_ours,
        "first_step_plain": lambda: step(load_plain(build())),
    }
    before = _resident("VmRSS", reset=True)
    start = time.perf_counter()
    kept = work[name]()
    seconds = time.perf_counter() - start
    del kept
    return {"seconds": seconds, "peak": _resident("VmHWM") - before}


def _resident(what: str, *, reset: bool = False) -> int:
    """Resident bytes of this process: current (VmRSS) or peak (VmHWM)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # tools
    print(json.dumps(contender(sys.argv[1], Path(sys.argv[2]))))
