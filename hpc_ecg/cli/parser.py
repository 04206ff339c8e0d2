"""The parser class of all verbs."""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from hpc_ecg.config.suggestions import did_you_mean

EXAMPLES, CONTINUED = Path(__file__).with_name("examples.txt"), " \\\n      "


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as the verbs do; argparse would print the usage before it."""

    def format_help(self) -> str:
        """The help of argparse, and from examples.txt: a sentence ("= …") and examples."""
        self.description = self.description or " ".join(_lines_of(self.prog, "= "))
        return f"{super().format_help()}{examples_of(self.prog)}"

    def error(self, message: str) -> NoReturn:
        line = "".join(c if c.isprintable() else "?" for c in message)
        mark = "" if line.endswith("?") else ";"
        self.exit(2, f"{self.prog}: {line}{mark} see {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse does, but an unknown option is reported first, and where it belongs."""
        given = list(sys.argv[1:] if args is None else args)
        if self._subparsers is not None:
            given = list(takewhile(lambda word: word.startswith("-"), given))  # before the verb
        for word in takewhile(lambda word: word != "--", given):
            name = word.partition("=")[0]
            if self._is_unknown(name):
                hint = did_you_mean(f"--{name.lstrip('-')}", self._option_string_actions)
                if not hint and "=" in word and any(a.dest == "settings" for a in self._actions):
                    hint = f"; did you mean the setting {word.lstrip('-')}?"
                self.error(f"unknown option {name}{hint}")
        found, rest = super().parse_known_args(args, namespace)
        if any(a.dest == "settings" and a.nargs == "*" for a in self._actions):
            found.settings, rest = [*found.settings, *rest], []  # those that follow an option
        return found, rest

    def _is_unknown(self, name: str) -> bool:
        is_option = name.startswith("-") and name[1:2] not in "0123456789." and " " not in name
        known = self._option_string_actions
        return is_option and "-" in self.prefix_chars and not any(k.startswith(name) for k in known)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            text = f"invalid choice: {value!r} (choose from {', '.join(choices)})"
            raise argparse.ArgumentError(action, text + did_you_mean(value, choices))


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What `add_subparsers` returns; each verb adds its parser to it."""
SETTINGS_HELP = "YAML files and settings key=value, later over earlier; `hpc-ecg config` lists them"


def examples_of(prog: str) -> str:
    """The examples of `hpc-ecg VERB`, each wrapped as a shell takes it; '' if there are none."""
    if not (lines := _lines_of(prog)):
        return ""
    joined = [re.sub(r"(--\S+) (?!-)", "\\1\0", line) for line in lines]  # option and value
    wrapped = [textwrap.wrap(line, 84, break_on_hyphens=False) for line in joined]
    lines = [f"  {CONTINUED.join(words)}\n".replace("\0", " ") for words in wrapped]
    return "".join(["\nexamples:\n", *lines])


def _lines_of(prog: str, mark: str = "") -> list[str]:
    """The examples of a verb, or its lines with this mark, which is taken off."""
    parts = EXAMPLES.read_text(encoding="utf-8").split("# ")
    lines = [x for p in parts if p.split("\n", 1)[0] == prog for x in p.splitlines()[1:]]
    return [x.removeprefix(mark) for x in lines if x.startswith("= ") == bool(mark)]


def check_effects(options: argparse.Namespace, *needs: tuple[str, str, object]) -> None:
    """ValueError for an option that is given and has no effect: its name, what it is for, and
    whether that is given."""
    for name, other, is_given in needs:
        if getattr(options, name) not in (None, "", []) and not is_given:
            raise ValueError(f"--{name.replace('_', '-')} is for {other}; here it would do nothing")


def check_table(path: Path) -> None:
    """Report a table that is missing before pandas is imported."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table; expected a .csv, .tsv, .xlsx or .parquet file")
