"""Write the pages of the reference that follow from the code: settings, verbs, exit codes.

`docs/conf.py` calls this, so that the pages cannot differ from the version that they describe.
"""

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from hpc_ecg.cli.command import build_parser, main
from hpc_ecg.config.describe import describe_settings
from hpc_ecg.sweep.settings import SweepConfig
from hpc_ecg.training.settings import FinetuneConfig

OF_SWEEP = ("status", "cancel", "retry")
"""Verbs that `hpc-ecg sweep` reads by itself."""


def write(folder: Path) -> None:
    """Write settings.md and verbs.md; files that have not changed keep their time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("settings.md", _settings()), ("verbs.md", _verbs())):
        text, path = "\n".join(lines) + "\n", folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _settings() -> Iterator[str]:
    yield from (
        "# Settings",
        "",
        "Every setting of a run and of a sweep. On the command line: `section.key=value`; in YAML,",
        "nested. `hpc-ecg config` prints the same.",
    )
    yield from (
        "",
        "(settings-of-a-run)=",
        "## A run",
        "",
        "`hpc-ecg finetune`, `evaluate` and `doctor` take these.",
    )
    yield from _table(FinetuneConfig)
    yield from (
        "",
        "## A sweep",
        "",
        "`hpc-ecg sweep` takes these, and every setting above as `run.<key>`.",
    )
    yield from _table(SweepConfig)


def _table(schema: type) -> Iterator[str]:
    section = None
    for key, kind, default, text in describe_settings(schema):
        prefix = key.rpartition(".")[0]
        if prefix != section:
            section = prefix
            yield from ("", f"### {prefix or 'At the top'}", "")
        yield from (
            f"`{key}`",
            f": {text or '(no description)'}",
            "",
            f"  {kind}; default: `{default}`",
            "",
        )


def _verbs() -> Iterator[str]:
    yield from (
        "# Verbs",
        "",
        "What `hpc-ecg VERB --help` prints. Exit codes: [](../exit-codes.md).",
    )
    for name in (*_names(build_parser(), ""), *(f"sweep {verb}" for verb in OF_SWEEP)):
        yield from ("", f"## hpc-ecg {name}", "", "```text", _help(name), "```")


def _names(parser: argparse.ArgumentParser, before: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield f"{before}{name}"
                yield from _names(child, f"{before}{name} ")


def _help(verb: str) -> str:
    printed = io.StringIO()
    os.environ["COLUMNS"] = "90"
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    return printed.getvalue().rstrip()
