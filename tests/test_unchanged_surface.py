"""What a user types stays: every setting with type and default, every verb, option and default.

Help texts may change. What settings do, and how mistakes are said, is held in test_config,
test_cli and beside each verb. Only commands are used: the parsers are caught where argparse reads
with them, as two verbs make theirs late.
"""

import argparse
import os
import re

import pytest
from recorded import hpc_ecg, same_as_recorded

from hpc_ecg.cli import main

VERBS_WITH_LATE_PARSERS = {
    "evaluate": ["evaluate", "RUN"],
    "sweep": ["sweep", "sweep_dir=x"],
    "sweep status": ["sweep", "status", "SWEEP"],
    "sweep cancel": ["sweep", "cancel", "SWEEP"],
    "sweep retry": ["sweep", "retry", "SWEEP"],
}
CLASS_INSIDE = re.compile(r"\bStageConfig\b")


class CaughtError(Exception):
    """Holds the parser that was about to read words."""


def caught(monkeypatch, method, words):
    """The parser that reads these words by this method of argparse."""

    def catch(self, *_):
        raise CaughtError(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, method, catch)
        with pytest.raises(CaughtError) as found:
            main(words)
    return found.value.args[0]


def surface_of(parser):
    """Options by name in the order of `--help`, groups of which one may be given, and verbs."""
    options, verbs = {}, {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            verbs = {name: surface_of(below) for name, below in action.choices.items()}
            continue
        about = {
            "kind": type(action).__name__.strip("_").removesuffix("Action"),
            "nargs": action.nargs,
            "default": default_of(action),
            "type": action.type and action.type.__name__,
            "choices": action.choices and list(action.choices),
            "required": (action.required and bool(action.option_strings)) or None,
        }
        name = " ".join(action.option_strings) or action.metavar or action.dest
        options[name] = {key: value for key, value in about.items() if value is not None}
    one_of = [
        {"required": group.required, "of": [a.option_strings[0] for a in group._group_actions]}
        for group in parser._mutually_exclusive_groups
    ]
    return {"options": options} | ({"one_of": one_of} if one_of else {}) | verbs


def default_of(action):
    if action.dest == "workers" and action.default == len(os.sched_getaffinity(0)):
        return "as many as CPUs"
    simple = action.default is None or isinstance(action.default, bool | int | float | str | list)
    return action.default if simple else str(action.default)


def test_every_verb_and_option_is_what_it_was(monkeypatch):
    found = surface_of(caught(monkeypatch, "parse_args", ["config"]))
    for name, words in VERBS_WITH_LATE_PARSERS.items():
        found[name] = surface_of(caught(monkeypatch, "parse_intermixed_args", words))
    same_as_recorded("commands", found)


def test_every_setting_has_the_type_and_default_that_it_had(tmp_path, capsys):
    found, whole = {}, {}
    for of in ("finetune", "sweep"):
        assert hpc_ecg(tmp_path, "config", of) == 0
        whole[of] = capsys.readouterr().out
        lines = [line for line in whole[of].splitlines() if line and not line.startswith(" ")]
        for line in lines:
            key, colon, rest = line.partition(": ")
            if colon:  # not a title; a type may name a class of the package, which may move
                found[f"{of}: {key}"] = CLASS_INSIDE.sub("(a section)", rest)
    assert len(found) > 120
    same_as_recorded("settings", found)
    assert hpc_ecg(tmp_path, "config") == 0
    assert capsys.readouterr().out == whole["finetune"] + whole["sweep"]


def test_the_command_is_a_module_too_and_says_its_version(tmp_path, capsys):
    assert hpc_ecg(tmp_path, "--version") == 0
    assert re.fullmatch(r"\d+\.\d+\S*\n", capsys.readouterr().out)
