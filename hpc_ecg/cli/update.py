"""`hpc-ecg update RUN --shards OTHER`: adapt a run to a new hospital."""

import argparse
from html import unescape
from pathlib import Path

from hpc_ecg.cli.parser import Verbs


def add_update(verbs: Verbs) -> None:
    text = "adapt a run to a new hospital, as far as its patients support it"
    update = verbs.add_parser("update", help=text)
    update.add_argument("run_dir", metavar="RUN")
    update.add_argument("--shards", required=True, metavar="OTHER", help="of the new hospital")
    update.add_argument("--out", type=Path, metavar="NEW_RUN", help="default: RUN-OTHER")
    methods = ("intercept", "recalibration", "head", "finetune")
    update.add_argument("--up-to", choices=methods, default="head", help="largest (default head)")
    text = "of patients to hold out (default: the split test, or 0.5 where there are no splits)"
    update.add_argument("--share", type=float, help=text)
    update.add_argument("--epochs", type=int, help="of fine-tuning (default 3)")
    update.set_defaults(verb=_update)


def _update(options: argparse.Namespace) -> int:
    from hpc_ecg.log import say

    if options.epochs is not None and (options.up_to != "finetune" or options.epochs < 1):
        raise ValueError("--epochs must be at least 1, and goes with --up-to finetune")

    from hpc_ecg.comparison.wording import FORMATS
    from hpc_ecg.inference.update import UPDATE, update
    from hpc_ecg.reporting.html import render_text

    run_dir, shards = options.run_dir.rstrip("/"), options.shards.rstrip("/")
    out = options.out or Path(f"{run_dir}-{Path(shards).name}")
    epochs = 3 if options.epochs is None else options.epochs
    for about in update(run_dir, shards, out, options.up_to, options.share, epochs):
        text = unescape(render_text("update.md.jinja", update=about, **FORMATS))
        say(*text.splitlines(), f"written: {out.parent / about['run'] / UPDATE}", "")
    return 0
