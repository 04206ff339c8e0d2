"""`hpc-ecg explain MODEL FILE --out page.html`: what moved a model's output."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ecg.cli.arrays import add_layout_options, layout_of
from hpc_ecg.cli.parser import Verbs, check_effects
from hpc_ecg.cli.predict import LAYOUT, rate_of

if TYPE_CHECKING:
    from hpc_ecg.ecg.preprocess import PreparedECG
    from hpc_ecg.inference.model_source import ModelSource

NO_MAP, MEMBERS = 3, 200


def add_explain(verbs: Verbs) -> None:
    explain = verbs.add_parser(
        "explain",
        help="a page on what moved a model's output for an ECG",
        description="Write a page: the ECG with what moved the output, checks of that map, and the "
        "risk's place among those of validation. Exit code 0: the map is drawn; "
        f"{NO_MAP}: a check failed, so the page has no map; 2: a mistake.",
    )
    explain.add_argument("model", type=Path, metavar="MODEL", help="run, sweep, bundle, .pt …")
    explain.add_argument("file", metavar="FILE", help="a recording; or a folder of shards")
    explain.add_argument("--out", type=Path, required=True, metavar="FILE", help=".html")
    explain.add_argument("--force", action="store_true", help="replace FILE")
    explain.add_argument("--label", metavar="NAME", help="needed if the model has several")
    explain.add_argument("--strategy", metavar="NAME", help="of a sweep")
    explain.add_argument("--seed", type=int, default=0, metavar="N", help="of checks and samples")
    text = f"training patients among whom the nearest are searched ({MEMBERS}; 0: none)"
    explain.add_argument("--members", type=int, metavar="N", help=text)
    explain.add_argument("--key", help="shards: the record with this key")
    explain.add_argument("--sample", type=int, metavar="N", help="shards: mean maps of N ECGs")
    add_layout_options(explain)
    explain.add_argument("--missing-leads", help="leave_out (default) or zero: filled, flagged")
    explain.set_defaults(verb=_explain)


def _explain(options: argparse.Namespace) -> int:
    from hpc_ecg.atomic_io import write_text
    from hpc_ecg.log import say, start_logging

    start_logging()
    _check(options)

    from hpc_ecg.inference.explain import explain_cohort, explain_recording, open_explainer
    from hpc_ecg.inference.mean_map import draw_sample

    explainer = open_explainer(options.model, options.strategy, options.label, options.seed)
    model, name = explainer.model, Path(options.file).name
    if options.sample is not None:
        asked = explainer.label, options.sample, options.seed
        page, has_map = explain_cohort(explainer, draw_sample(options.file, model, *asked), name)
    else:
        name = f"{name}, key {options.key}" if options.key else name
        members = MEMBERS if options.members is None else options.members
        try:
            page, has_map = explain_recording(explainer, _read(options, model), name, members)
        except ValueError as error:
            raise ValueError(f"{options.file}: {error}") from None
    write_text(options.out, page, about_people=True)
    say(f"written: {options.out}" + ("" if has_map else "; a check failed, so it has no map"))
    return 0 if has_map else NO_MAP


def _check(options: argparse.Namespace) -> None:
    """ValueError for what is wrong, as far as that can be said without torch."""
    from hpc_ecg.atomic_io import check_may_write
    from hpc_ecg.inference.sources import find_sources, is_shards

    if options.out.suffix != ".html":
        raise ValueError(f"--out {options.out}: the ending must be .html")
    check_may_write(options.out, replace=options.force, option="--out")
    if options.model.suffix == ".onnx":
        raise ValueError(
            f"{options.model}: gradients need the weights, which ONNX merges; give the run or .pt"
        )
    for name, least in (("sample", 2), ("members", 0), ("seed", 0)):
        if (value := getattr(options, name)) is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    has_shards = is_shards(options.file)
    check_effects(
        options,
        *((name, "shards", has_shards) for name in ("key", "sample")),
        *((name, "recordings, not shards", not has_shards) for name in (*LAYOUT, "missing_leads")),
        ("members", "one ECG, not a sample", options.sample is None),
    )
    if has_shards and (options.key is None) == (options.sample is None):
        raise ValueError(f"{options.file} holds shards: give --key KEY or --sample N")
    if not has_shards:
        sources = find_sources([options.file], layout_of(options, rate_of(options.rate)))
        if len(sources) > 1:
            text = f"{options.file} holds {len(sources)} recordings; give one, as"
            raise ValueError(f"{text} {sources[0].name}")


def _read(options: argparse.Namespace, model: "ModelSource") -> "PreparedECG":
    """The ECG of FILE as the model takes it. ValueError: it cannot be used, and why."""
    from hpc_ecg.inference.decode import decode
    from hpc_ecg.inference.from_shards import decode_shards, open_all
    from hpc_ecg.inference.sources import find_sources
    from hpc_ecg.shards.shard_task import Recordings

    if options.key is not None:
        dataset, _ = open_all(options.file, model.signal, str(options.model))
        if options.key not in dataset.keys:
            raise ValueError(f"no record has the key {options.key}; the first is {dataset.keys[0]}")
        (found,) = decode_shards(dataset, [dataset.keys.index(options.key)])
        return found.windows[0]
    rate_hz = rate_of(options.rate)
    layout, missing = layout_of(options, rate_hz), options.missing_leads or "leave_out"
    recordings = Recordings(
        signals=Path(), layout=layout, signal=model.signal, missing_leads=missing
    )
    (found,) = decode(find_sources([options.file], layout), [0], recordings, rate_hz, 1)
    if found.reason:
        raise ValueError(found.message)
    return found.windows[0]
