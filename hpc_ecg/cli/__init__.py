"""The command `hpc-ecg`, one file per verb; `command.py` holds the parser and `main`."""

from hpc_ecg.cli.command import build_parser, main

__all__ = ["build_parser", "main"]
