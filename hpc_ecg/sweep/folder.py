"""A sweep's folder on disk: which cells it should hold, and readers of its small files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_ecg.hashing import check_kinds, read_record
from hpc_ecg.safe_reading import parse_json, read_settings_file
from hpc_ecg.sweep.arms import arm_name, arms_of

ONE_RUN = "one run stands for all seeds, because nothing is trained"
LOG, ENDED_LOG = "log: ", "ended from outside, log: "
"""First words of error.txt, before the log's path."""
EVENT = {"event": str, "step?": int, "epoch?": int | float | None}
SWEEP: dict[str, Any] = {"strategies?": list | None, "seeds?": list | None, "grid?": dict | None}
SWEEP |= {"note?": str | None}
TRIAL = {"values": dict, "score": int | float | None}


def expected_cells(sweep_dir: Path) -> list[tuple[str, int]]:
    """Arm and seed of each cell: those of sweep.yaml first, then others that have a folder."""
    config, file = _read_sweep(sweep_dir), sweep_dir / "sweep.yaml"
    strategies, seeds = config.get("strategies") or [], config.get("seeds") or []
    if not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{file} is damaged: seeds cannot be {seeds}")
    arms = arms_of([check_name(file, name) for name in strategies], config.get("grid") or {})
    fixed = {arm.name for arm in arms if is_fixed_arm(sweep_dir / arm.name)}
    planned = [(arm.name, s) for arm in arms for s in (seeds[:1] if arm.name in fixed else seeds)]
    on_disk = [
        (folder.parent.name, int(folder.name.removeprefix("seed-")))
        for folder in sweep_dir.glob("*/seed-*")
        if folder.name.removeprefix("seed-").isdecimal()
    ]
    return planned + sorted(set(on_disk) - set(planned))


def is_fixed_arm(folder: Path) -> bool:
    """Whether one run stands for all seeds of an arm, because nothing is trained."""
    return bool(read_optional(folder / "arm.json").get("is_fixed"))


def check_name(file: Path, name: Any) -> str:
    """A name in a sweep's file. ValueError unless it is that of a folder below the sweep's."""
    parts = Path(name).parts if isinstance(name, str) and name.isprintable() else ()
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"{file} is damaged: {str(name)[:40]!r} is no name of a folder in it")
    return name


def read_note(sweep_dir: Path) -> str | None:
    """The sweep's setting `note`, for the top of the report."""
    return _read_sweep(sweep_dir).get("note")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl that count: `started` or `resumed` at a step drops later
    steps, which the run repeated, and an evaluation that was repeated counts once. A line that a
    crash left incomplete is skipped."""
    events: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            event = parse_json(line)
        except json.JSONDecodeError:
            continue
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        check_kinds(path, {"line": event}, {"line": EVENT})
        if event["event"] in ("started", "resumed"):
            events = [e for e in events if e.get("step", 0) <= event.get("step", 0)]
        elif event["event"] == "eval":
            step = event.get("step")
            events = [e for e in events if (e["event"], e.get("step")) != ("eval", step)]
        events.append(event)
    return events


def read_optional(path: Path, kinds: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of a JSON file, as `read_record`; {} if there is none."""
    return read_record(path, kinds) if path.exists() else {}


def read_tuning(sweep_dir: Path) -> dict[str, Any]:
    """What each strategy chose and tried, of tuning.json; {} if there is none."""
    path = sweep_dir / "tuning.json"
    entries = read_optional(path, {"*": {"chosen": dict, "trials": [TRIAL]}})
    for name in entries:
        for trial in entries[name]["trials"]:
            folder = check_name(path, f"{name}/{arm_name('', trial['values']).lstrip(',')}")
            finished = read_optional(sweep_dir / "tuning" / folder / "finished.json")
            if finished.get("best_score", trial["score"]) != trial["score"]:
                raise ValueError(f"{path} states another score of {folder} than its finished.json")
    return entries


def parse_error(text: str) -> tuple[str, str]:
    """The reason and the log's path, from the text of error.txt. An exception's first line is the
    reason: some libraries add lines of advice."""
    head, _, rest = text.partition("\n")
    _, traceback, end = (rest if LOG in head else text).rpartition("Traceback (most recent call")
    lines = [line.rstrip() for line in end.splitlines()[bool(traceback) :] if line.strip()]
    flush = [line for line in lines if not line.startswith(" ")]
    reason = flush[0] if traceback and flush else lines[-1].strip() if lines else "failed"
    return reason, head.partition(LOG)[2]


def has_killed_runs(sweep_dir: Path) -> bool:
    """Whether a run was ended from outside, so that another start would continue it."""
    return any(path.read_text().startswith(ENDED_LOG) for path in sweep_dir.rglob("error.txt"))


def _read_sweep(sweep_dir: Path) -> dict[str, Any]:
    path = sweep_dir / "sweep.yaml"
    config = read_settings_file(path) if path.exists() and path.stat().st_size else {}
    check_kinds(path, config, SWEEP)
    return config
