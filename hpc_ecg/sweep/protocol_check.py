"""`hpc-ecg protocol check`: verify a sweep's protocol against what lies in its folder.

Times of files can change when they are copied; the protocol's limit is stated in protocol.py.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc_ecg.hashing import SHA256, check_record, sha256_of_value
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.sweep.protocol import (
    FILE,
    changes_after_opening,
    read_protocol,
    settings_of_arm,
    test_predictions,
)
from hpc_ecg.training.run_folder import RunFolder

SKEW_S = 5.0
"""Clocks of nodes and file servers may differ by this much."""
Protocol = Mapping[str, Any]


def check_protocol(sweep_dir: Path) -> tuple[bool, list[str]]:
    """Whether all checks passed, and a line for each. ValueError: no protocol, or a damaged one."""
    protocol = read_protocol(sweep_dir)
    if protocol is None:
        raise ValueError(f"{sweep_dir} has no {FILE}: it is no sweep, or of an older version")
    opened = protocol["opened"]
    lines = [f"version {v['version']}, {v['time']}: {v[SHA256]}" for v in protocol["versions"]]
    lines.append(f"test opened on {opened['time']}" if opened else "test closed")
    checks = {
        "versions": [*_versions(protocol)],
        "order": [*_order(sweep_dir, protocol)],
        "test predictions": [*_predictions(sweep_dir, protocol)],
        "settings of runs": [*_runs(sweep_dir, protocol)],
        "unchanged since the test was opened": changes_after_opening(protocol),
    }
    lines += [
        f"{k}: {'FAILED: ' + '; '.join(found) if found else 'ok'}" for k, found in checks.items()
    ]
    return not any(checks.values()), lines


def _versions(protocol: Protocol) -> Iterator[str]:
    before, at = "", 0.0
    for entry in protocol["versions"]:
        stated = {key: value for key, value in entry.items() if key != SHA256}
        if sha256_of_value(stated) != entry[SHA256] or entry["before"] != before:
            yield f"version {entry['version']} is not what its SHA-256 states"
        if _time(entry) < at:
            yield f"version {entry['version']} is older than the one before it"
        before, at = entry[SHA256], _time(entry)


def _order(sweep_dir: Path, protocol: Protocol) -> Iterator[str]:
    """First the version that held, then the opening, then every test prediction."""
    opened, found = protocol["opened"], test_predictions(sweep_dir)
    early = set(opened["early"] if opened else found)
    if opened:
        early |= {k for k, p in found.items() if p.stat().st_mtime < _time(opened) - SKEW_S}
        if _time(protocol["versions"][opened["version"] - 1]) > _time(opened):
            yield f"version {opened['version']} is younger than the opening of the test"
    yield from (f"{name} was predicted before the test was opened" for name in sorted(early))


def _predictions(sweep_dir: Path, protocol: Protocol) -> Iterator[str]:
    found = test_predictions(sweep_dir)
    for name, digest in protocol["predictions"].items():
        if name not in found or sha256_of(found[name]) != digest:
            yield f"those of {name} were {'replaced' if name in found else 'removed'}"
    for name in found:
        try:
            check_record(sweep_dir / name / "evaluation.json")
        except (ValueError, OSError) as error:
            yield str(error)


def _runs(sweep_dir: Path, protocol: Protocol) -> Iterator[str]:
    for name, arm in protocol["versions"][-1]["content"]["strategies"].items():
        for path in sorted(sweep_dir.glob(f"{name}/seed-*/finished.json")):
            settings = settings_of_arm(RunFolder(path.parent).read_settings())
            if sha256_of_value(settings) != arm[SHA256]:
                yield f"{name}/{path.parent.name} has other settings than the protocol"


def _time(noted: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(noted["time"]).timestamp()
    except ValueError:
        raise ValueError(f"{FILE} is damaged: {noted['time'][:40]!r} is no time") from None
