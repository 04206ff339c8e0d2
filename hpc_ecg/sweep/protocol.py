"""A sweep's protocol: what will be compared and how, fixed before the first test prediction exists.

SWEEP/protocol.json holds every version with its time and SHA-256 (which covers the version before
it), when the test was opened, and digests of the test predictions. Its limit: whoever can write a
local file can forge it with its digests, so deposit the SHA-256 elsewhere on time, in a registry or
by mail.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hpc_ecg.atomic_io import write_json
from hpc_ecg.config.dotted_keys import flatten
from hpc_ecg.config.load import to_yaml
from hpc_ecg.hashing import SHA256, check_kinds, read_record, sha256_of_value
from hpc_ecg.log import logger
from hpc_ecg.reporting.numbers import count, join_names
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.sweep.left_out_sites import describe_design
from hpc_ecg.sweep.submissions import submission_lock
from hpc_ecg.training.environment import utc_now
from hpc_ecg.training.run_folder import fixed_settings
from hpc_ecg.version import __version__

if TYPE_CHECKING:
    from hpc_ecg.sweep.grid import Sweep
    from hpc_ecg.sweep.task import Task

FILE, MARGIN = "protocol.json", 0.02  # the usual one
CONTENT = {"strategies": {"*": {SHA256: str}}, "seeds": list, "margin": int | float}
VERSION = {"version": int, "time": str, "before": str, "content": CONTENT, SHA256: str}
KINDS = {"versions": [VERSION], "opened": dict | None, "predictions": dict}
OPENED = {"time": str, "version": int, "runs": list, "early": list}
FAMILIES = (
    "all pairs of strategies on the metric; strategies against baselines; gains over age and sex; "
    "interactions of subgroups: each adjusted for all of its tests"
)
TO_OPEN = "start the sweep again when no run is left to go on, or with --open-test"
NONE = "There was no protocol: nothing shows that this comparison was planned before its test."


def read_protocol(sweep_dir: Path) -> dict[str, Any] | None:
    """The content of protocol.json; None for a sweep without one. ValueError if it is damaged."""
    path = sweep_dir / FILE
    if not path.exists():
        return None
    protocol = read_record(path, KINDS)
    versions, opened = protocol["versions"], protocol["opened"]
    if opened is not None:
        check_kinds(path, opened, OPENED)
    if not versions or (opened and not 0 < opened["version"] <= len(versions)):
        raise ValueError(f"{path} is damaged: it lacks a version; restore it")
    return protocol


def read_margin(sweep_dir: Path, margin: float | None) -> float:
    """This margin, else the protocol's or the usual one. ValueError: not between 0 and 1."""
    if margin is None:
        protocol = read_protocol(sweep_dir)
        margin = locked_content(protocol)["margin"] if protocol else MARGIN
    if not 0 < margin < 1:
        raise ValueError(f"the margin must be between 0 and 1, got {margin}; {MARGIN} is usual")
    return margin


def lock_protocol(sweep: "Sweep") -> None:
    """Write the protocol, or a new version of it if something changed since the last one."""
    content = json.loads(json.dumps(_content(sweep)))
    with _edited(sweep) as protocol:
        versions = protocol["versions"]
        if not versions or versions[-1]["content"] != content:
            before = versions[-1][SHA256] if versions else ""
            entry = {"version": len(versions) + 1, "time": utc_now(), "before": before}
            entry |= {"package": __version__, "content": content}
            versions.append(entry | {SHA256: sha256_of_value(entry)})
            text = "protocol version %d: SHA-256 %s (deposit it elsewhere to prove its time)"
            logger.info(text, len(versions), versions[-1][SHA256])


def open_test(sweep: "Sweep", tasks: Sequence["Task"], open_now: bool) -> list[str]:
    """Open the test, unless runs are left that another start would continue; returns the runs whose
    test split may be predicted."""
    finished = [task.name for task in tasks if task.is_done()]
    left = [task for task in tasks if not (task.is_done() or task.has_failed())]
    if not finished or (left and not open_now):
        logger.info("the test is closed, %s to go on: %s", count(len(left), "run"), TO_OPEN)
        return []
    with _edited(sweep) as protocol:
        if protocol["opened"] is None:
            opened = {"time": utc_now(), "version": len(protocol["versions"]), "runs": finished}
            early = [*test_predictions(Path(sweep.config.sweep_dir))]
            protocol["opened"] = opened | {"package": __version__, "early": early}
            logger.info("the test is opened for %s", count(len(finished), "run"))
    return finished


def note_predictions(sweep: "Sweep") -> None:
    """Note the digest of each test prediction that has none yet."""
    with _edited(sweep) as protocol:
        if protocol["opened"]:
            found, noted = test_predictions(Path(sweep.config.sweep_dir)), protocol["predictions"]
            noted |= {name: sha256_of(found[name]) for name in sorted(found.keys() - noted.keys())}


@contextmanager
def _edited(sweep: "Sweep") -> Iterator[dict[str, Any]]:
    """The protocol, for one start of the sweep at a time: on Slurm several may be at work, on this
    machine the folder is locked. What is changed is written."""
    folder = Path(sweep.config.sweep_dir)
    with nullcontext() if sweep.config.slurm is None else submission_lock(folder):
        protocol = read_protocol(folder) or {"versions": [], "opened": None, "predictions": {}}
        before = sha256_of_value(protocol)
        yield protocol
        if protocol["versions"] and (digest := sha256_of_value(protocol)) != before:
            write_json(folder / FILE, protocol | {SHA256: digest})


