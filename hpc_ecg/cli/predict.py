"""`hpc-ecg predict MODEL FILES… --out risks.csv`: risks of recordings without labels."""

import argparse
import math
import os
from pathlib import Path

from hpc_ecg.cli.arrays import add_layout_options, layout_of
from hpc_ecg.cli.parser import Parser, Verbs, check_effects

SOME_REFUSED = 3
LAYOUT = ("rate", "axes", "leads", "unit")


def add_predict(verbs: Verbs) -> None:
    # As for evaluate: options may stand between MODEL and FILES.
    predict = verbs.add_parser(
        "predict", help="risks of recordings without labels", add_help=False, prefix_chars="\0"
    )
    predict.add_argument("arguments", nargs="*")
    predict.set_defaults(verb=_predict)


def add_embed(verbs: Verbs) -> None:
    embed = verbs.add_parser(
        "embed", help="features of recordings", add_help=False, prefix_chars="\0"
    )
    embed.add_argument("arguments", nargs="*")
    embed.set_defaults(verb=_embed)


def _parser(verb: str) -> Parser:
    what = "risk" if verb == "predict" else "features (a column of lists: mean over tokens)"
    predict = Parser(
        prog=f"hpc-ecg {verb}",
        description=f"Write the {what} of each recording, or the reason why it has none. Exit code "
        "0: all were predicted; 3: some were not; 2: none was, or the command is wrong.",
    )
    predict.add_argument("model", type=Path, metavar="MODEL", help="run, sweep, .pt …")
    predict.add_argument(
        "files", nargs="*", metavar="FILES", help="files, folders, patterns, tables, arrays"
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help=".csv or .parquet")
    predict.add_argument("--force", action="store_true", help="replace FILE")
    predict.set_defaults(self_test=False, ensemble=False, layer=None)
    which = predict.add_argument_group("of a sweep")
    which.add_argument("--strategy", metavar="NAME")
    if verb == "predict":
        which.add_argument("--ensemble", action="store_true", help="all seeds, not the best one")
        predict.add_argument("--self-test", action="store_true", help="of a bundle: is all well?")
    else:
        predict.add_argument("--layer", type=int, metavar="N", help="0 to the last, the default")
    table = predict.add_argument_group("tables")
    table.add_argument("--signals", type=Path, metavar="DIR", help="default: the table's folder")
    table.add_argument("--file", metavar="COLUMN", help="path below DIR (default: file or record)")
    table.add_argument("--record", metavar="COLUMN", help="name in FILE (default: record or file)")
    add_layout_options(predict)
    predict.add_argument("--missing-leads", default="leave_out", help="or zero: filled, flagged")
    predict.add_argument("--clip", action="store_true", help="clip at ±32 mV, flagged")
    work = predict.add_argument_group("work")
    work.add_argument("--batch-size", type=int, metavar="N", help="default: the run's")
    work.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    return predict


def _predict(command: argparse.Namespace) -> int:
    return _run(_parser("predict").parse_intermixed_args(command.arguments), is_embedding=False)


def _embed(command: argparse.Namespace) -> int:
    return _run(_parser("embed").parse_intermixed_args(command.arguments), is_embedding=True)


