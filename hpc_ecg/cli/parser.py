"""The parser class of all verbs."""

import argparse
from pathlib import Path
from typing import NoReturn, TypeAlias


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as the verbs do; argparse would print the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What `add_subparsers` returns; each verb adds its parser to it."""
SETTINGS_HELP = "YAML files and settings key=value, later over earlier; `hpc-ecg config` lists them"


def check_table(path: Path) -> None:
    """Report a table that is missing before pandas is imported."""
    if not path.is_file():
        raise ValueError(f"{path}: no such table; expected a .csv, .tsv, .xlsx or .parquet file")
