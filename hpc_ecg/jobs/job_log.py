"""Why a job ended without a result, from the end of its log."""

import os
import re
from pathlib import Path

from hpc_ecg.distributed.watchdog import SUSPECT

LAST_BYTES = 1 << 16
OF_A_RUN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d |submitit INFO|\S+: process \d+, CUDA")
"""Begins a line that a working program wrote: what it said before is not why it ended."""
KILLED = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (?!Exited|Terminated)(.+)")
"""The first process that was killed, and by what."""
SUSPECTS = re.compile(rf".*{SUSPECT}([\w.-]+); keep it out with --exclude=\1$")
"""One node whose arithmetic did not repeat; a name in the log may look like its beginning."""
EFFECT = re.compile(
    r"srun: (error: \S+: tasks? |launch/slurm|Force|Terminating|Job step)|submitit \w+ \("
    r"|slurmstepd\S*: error: \*\*\* STEP .* CANCELLED AT \S+ \*\*\*|Traceback|Current thread"
)
"""Begins a line that follows from the cause."""
OF_SLURM = re.compile(r"(slurmstepd|srun)\S*: (error|fatal): |\S*(slurm_script|bash): ")
CAUSE = re.compile(r"error|exception|fault|fatal|kill|denied|no such|not found|cannot|fail", re.I)
OFTEN_MEMORY = "often out of memory"


def last_words(log: Path) -> str:
    """The line that says why the job ended, on one line; "" if none does.

    Slurm's own lines count more than a killed process, that more than the program's last lines.
    """
    lines: list[str] = []
    for line in reversed(_end_of(log)):
        if OF_A_RUN.match(line):
            break
        lines.append(line)
    causes = [line for line in lines if not EFFECT.match(line)]
    found = [line for line in causes if OF_SLURM.match(line)]
    for node, how in (match.groups() for match in map(KILLED.match, reversed(lines)) if match):
        memory = f", {OFTEN_MEMORY}" * (how == "Killed")
        found.append(f"a process on {node} ended: {how}{memory}")
    found += [line for line in causes if CAUSE.search(line)] + causes
    return found[0] if found else ""


def killed_on(log: Path) -> str:
    """The node whose arithmetic did not repeat, or on which a process was killed first; "" if the
    log names none."""
    lines = _end_of(log)
    matches = [*map(SUSPECTS.match, reversed(lines)), *map(KILLED.match, lines)]
    return next((match[1] for match in matches if match), "")


def _end_of(log: Path) -> list[str]:
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - LAST_BYTES, 0))
        text = file.read().decode(errors="replace")
    # a traceback's code is indented
    return [line.strip() for line in text.splitlines() if line.strip() and line[:2] != "  "]