def test_predictions(sweep_dir: Path) -> dict[str, Path]:
    """Files of test predictions, by run or soup."""
    files = [*sweep_dir.glob("*/seed-*/predictions/test.parquet")]
    files += sweep_dir.glob("*/soup/predictions.parquet")
    return {"/".join(path.relative_to(sweep_dir).parts[:2]): path for path in sorted(files)}


def replaced_predictions(sweep_dir: Path, protocol: Mapping[str, Any]) -> list[str]:
    """A line for each test prediction that is no longer the one that was noted."""
    found = test_predictions(sweep_dir)
    return [
        f"test predictions of {name} were {'replaced' if name in found else 'removed'}"
        for name, digest in protocol["predictions"].items()
        if name not in found or sha256_of(found[name]) != digest
    ]


def locked_content(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What the protocol said when the test was opened; before that, what it says now."""
    opened = protocol["opened"]
    return protocol["versions"][opened["version"] - 1 if opened else -1]["content"]


def protocol_note(
    sweep_dir: Path, margin: float, metric: str, runs: Sequence[str]
) -> dict[str, Any]:
    """What the report of these runs says at its top: the `text`, and whether it `is_warning`."""
    protocol = read_protocol(sweep_dir)
    if protocol is None:
        return {"text": NONE, "is_warning": True}
    opened, plan = protocol["opened"], locked_content(protocol)
    early = [*map(str, opened["early"] if opened else test_predictions(sweep_dir))]
    planned = {f"{name}/seed-{seed}" for name in plan["strategies"] for seed in plan["seeds"]}
    changes = changes_after_opening(protocol, margin=margin, metric=metric)
    changes += replaced_predictions(sweep_dir, protocol)
    changes = changes or [f"{run} is not in it" for run in runs if run not in planned]
    late = [run for run in runs if opened and run not in opened["runs"]]
    head = "Exploratory: test predictions existed before the test was opened"
    texts = [f"{head}: {', '.join(early[:3])}{' and others' * bool(early[3:])}."] * bool(early)
    if opened and changes:
        head = f"Exploratory: changed after the test was opened on {opened['time']}"
        more = f" and {len(changes) - 8} more" if changes[8:] else ""
        texts.insert(0, f"{head}: {'; '.join(changes[:8])}{more}.")
    elif opened and not early:
        held = protocol["versions"][opened["version"] - 1]
        head = f"Protocol version {held['version']} of {held['time']} was fixed before the test was"
        digest = f"SHA-256 {held[SHA256]}; a local file alone cannot prove its time"
        texts.append(f"{head} opened on {opened['time']} ({digest}).")
        if late:
            texts.append(f"Planned, but trained after the test was opened: {join_names(late)}.")
    text = " ".join(texts) or f"The test is closed: {TO_OPEN}."
    return {"text": text, "is_warning": not opened or bool(early or changes or late)}


def changes_after_opening(protocol: Mapping[str, Any], **used: Any) -> list[str]:
    """What the newest version says, or what a report `used` (by key of the protocol), where the
    version that held when the test was opened says something else."""
    both = locked_content(protocol), protocol["versions"][-1]["content"] | used
    arms, now = (content["strategies"] for content in both)
    changes = [f"strategy {name} added" for name in now if name not in arms]
    changes += [f"strategy {name} left out" for name in arms if name not in now]
    kept = arms.keys() & now.keys()
    old, new = (flatten(c | {"strategies": {n: c["strategies"][n] for n in kept}}) for c in both)
    return changes + [
        f"{key}: {new.get(key)} (locked: {old.get(key)})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.endswith(f".{SHA256}")
    ]


def settings_of_arm(settings: dict[str, Any]) -> dict[str, Any]:
    """What all runs of an arm share and none can resume with another value of."""
    return {key: value for key, value in fixed_settings(settings).items() if key != "seed"}


def _content(sweep: "Sweep") -> dict[str, Any]:
    from hpc_ecg.data.dataset import open_shards  # late, as `sweep status` need not wait for them
    from hpc_ecg.evaluation.subgroups import FIRST_GROUPS, MAX_LEVELS
    from hpc_ecg.evaluation.thresholds import TARGETS

    config, runs = sweep.config, {cell.arm.name: cell.run for cell in sweep.cells}
    data = {repr(run.data): run.data for run in runs.values()}
    index = {key: open_shards(each)[0].index_sha256 for key, each in data.items()}
    weights = {path: sha256_of(path) for path in {r.init.path for r in runs.values()} if path}
    strategies = {}
    for name, run in runs.items():
        settings = settings_of_arm(flatten(yaml.safe_load(to_yaml(run))))
        strategies[name] = {
            "settings": settings,
            SHA256: sha256_of_value(settings),
            "data_index_sha256": index[repr(run.data)],
            "checkpoint_sha256": weights[run.init.path] if run.init.path else "random weights",
        }
    metric = "r2" if sweep.cells[0].run.data.task == "regression" else "auroc"
    return {
        "strategies": strategies,
        "seeds": config.seeds,
        "tune": config.tune,
        "soup": config.soup,
        "metric": metric,
        "margin": config.margin,
        **describe_design(config),
        "families": FAMILIES,
        "subgroups": f"{', '.join(FIRST_GROUPS)}; columns of text with 2 to {MAX_LEVELS} levels",
        "thresholds": f"on validation: Youden's J, {', '.join(f'{k} {v}' for k, v in TARGETS)}",
    }
