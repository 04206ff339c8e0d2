"""`hpc-ecg completion SHELL`: a script that completes verbs, options and settings.

It holds a table, made from the parsers and the settings, and a program in awk that looks up the
words typed so far, so that no Python starts when the user presses Tab. A row is `context|word`: the
context is a verb, `VERB=--option`, or `@finetune` and `@sweep` with the settings, `@sweepKEY=` with
a setting's values (`@sweepKEY=[` with those of a list). A word `@…` stands for all of that context.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hpc_ecg.cli.parser import Verbs

SHELLS = ("bash", "zsh", "fish")
HOW = "Load it with: source <(hpc-ecg completion bash), the same for zsh, or in fish with: hpc-ecg "
HOW += (
    "completion fish | source. Words after key= are the setting's values; else files are offered."
)


def add_completion(verbs: Verbs) -> None:
    text = "print a script that completes words at the Tab key"
    completion = verbs.add_parser("completion", help=text, epilog=HOW)
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    completion.set_defaults(verb=_completion)


def _completion(options: argparse.Namespace) -> int:
    from hpc_ecg.cli.command import build_parser
    from hpc_ecg.log import say

    text = Path(__file__).with_name("completion.txt").read_text(encoding="utf-8")
    part = dict(block.split("\n", 1) for block in text.split("### ")[1:])
    assign = "set -g {} '{}'\n" if options.shell == "fish" else "{}='{}'\n"
    table = "\n".join([*_words_of(build_parser(), ""), *_settings()])
    script = assign.format("_hpc_ecg_table", table) + assign.format("_hpc_ecg_awk", part["awk"])
    say(script + part["sh"] * (options.shell != "fish") + part[options.shell])
    return 0


def _words_of(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    """The rows of a parser and of the verbs below it. `parsers`: those that a verb makes late."""
    for name, make in (parser.get_default("parsers") or {}).items():
        below = f"{path} {name}".strip()
        yield from [f"{path}|{name}"] * bool(name)
        yield from _words_of(make(), below)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                yield f"{path}|{name}"
                yield from _words_of(verb, f"{path} {name}".strip())
        elif action.option_strings:
            name = action.option_strings[-1]
            yield f"{path}|{name}"
            if action.nargs != 0:
                yield from (f"{path}={name}|{choice}" for choice in action.choices or [""])
        elif action.dest == "settings":
            yield f"{path}|@{'sweep' if path == 'sweep' else 'finetune'}"
        else:
            yield from (f"{path}|{choice}" for choice in action.choices or [])


def _settings() -> Iterator[str]:
    from hpc_ecg.config.built_in import list_strategies
    from hpc_ecg.config.describe import describe_settings
    from hpc_ecg.config.schema import rules_by_key
    from hpc_ecg.sweep.settings import SweepConfig
    from hpc_ecg.training.settings import FinetuneConfig

    for schema, contexts in (
        (FinetuneConfig, ("@finetune", "@sweeprun.")),
        (SweepConfig, ("@sweep",)),
    ):
        rules = dict(rules_by_key(schema))
        for key, kind, _, _ in describe_settings(schema):
            yield f"config|{key}"
            values = rules[key].choices if key in rules else ()
            for context in contexts:
                name, run, _ = context.partition("run.")
                yield f"{name}|{run}{key}="
                for value in values or ("true", "false") * (kind == "bool"):
                    yield f"{context}{key}=|{value}"
    yield from (f"@sweepstrategies=[|{n}" for n, _ in list_strategies() if not n.startswith("+"))
