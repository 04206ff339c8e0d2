"""`hpc-ecg completion SHELL`: a script that completes verbs, options and settings.

It holds a table, made from the parsers and the settings, and a program in awk that looks up the
words typed so far, so that no Python starts at the Tab key. A row is `context|word`. A context is a
verb, `VERB=--option`, the settings (`@finetune`, `@sweep`), or one of them with a key, for its
values (`@sweepKEY=`, for a list `@sweepKEY=[`); the word `@…` stands for all words of that context.
"""

import argparse
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from hpc_ecg.cli.parser import Verbs

SHELLS = ("bash", "zsh", "fish")
HOW = "In ~/.bashrc or ~/.zshrc: source <(hpc-ecg completion bash), or zsh; in fish: hpc-ecg "
HOW += "completion fish | source."


def add_completion(verbs: Verbs) -> None:
    text = "print a script that completes words at the Tab key"
    completion = verbs.add_parser("completion", help=text, epilog=HOW)
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    completion.set_defaults(verb=partial(_completion, verbs))


def _completion(verbs: Verbs, options: argparse.Namespace) -> int:
    from hpc_ecg.log import say

    text = Path(__file__).with_name("completion.txt").read_text(encoding="utf-8")
    part = dict(block.split("\n", 1) for block in text.split("### ")[1:])
    is_fish = options.shell == "fish"
    rows = ["|--version", "|--help", *_below(verbs.choices), *_settings()]
    for name, value in (("table", "\n".join(rows)), ("awk", part["awk"])):
        say(f"set -g _hpc_ecg_{name} '{value}'" if is_fish else f"_hpc_ecg_{name}='{value}'")
    say(part["sh"] * (not is_fish) + part[options.shell])
    return 0


def _words_of(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    """The rows of a parser and of the verbs below it. `parsers`: those that a verb makes late."""
    below = {n: make() for n, make in (parser.get_default("parsers") or {}).items()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below |= action.choices
        elif action.option_strings:
            name = action.option_strings[-1]
            yield f"{path}|{name}"
            if action.nargs != 0:
                yield from (f"{path}={name}|{choice}" for choice in action.choices or [""])
        elif action.dest == "settings":
            yield f"{path}|@{'sweep' if path == 'sweep' else 'finetune'}"
        else:
            yield from (f"{path}|{choice}" for choice in action.choices or [])
    yield from _below(below, path)


def _below(parsers: Mapping[str, argparse.ArgumentParser], path: str = "") -> Iterator[str]:
    for name, verb in parsers.items():
        yield from [f"{path}|{name}"] * bool(name)
        yield from _words_of(verb, f"{path} {name}".strip())


def _settings() -> Iterator[str]:
    from hpc_ecg.config.built_in import list_strategies
    from hpc_ecg.config.describe import describe_settings
    from hpc_ecg.config.schema import rules_by_key
    from hpc_ecg.sweep.settings import SweepConfig
    from hpc_ecg.training.settings import FinetuneConfig

    run, sweep = (FinetuneConfig, "@finetune", ""), (SweepConfig, "@sweep", "")
    for schema, context, prefix in (run, sweep, (FinetuneConfig, "@sweep", "run.")):
        rules = dict(rules_by_key(schema))
        for key, kind, _, _ in describe_settings(schema):
            yield from [f"config|{key}"] * (not prefix)
            yield f"{context}|{prefix}{key}="
            values = rules[key].choices if key in rules else ()
            for value in values or ("true", "false") * kind.startswith("bool"):
                yield f"{context}{prefix}{key}=|{value}"
    yield from (f"@sweepstrategies=[|{n}" for n, _ in list_strategies() if n[0] != "+")