def _run(options: argparse.Namespace, is_embedding: bool) -> int:
    from hpc_ecg.atomic_io import check_may_write
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import logger, say, start_logging

    ranks = read_ranks(os.environ)
    start_logging(ranks.rank)
    if options.self_test:
        return _self_test(options)
    if not options.files or options.out is None:
        raise ValueError("give FILES and --out FILE (or, for a bundle, --self-test)")
    out = options.out
    endings = (".parquet",) if is_embedding else (".csv", ".parquet")
    if out.suffix not in endings:
        raise ValueError(f"--out {out}: the ending must be {' or '.join(endings)}")
    share = share_of(ranks.rank, ranks.world_size)
    # a task that starts late may find what the others have written; the first one decides
    check_may_write(out, replace=options.force or share[0] > 0, option="--out")
    for name in ("workers", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    rate_hz = rate_of(options.rate)
    layout = layout_of(options, rate_hz)

    from hpc_ecg.inference.api import open_source
    from hpc_ecg.inference.model_source import with_features
    from hpc_ecg.inference.sources import find_sources, is_shards, is_table

    has_shards, has_table = (any(map(kind, options.files)) for kind in (is_shards, is_table))
    check_effects(
        options,
        *((name, "a table", has_table) for name in ("signals", "file", "record")),
        *((name, "recordings, not shards", not has_shards) for name in LAYOUT),
    )
    strategy, ensemble = options.strategy, options.ensemble
    model, shards = open_source(options.model, strategy, ensemble, not is_embedding), None
    model = with_features(model, options.layer) if is_embedding else model
    if has_shards:
        from hpc_ecg.inference.from_shards import open_all

        if len(options.files) > 1:
            raise ValueError("a folder of shards is predicted without other files; give it alone")
        shards, sources = open_all(options.files[0], model.signal, str(options.model))
    else:
        names = options.signals, options.file, options.record
        sources = find_sources(options.files, layout, *names)
    logger.info(f"{len(sources)} recordings; {model.name}")

    from hpc_ecg.inference.prediction_job import PredictionJob, load_forward, predict_files
    from hpc_ecg.inference.risk_table import describe_outcome
    from hpc_ecg.shards.shard_task import Recordings

    job = PredictionJob(
        model=model,
        sources=sources,
        recordings=Recordings(
            signals=Path(),
            layout=layout,
            signal=model.signal,
            missing_leads=options.missing_leads,
            clip=options.clip,
        ),
        out=out,
        shards=shards,
        rate_hz=rate_hz,
        batch_size=options.batch_size or model.config.data.batch_size,
        workers=options.workers,
        share=share,
    )
    with load_forward(model, out.parent) as forward:
        table = predict_files(job, forward)
    if table is None:
        return 0  # the process that ends last joins the parts
    say(*describe_outcome(table, out))
    if job.share[1] > 1:
        return 0  # torchrun and srun take any other code for a failure
    num_refused = int((table["reason"] != "").sum())
    return 0 if not num_refused else 2 if num_refused == len(table) else SOME_REFUSED


def _self_test(options: argparse.Namespace) -> int:
    from hpc_ecg.inference.bundle import is_bundle, open_bundle, self_test
    from hpc_ecg.inference.prediction_job import load_forward
    from hpc_ecg.log import say

    if not is_bundle(options.model):
        raise ValueError(f"--self-test is for a bundle, and {options.model} has no model.json")
    model = open_bundle(options.model)
    with load_forward(model, options.model) as forward:
        say(self_test(model, options.model, forward))
    return 0


def rate_of(text: str | None) -> float | None:
    from hpc_ecg.ecg.preprocess import MAX_RATE_HZ, MIN_RATE_HZ

    try:
        rate_hz = None if text is None else float(text)
    except ValueError:
        rate_hz = math.nan
    if rate_hz is not None and not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        allowed = f"{MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz"
        raise ValueError(f"--rate must be {allowed}, got {text}")
    return rate_hz


def share_of(rank: int, world_size: int) -> tuple[int, int]:
    """This process and how many there are, over the ranks of all tasks of a Slurm array.

    ValueError: the numbers of the tasks have gaps, so that nobody would do some parts.
    """
    first, last, step = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", 0), ("MAX", 0), ("STEP", 1))
    )
    tasks = (last - first) // step + 1
    if (count := int(os.environ.get("SLURM_ARRAY_TASK_COUNT", tasks))) != tasks:
        raise ValueError(
            f"this array has {count} tasks, numbered from {first} to {last}; they share the work "
            f"if they are numbered without gaps: --array=0-{count - 1}"
        )
    task = (int(os.environ.get("SLURM_ARRAY_TASK_ID", first)) - first) // step
    return task * world_size + rank, tasks * world_size
