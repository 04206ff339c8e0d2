"""`hpc-ecg update RUN --shards OTHER`: adapt a run to a new hospital."""

import argparse
from html import unescape
from pathlib import Path

from hpc_ecg.cli.parser import Verbs

UP_TO = ("intercept", "recalibration", "head", "finetune")


def add_update(verbs: Verbs) -> None:
    update = verbs.add_parser(
        "update",
        help="adapt a run to a new hospital, as far as its patients support it",
        description="Write the update of RUN that tests on the patients of OTHER support as a run "
        "of its own, and compare both on patients that were held out.",
    )
    update.add_argument("run_dir", metavar="RUN")
    update.add_argument("--shards", required=True, metavar="OTHER", help="of the new hospital")
    update.add_argument("--out", type=Path, metavar="NEW_RUN", help="default: RUN-OTHER")
    update.add_argument("--up-to", choices=UP_TO, default="head", help="the largest (default head)")
    text = "of patients to hold out (default: the split test, or 0.5 where there are no splits)"
    update.add_argument("--share", type=float, help=text)
    update.add_argument("--epochs", type=int, default=3, help="of fine-tuning (default 3)")
    update.set_defaults(verb=_update)


def _update(options: argparse.Namespace) -> int:
    from hpc_ecg.log import say, start_logging

    start_logging()

    from hpc_ecg.comparison.wording import FORMATS
    from hpc_ecg.inference.update import update
    from hpc_ecg.reporting.html import render_text

    run_dir, shards = options.run_dir.rstrip("/"), options.shards.rstrip("/")
    out = options.out or Path(f"{run_dir}-{Path(shards).name}")
    about = update(run_dir, shards, out, options.up_to, options.share, options.epochs)
    text = render_text("update.md.jinja", update=about, **FORMATS)
    say(*unescape(text).splitlines(), f"written: {out}/update.json")
    return 0
