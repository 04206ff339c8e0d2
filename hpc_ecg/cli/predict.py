"""`hpc-ecg predict MODEL FILES… --out risks.csv`: risks of recordings without labels."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ecg.cli.arrays import add_layout_options, as_number, layout_of
from hpc_ecg.cli.parser import Parser, Verbs, check_effects

if TYPE_CHECKING:
    import pandas as pd

SOME_REFUSED = 3
LAYOUT = ("rate", "axes", "leads", "unit")


def add_predict(verbs: Verbs) -> None:
    _add(verbs, "predict", "risks of recordings without labels")


def add_embed(verbs: Verbs) -> None:
    _add(verbs, "embed", "features of recordings")


def _add(verbs: Verbs, verb: str, text: str) -> None:
    # As for evaluate: options may stand between MODEL and FILES.
    parser = verbs.add_parser(verb, help=text, add_help=False, prefix_chars="\0")
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(verb=lambda command: run(verb, command.arguments))
    parser.set_defaults(parsers={"": lambda: _parser(verb)})


def _parser(verb: str) -> Parser:
    what = "risk" if verb == "predict" else "features (a column of lists: mean over tokens)"
    predict = Parser(
        prog=f"hpc-ecg {verb}",
        description=f"Write the {what} of each recording, or the reason why it has none. Exit code "
        "0: all were predicted; 3: some were not; 2: none was, or the command is wrong.",
    )
    predict.add_argument("model", type=Path, metavar="MODEL", help="run, sweep, bundle, .pt …")
    predict.add_argument(
        "files", nargs="*", metavar="FILES", help="files, folders, patterns, tables, arrays"
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help=".csv or .parquet")
    predict.add_argument("--force", action="store_true", help="replace FILE")
    predict.set_defaults(self_test=False, ensemble=False, layer=None)
    predict.set_defaults(abstain=None, fit_abstention=False)
    which = predict.add_argument_group("of a sweep")
    which.add_argument("--strategy", metavar="NAME")
    if verb == "predict":
        which.add_argument("--ensemble", action="store_true", help="all seeds, not the best one")
        predict.add_argument("--self-test", action="store_true", help="of a bundle: is all well?")
        doubt = predict.add_argument_group("when not to rely on a risk (column abstained)")
        doubt.add_argument(
            "--abstain", nargs="?", const="0.9", metavar="SHARE", help="kept of validation: 0.9"
        )
        doubt.add_argument(
            "--fit-abstention", action="store_true", help="learn it from a run's own shards first"
        )
    else:
        predict.add_argument("--layer", type=int, metavar="N", help="0 to the last, the default")
    table = predict.add_argument_group("tables")
    table.add_argument("--signals", type=Path, metavar="DIR", help="default: the table's folder")
    table.add_argument("--file", metavar="COLUMN", help="path below DIR (default: file or record)")
    table.add_argument("--record", metavar="COLUMN", help="name in FILE (default: record or file)")
    add_layout_options(predict)
    predict.add_argument("--missing-leads", default="leave_out", help="leave_out (default) or zero")
    predict.add_argument("--clip", action="store_true", help="clip at ±32 mV, flagged")
    work = predict.add_argument_group("work")
    work.add_argument("--batch-size", type=int, metavar="N", help="default: the run's")
    work.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    work.add_argument(
        "--slurm", metavar="KEY=VALUE,…", help="a Slurm array: jobs=8,gpus_per_node=1,time=60"
    )
    return predict


def run(verb: str, words: list[str], share: tuple[int, int] | None = None) -> int:
    """Predict or embed; `share`: which process of how many this is, unless the ranks say it."""
    options, is_embedding = _parser(verb).parse_intermixed_args(words), verb == "embed"
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import logger, say, start_logging

    ranks = read_ranks(os.environ)
    start_logging(ranks.rank)
    for name in ("self_test", "fit_abstention"):
        if getattr(options, name) and (options.files or options.out or options.abstain is not None):
            raise ValueError(f"--{name.replace('_', '-')} predicts nothing; give MODEL alone")
    if options.self_test:
        return _self_test(options)
    if options.fit_abstention:
        from hpc_ecg.inference.abstain import fit_abstention

        fit_abstention(str(options.model))
        return 0
    out, slurm = options.out, None
    if options.slurm is not None and not share:
        from hpc_ecg.jobs.settings import parse_slurm

        slurm = parse_slurm(options.slurm)
    share = share or share_of(ranks.rank, ranks.world_size)
    _check(options, is_embedding, is_first=share[0] == 0)
    rate_hz = rate_of(options.rate)
    layout = layout_of(options, rate_hz)

    from hpc_ecg.inference.abstain import with_abstention
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
    model = with_abstention(model, options.abstain) if options.abstain is not None else model
    if has_shards:
        from hpc_ecg.inference.from_shards import open_all

        if len(options.files) > 1:
            raise ValueError("a folder of shards is predicted without other files; give it alone")
        about = str(options.model), model.covariates
        shards, sources = open_all(options.files[0], model.signal, *about)
    else:
        names = options.signals, options.file, options.record
        sources = find_sources(options.files, layout, *names, model.covariates)
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
    table: pd.DataFrame | None
    if slurm:
        from hpc_ecg.inference.on_slurm import predict_on_slurm

        table = predict_on_slurm(job, slurm, run_share, verb, words)
    else:
        with load_forward(model, out.parent) as forward:
            table = predict_files(job, forward)
    if table is None:
        return 0  # the process that ends last joins the parts
    say(*describe_outcome(table, out))
    if job.share[1] > 1:
        return 0  # torchrun and srun take any other code for a failure
    num_refused = int((table["reason"] != "").sum())
    return 0 if not num_refused else 2 if num_refused == len(table) else SOME_REFUSED


def _check(options: argparse.Namespace, is_embedding: bool, is_first: bool) -> None:
    """ValueError for what can be known before torch is imported, which takes seconds."""
    from hpc_ecg.atomic_io import check_may_write
    from hpc_ecg.training.open_run import finished_run
    from hpc_ecg.training.run_folder import RunFolder
    from hpc_ecg.weights.reading import resolve_file

    if not options.files or options.out is None:
        raise ValueError("give FILES and --out FILE (or, for a bundle, --self-test)")
    endings = (".parquet",) if is_embedding else (".csv", ".parquet")
    if options.out.suffix not in endings:
        raise ValueError(f"--out {options.out}: the ending must be {' or '.join(endings)}")
    # a task that starts late may find what the others have written; the first one decides
    check_may_write(options.out, replace=options.force or not is_first, option="--out")
    for name in ("workers", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    run = RunFolder(options.model)
    if not options.model.exists():
        resolve_file(options.model)
    elif run.config.exists() and not run.is_finished():
        finished_run(str(options.model))


def run_share(verb: str, words: list[str], task: int, count: int) -> None:
    """The share of one task of an array, with a worker for each of its CPUs unless `words` differ.
    What may be replaced was decided when the array was submitted."""
    workers = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    run(verb, ["--workers", workers, "--force", *words], (task, count))


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

    rate_hz = as_number(text)
    if text is not None and not (rate_hz and MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ):
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
