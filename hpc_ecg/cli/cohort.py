"""`hpc-ecg cohort`: ECGs and events in, a labelled table and its flow diagram out."""

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ecg.cli.parser import Verbs, check_effects, check_table

if TYPE_CHECKING:
    from hpc_ecg.cohort.censoring import WeightPlan
    from hpc_ecg.cohort.source_tables import SourceTables

FORMAT_HELP = "like %%d/%%m/%%Y (default: ISO 8601)"
DEFAULT = "(default: %(default)s)"
WEIGHT_OPTIONS = ("censoring_model", "split", "fractions", "split_seed")


def add_cohort(verbs: Verbs) -> None:
    cohort = verbs.add_parser("cohort", help="label ECGs by later events, with a flow diagram")
    cohort.add_argument("ecgs", type=Path, metavar="ECGS", help="table, a row per ECG")
    cohort.add_argument("events", type=Path, metavar="EVENTS", help="table, a row per event")
    cohort.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .csv")
    cohort.add_argument("--force", action="store_true", help="replace FILE if it exists")
    _add_columns(cohort)
    _add_outcome(cohort)
    _add_follow_up(cohort)
    group = cohort.add_argument_group("which ECGs")
    choices = ("all", "first", "last", "random")
    group.add_argument("--ecgs-per-patient", default="all", choices=choices, help=DEFAULT)
    group.add_argument("--seed", type=int, help="for --ecgs-per-patient random (default: 0)")
    group.add_argument("--min-age", type=float, metavar="YEARS")
    group.add_argument("--max-age", type=float, metavar="YEARS")
    cohort.set_defaults(verb=_cohort)


def _add_columns(cohort: argparse.ArgumentParser) -> None:
    group = cohort.add_argument_group("columns")
    group.add_argument("--patient", default="patient", metavar="COLUMN", help=f"in ECGS {DEFAULT}")
    group.add_argument("--time", default="time", metavar="COLUMN", help=f"of the ECG {DEFAULT}")
    group.add_argument("--record", metavar="COLUMN", help="its name (default: record or file)")
    group.add_argument("--age", default="age", metavar="COLUMN", help=f"read if limited {DEFAULT}")
    group.add_argument("--date-format", metavar="FORMAT", help=f"in ECGS, {FORMAT_HELP}")
    group.add_argument("--event-patient", metavar="COLUMN", help="default: as --patient")
    group.add_argument("--event-time", default="time", metavar="COLUMN", help=DEFAULT)
    group.add_argument("--event-code", default="code", metavar="COLUMN", help=DEFAULT)
    group.add_argument("--event-date-format", metavar="FORMAT", help=FORMAT_HELP)
    group.add_argument("--label", default="label", metavar="COLUMN", help=f"in FILE {DEFAULT}")
    group.add_argument("--ids-as-written", action="store_true", help="012 and 12 are two patients")


def _add_outcome(cohort: argparse.ArgumentParser) -> None:
    group = cohort.add_argument_group("the outcome (spans: 30d, 2w, 6m, 5y; a year is 365.25 days)")
    group.add_argument("--event", action="append", default=[], metavar="CODE", help="repeat")
    group.add_argument("--event-prefix", action="append", default=[], metavar="START")
    group.add_argument("--event-file", type=Path, metavar="CODES", help="a code per line")
    group.add_argument("--any-event", action="store_true", help="each row of EVENTS is one")
    group.add_argument(
        "--within", required=True, metavar="SPAN", help="an event within this span: label 1"
    )
    group.add_argument(
        "--blanking", default="0d", metavar="SPAN", help="events this early count as prevalent"
    )
    group.add_argument(
        "--keep-prevalent", action="store_true", help="keep the ECG: the event can happen again"
    )


def _add_follow_up(cohort: argparse.ArgumentParser) -> None:
    group = cohort.add_argument_group("follow-up")
    end = group.add_mutually_exclusive_group(required=True)
    end.add_argument("--followed-until", metavar="COLUMN", help="date, in ECGS or FOLLOW")
    end.add_argument(
        "--assume-complete-follow-up",
        action="store_true",
        help="without an event: label 0; is noted",
    )
    choices = ("exclude", "missing", "ipcw")
    group.add_argument("--censored", choices=choices, help="not followed to the end; ipcw: weights")
    group.add_argument("--died", metavar="COLUMN", help="date of death, beside --followed-until")
    group.add_argument("--death", choices=("negative", "censored"), help="died before an event")
    group.add_argument("--follow-up", type=Path, metavar="FOLLOW", help="table, a row per patient")
    group.add_argument("--follow-up-patient", metavar="COLUMN", help="default: as --patient")
    group.add_argument("--follow-up-date-format", metavar="FORMAT", help=FORMAT_HELP)
    group = cohort.add_argument_group("--censored ipcw: weights fitted on training patients")
    fits = "logistic model on these columns (default: Kaplan–Meier)"
    group.add_argument("--censoring-model", metavar="A,B", help=fits)
    group.add_argument("--split", metavar="COLUMN", help="these three as for hpc-ecg data shard")
    group.add_argument("--fractions", metavar="A,B,C")
    group.add_argument("--split-seed", type=int, metavar="SEED")


