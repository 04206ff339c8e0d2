"""The tests marked `gpu`: how each ended, and the last lines of those that failed."""

from collections.abc import Mapping
from typing import Any

import pytest

from gpu.parts import ROOT, Clock, Emit


class Listener:
    """A plugin of pytest that sends on each outcome."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._send(report, round(report.duration, 2))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._send(report, 0.0)

    def _send(self, report: pytest.TestReport | pytest.CollectReport, seconds: float) -> None:
        row: dict[str, Any] = {"outcome": report.outcome, "seconds": seconds}
        if report.outcome != "passed":
            skipped = isinstance(report.longrepr, tuple) and report.longrepr[2]
            expected = getattr(report, "wasxfail", "")
            lines = str(expected or skipped or report.longrepr).strip().splitlines()
            row |= {"reason": lines[-1].removeprefix("Skipped: "), "last_lines": lines[-12:]}
        self._emit(report.nodeid, row)


def measure(emit: Emit, clock: Clock, options: Mapping[str, Any]) -> None:
    """ValueError if pytest itself fails, or finds no test; a test that fails is a row."""
    files = sorted(map(str, (ROOT / "tests").glob("test_gpu_*.py")))
    words = [*files, "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    code = pytest.main(words, plugins=[Listener(emit)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise ValueError(f"pytest ended with {code!r}")
