"""`hpc-ecg explain MODEL FILE --out page.html`: what moved a model's output."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ecg.cli.arrays import add_layout_options, layout_of
from hpc_ecg.cli.parser import Verbs, check_effects
from hpc_ecg.cli.predict import LAYOUT, rate_of

if TYPE_CHECKING:
    from hpc_ecg.inference.sources import Source

NO_MAP = 3


def add_explain(verbs: Verbs) -> None:
    about = f"Exit code 0: the page has a map; {NO_MAP}: a check of the map failed; 2: a mistake."
    text = "a page on what moved a model's output for an ECG"
    explain = verbs.add_parser("explain", help=text, description=f"Write {text}. {about}")
    explain.add_argument("model", type=Path, metavar="MODEL", help="run, sweep, bundle, .pt …")
    explain.add_argument("file", metavar="FILE", help="a recording; or a folder of shards")
    explain.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .html page")
    explain.add_argument("--force", action="store_true", help="replace FILE")
    explain.add_argument("--label", metavar="NAME", help="needed if the model has several")
    explain.add_argument("--strategy", metavar="NAME", help="which one of a sweep")
    explain.add_argument("--seed", type=int, default=0, metavar="N", help="of the random choices")
    explain.add_argument("--sample", type=int, metavar="N", help="for shards: average N test ECGs")
    add_layout_options(explain)
    explain.add_argument("--missing-leads", default="leave_out", help="leave_out (default) or zero")
    explain.set_defaults(verb=_explain)


def _explain(options: argparse.Namespace) -> int:
    from hpc_ecg.atomic_io import write_text
    from hpc_ecg.log import say

    sources = _check(options)

    from hpc_ecg.inference.explain import explain_cohort, explain_recording, open_explainer

    explainer = open_explainer(options.model, options.strategy, options.label, options.seed)
    name = Path(options.file).name
    if not sources:
        page, has_map = explain_cohort(explainer, options.file, options.sample, name)
    else:
        from hpc_ecg.inference.decode import decode
        from hpc_ecg.shards.shard_task import Recordings

        rate_hz, signal = rate_of(options.rate), explainer.model.signal
        about = {"layout": layout_of(options, rate_hz), "missing_leads": options.missing_leads}
        recordings = Recordings(signals=Path(), signal=signal, **about)
        (found,) = decode(sources, [0], recordings, rate_hz, 1)
        if found.reason:
            raise ValueError(f"{options.file}: {found.message}")
        try:
            page, has_map = explain_recording(explainer, found.windows[0], name)
        except ValueError as error:
            raise ValueError(f"{options.file}: {error}") from None
    write_text(options.out, page, about_people=True)
    say(f"written: {options.out}" + ("" if has_map else "; a check failed, so it has no map"))
    return 0 if has_map else NO_MAP


def _check(options: argparse.Namespace) -> "list[Source]":
    """The recording, or none for a sample of shards. ValueError for what is wrong, as far as that
    can be said without torch."""
    from hpc_ecg.atomic_io import check_may_write
    from hpc_ecg.inference.sources import find_sources, is_shards

    if options.out.suffix != ".html":
        raise ValueError(f"--out {options.out}: the ending must be .html")
    check_may_write(options.out, replace=options.force, option="--out")
    if options.model.suffix == ".onnx":
        raise ValueError(
            f"{options.model}: gradients need the weights, which ONNX merges; give .pt"
        )
    if not options.model.exists():
        raise ValueError(f"{options.model}: no such run, sweep, bundle or file of weights")
    for name, least in (("sample", 2), ("seed", 0)):
        if (value := getattr(options, name)) is not None and not least <= value < 1 << 32:
            raise ValueError(f"--{name} must be at least {least} and below 2^32, got {value}")
    has_shards = is_shards(options.file)
    others = ((name, "one recording", not has_shards) for name in LAYOUT)
    check_effects(options, ("sample", "shards", has_shards), *others)
    if has_shards:
        if options.sample is None:
            raise ValueError(f"{options.file} holds shards; give --sample N for their mean maps")
        return []
    sources = find_sources([options.file], layout_of(options, rate_of(options.rate)))
    if len(sources) > 1:
        text = f"{options.file} holds {len(sources)} recordings; give one, such as"
        raise ValueError(f"{text} {sources[0].name}")
    return sources