def _cohort(options: argparse.Namespace) -> int:
    _check_out(options)
    check_table(options.ecgs)
    check_table(options.events)
    from hpc_ecg.cohort.censoring import weigh
    from hpc_ecg.cohort.flow_diagram import write_flow
    from hpc_ecg.cohort.rules import Rules, apply_rules
    from hpc_ecg.cohort.source_tables import check_options, read_tables, write_labelled
    from hpc_ecg.log import progress_bar, say

    by_age = (options.min_age, options.max_age) != (None, None) or options.age == "age"
    by_code = not options.any_event or options.event_code == "code"
    check_effects(
        options,
        ("seed", "--ecgs-per-patient random", options.ecgs_per_patient == "random"),
        ("age", "--min-age and --max-age", by_age),
        ("event_code", "--event, --event-prefix and --event-file", by_code),
        ("follow_up_patient", "--follow-up", options.follow_up),
        ("follow_up_date_format", "--follow-up", options.follow_up),
    )
    options.seed = options.seed or 0
    rules = Rules(**{field.name: getattr(options, field.name) for field in fields(Rules)})
    sources = _sources(options)
    check_options(rules, sources)
    plan = _weight_plan(options)
    with progress_bar("steps", 4) as advance:
        advance(0, "reading the tables")
        tables = read_tables(sources, rules.age_limits != (-math.inf, math.inf))
        advance(note="labelling")
        labelled, flow = apply_rules(tables.ecgs, tables.events, rules)
        advance(note="weights against censoring" if plan else "")
        weights = None
        if plan is not None and len(labelled):
            facts = labelled, tables.given, tables.ecgs["patient"], plan, options.ecgs
            labelled["ipcw"], weights = weigh(*facts)
        advance(note="writing")
        write_labelled(options.out, tables.given, labelled, flow, options.label)
        flow_files = write_flow(options.out, flow, tables.notes, rules, sources, weights)
    written = [options.out, *flow_files]
    say(written[1].read_text(), f"written: {', '.join(map(str, written))}")
    return 0


def _check_out(options: argparse.Namespace) -> None:
    from hpc_ecg.atomic_io import check_may_write

    out = options.out
    inputs = (options.ecgs, options.events, options.follow_up, options.event_file)
    if out.suffix != ".csv":
        raise ValueError(f"--out {out} must end in .csv")
    for path in (out, *(out.with_suffix(f".flow.{end}") for end in ("txt", "svg", "json"))):
        if path.exists() and any(p and p.exists() and p.samefile(path) for p in inputs):
            raise ValueError(f"--out {out} would replace {path}, an input; give another name")
        check_may_write(path, options.force, "--out")


def _weight_plan(options: argparse.Namespace) -> "WeightPlan | None":
    from hpc_ecg.cohort.censoring import WeightPlan
    from hpc_ecg.cohort.splits import parse_fractions

    is_ipcw = options.censored == "ipcw"
    check_effects(options, *[(name, "--censored ipcw", is_ipcw) for name in WEIGHT_OPTIONS])
    given = {n: v for n in WEIGHT_OPTIONS if (v := getattr(options, n)) is not None}
    if "fractions" in given:
        given["fractions"] = parse_fractions(given["fractions"])
    return WeightPlan(**given) if is_ipcw else None


def _sources(options: argparse.Namespace) -> "SourceTables":
    from hpc_ecg.cohort.source_tables import SourceTables

    values = {field.name: getattr(options, field.name) for field in fields(SourceTables)}
    for name in ("event_patient", "follow_up_patient"):
        if values[name] is None:
            values[name] = options.patient
    return SourceTables(**values | {"event": [*options.event, *_codes(options.event_file)]})


def _codes(path: Path | None) -> list[str]:
    from hpc_ecg.safe_reading import check_regular

    if path is None:
        return []
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"--event-file {path} is not text in UTF-8") from None
    codes = [line.strip() for line in text.splitlines() if line.strip()]
    if not codes:
        raise ValueError(f"--event-file {path} holds no codes; expected one per line")
    return codes
