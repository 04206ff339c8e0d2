"""The tests marked `gpu`: how each ended, and the last line of those that failed."""

from collections.abc import Mapping
from typing import Any

import pytest

from gpu.parts import ROOT, Clock, Emit


class Listener:
    """A plugin of pytest that sends on each outcome."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        is_over = report.when == "call" or report.outcome != "passed"
        if not is_over:
            return
        row: dict[str, Any] = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            row["reason"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.outcome == "failed":
            row["reason"] = str(report.longrepr).strip().splitlines()[-1][:300]
            row["last_lines"] = str(report.longrepr).strip().splitlines()[-12:]
        self._emit(report.nodeid, row)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            last = str(report.longrepr).strip().splitlines()[-1]
            self._emit(report.nodeid, {"outcome": "failed", "seconds": 0.0, "reason": last})


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    """ValueError if pytest itself fails; a test that fails is a row."""
    files = options.get("tests") or sorted(map(str, (ROOT / "tests").glob("test_gpu_*.py")))
    words = [*files, "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    code = pytest.main(words, plugins=[Listener(emit)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise ValueError(f"pytest ended with {code!r}")
