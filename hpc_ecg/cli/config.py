"""`hpc-ecg config`: print settings with default and meaning: all, some, or those about a word."""

import argparse
from collections.abc import Iterator

from hpc_ecg.cli.parser import Verbs

TITLES = {
    "finetune": "# hpc-ecg finetune",
    "sweep": "\n# hpc-ecg sweep (and every setting above, as run.<key>)",
}


def add_config(verbs: Verbs) -> None:
    config = verbs.add_parser("config", help="print every setting with default and meaning")
    config.add_argument(
        "of", nargs="?", metavar="VERB|SETTING", help="finetune, sweep, a section or a setting"
    )
    config.add_argument("--search", metavar="WORD", help="settings whose text has this word")
    config.set_defaults(verb=_config)


def _config(options: argparse.Namespace) -> int:
    from hpc_ecg.config.suggestions import did_you_mean
    from hpc_ecg.log import say

    of, word, rows = options.of, options.search or "", list(_settings())
    if of is not None:
        names = [*TITLES, *(key for _, key, _ in rows)]
        rows = [row for row in rows if row[0] == of or f"{row[1]}.".startswith(f"{of}.")]
        if not rows:
            hint = did_you_mean(of, names)
            raise ValueError(f"{of}: no verb, section or setting has this name{hint}")
    rows = [row for row in rows if word.lower() in row[2].lower()]
    if not rows:
        raise ValueError(f"no setting has the word {word!r} in its name or text")
    for verb, title in TITLES.items():
        if texts := [text for of_verb, _, text in rows if of_verb == verb]:
            say(title, "", *texts)
    return 0


def _settings() -> Iterator[tuple[str, str, str]]:
    """The verb, the key and the text of each setting."""
    from hpc_ecg.config.describe import describe_settings
    from hpc_ecg.sweep.settings import SweepConfig
    from hpc_ecg.training.settings import FinetuneConfig

    for verb, schema in zip(TITLES, (FinetuneConfig, SweepConfig), strict=True):
        for key, kind, default, text in describe_settings(schema):
            yield verb, key, f"{key}: {kind} = {default}\n    {text}"
