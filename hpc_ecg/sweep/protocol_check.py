"""`hpc-ecg protocol check`: verify a sweep's protocol against what lies in its folder.

Times of files can change when they are copied; the protocol's limit is stated in protocol.py.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc_ecg.hashing import SHA256, check_record, sha256_of_value
from hpc_ecg.sweep import protocol as protocols
from hpc_ecg.training.run_folder import RunFolder

SKEW_S = 5.0
"""Clocks of nodes and file servers may differ by this much."""


def check_protocol(sweep_dir: Path) -> tuple[bool, list[str]]:
    """Whether all checks passed, and a line for each. ValueError: no protocol, or a damaged one."""
    protocol = protocols.read_protocol(sweep_dir)
    if protocol is None:
        raise ValueError(f"{sweep_dir} has no {protocols.FILE}: no sweep, or of an older version")
    opened = protocol["opened"]
    lines = [f"version {v['version']}, {v['time']}: {v[SHA256]}" for v in protocol["versions"]]
    lines.append(f"test opened on {opened['time']}" if opened else "test closed")
    checks = {
        "order": [*_order(sweep_dir, protocol)],
        "digests": [*_digests(sweep_dir, protocol)],
        "settings of runs": [*_runs(sweep_dir, protocol)],
        "unchanged since the test was opened": protocols.changes_after_opening(protocol),
    }
    lines += [f"{k}: {'FAILED: ' + '; '.join(v) if v else 'ok'}" for k, v in checks.items()]
    return not any(checks.values()), lines


def _order(sweep_dir: Path, protocol: dict[str, Any]) -> Iterator[str]:
    """Versions up to the one that held, then the opening, then every test prediction."""
    opened, found = protocol["opened"], protocols.test_predictions(sweep_dir)
    at = opened["version"] if opened else len(protocol["versions"])
    noted = [*protocol["versions"][:at], *[opened] * bool(opened), *protocol["versions"][at:]]
    try:
        times = [datetime.fromisoformat(entry["time"]).timestamp() for entry in noted]
    except ValueError as error:
        raise ValueError(f"{sweep_dir / protocols.FILE} is damaged: {error}") from None
    if times != sorted(times):
        yield "the versions and the opening of the test have times in another order"
    early = {*map(str, opened["early"] if opened else found)}
    if opened:
        early |= {k for k, p in found.items() if p.stat().st_mtime < times[at] - SKEW_S}
    yield from (f"{name} was predicted before the test was opened" for name in sorted(early))


def _digests(sweep_dir: Path, protocol: dict[str, Any]) -> Iterator[str]:
    before = ""
    for entry in protocol["versions"]:
        stated = {key: value for key, value in entry.items() if key != SHA256}
        if sha256_of_value(stated) != entry[SHA256] or entry["before"] != before:
            yield f"version {entry['version']} is not what its SHA-256 states"
        before = entry[SHA256]
    yield from protocols.replaced_predictions(sweep_dir, protocol)
    for name in protocols.test_predictions(sweep_dir):
        try:
            check_record(sweep_dir / name / "evaluation.json")
        except (ValueError, OSError) as error:
            yield str(error)


def _runs(sweep_dir: Path, protocol: dict[str, Any]) -> Iterator[str]:
    strategies = protocol["versions"][-1]["content"]["strategies"]
    for path in sorted(sweep_dir.glob("*/seed-*/finished.json")):
        settings = protocols.settings_of_arm(RunFolder(path.parent).read_settings())
        arm = strategies.get(path.parts[-3], {})
        if arm and sha256_of_value(settings) != arm.get(SHA256):
            yield f"{'/'.join(path.parts[-3:-1])} has other settings than the protocol"
