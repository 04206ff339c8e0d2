"""The user's tables of ECGs, events and follow-up, taken apart for the rules; what to know of them.

Comes in: paths and names of columns. Goes out: frames as `apply_rules` takes them, and notes.
Messages name rows, never what is in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hpc_ecg.data.cohort import check_columns, read_table
from hpc_ecg.data.cohort_rules import Flow, Rules
from hpc_ecg.data.dates import Dates, check_zones, read_dates
from hpc_ecg.writing import write_whole

NEW_COLUMNS = ("days_to_event", "days_followed")


@dataclass(frozen=True, kw_only=True)
class Ecgs:
    path: Path
    patient: str
    time: str
    record: str | None = None
    """Default: `record` or `file`, whichever the table has."""
    age: str | None = None
    """Read only if age is limited."""
    date_format: str | None = None


@dataclass(frozen=True, kw_only=True)
class Events:
    path: Path
    patient: str
    time: str
    code: str | None
    """None: each row is the outcome."""
    codes: Sequence[str] = ()
    prefixes: Sequence[str] = ()
    date_format: str | None = None


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """A column that is None is not known."""

    path: Path | None = None
    """A row per patient. None: the columns are those of the ECGs."""
    patient: str = ""
    until: str | None = None
    died: str | None = None
    date_format: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tables:
    given: pd.DataFrame
    """The table of ECGs as it is, row for row with `ecgs`."""
    ecgs: pd.DataFrame
    events: pd.DataFrame
    notes: list[str]


def read_tables(ecgs: Ecgs, events: Events, follow_up: FollowUp, label: str) -> Tables:
    """ValueError: a column that is missing or would be overwritten, a record listed twice, dates
    that are ambiguous or mix time zones, codes or patients that never meet."""
    given = read_table(ecgs.path)
    default = "file" if "file" in given and "record" not in given else "record"
    record = default if ecgs.record is None else ecgs.record
    age = [] if ecgs.age is None else [ecgs.age]
    check_columns(given, [ecgs.patient, ecgs.time, record, *age], ecgs.path)
    _check_new(given, label, ecgs.path)
    _check_once(given[record], ecgs.path)
    times = read_dates(given[ecgs.time], str(ecgs.path), ecgs.date_format)
    patients = given[ecgs.patient].str.strip()
    table = pd.DataFrame({"patient": patients, "record": given[record], "time": times.times})
    if ecgs.age is not None:
        table["age"] = pd.to_numeric(given[ecgs.age].str.strip(), errors="coerce")
    outcome, event_times, notes = _read_events(events, patients)
    ends, end_times = _read_follow_up(follow_up, given, ecgs.path, patients)
    check_zones([times, event_times, *end_times])
    table = table.assign(**ends)
    return Tables(given=given, ecgs=table, events=outcome, notes=notes)


def check_asked(rules: Rules, events: Events, follow_up: FollowUp) -> None:
    """ValueError: options that do not go together, or that say nothing of a case that must be."""
    codes = [*events.codes, *events.prefixes]
    if (events.code is None) == bool(codes) or not all(codes):
        raise ValueError(
            "the outcome: give --event, --event-prefix or --event-file, not empty, or --any-event"
        )
    if (follow_up.died is None) != (rules.death is None):
        raise ValueError("--died COLUMN and --death negative or censored: give both, or neither")
    if follow_up.path is not None and follow_up.until is None and follow_up.died is None:
        raise ValueError("--follow-up FOLLOW needs --followed-until or --died, a column of it")
    can_be_censored = follow_up.until is not None or rules.death == "censored"
    if can_be_censored != (rules.censored is not None):
        raise ValueError(
            "--censored exclude or missing: needed with --followed-until and --death censored, "
            "without meaning otherwise"
        )


def describe(rules: Rules, follow_up: FollowUp) -> list[str]:
    """In words, what the numbers rest on."""
    earlier = "do not count" if rules.keep_prevalent else "leave the ECG out as prevalent"
    end = "assumed complete for all" if follow_up.until is None else f"until {follow_up.until}"
    death = {
        None: "no date is given",
        "negative": "who died in the window without an event, and was followed until then, is 0",
        "censored": "ends the follow-up",
    }
    return [
        f"window: after {rules.blanking}, up to {rules.within} (a year is 365.25 days); earlier "
        f"events {earlier}; where only days are known, so do events on the day of the ECG",
        f"follow-up: {end}; death: {death[rules.death]}",
    ]


def write_labelled(
    out: Path, given: pd.DataFrame, labelled: pd.DataFrame, flow: Flow, label: str
) -> None:
    """The rows that stay, in their order: all columns of the table, and the new ones."""
    if len(labelled) == 0:
        reasons = [f"{count.ecgs:,} {count.text}" for count in flow.left_out if count.ecgs]
        raise ValueError(f"no ECG is left: {'; '.join(reasons) or 'the table has no rows'}")
    labels = labelled.astype({"label": "Int64"}).rename(columns={"label": label})
    table = given.join(labels, how="inner")
    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda path: table.to_csv(path, index=False),
        ".tsv": lambda path: table.to_csv(path, index=False, sep="\t"),
        ".parquet": lambda path: table.to_parquet(path, index=False),
    }
    write_whole(out, writers[out.suffix])


def _read_events(events: Events, known: pd.Series) -> tuple[pd.DataFrame, Dates, list[str]]:
    table = read_table(events.path)
    code = [] if events.code is None else [events.code]
    check_columns(table, [events.patient, events.time, *code], events.path)
    patients = table[events.patient].str.strip()
    notes = [_check_meet(known, patients, events.path)]
    dates = read_dates(table[events.time], str(events.path), events.date_format)
    outcome = pd.DataFrame({"patient": patients, "time": dates.times})
    if events.code is not None:
        codes = table[events.code].str.strip()
        is_outcome = codes.isin(events.codes) | codes.str.startswith(tuple(events.prefixes))
        if not is_outcome.any():
            raise ValueError(f"{events.path}: no row of column {events.code} has such a code")
        unseen = sorted(set(events.codes) - set(codes))
        unseen += [f"{p}…" for p in events.prefixes if not codes.str.startswith(p).any()]
        notes += [f"codes that no event has: {', '.join(unseen)}"] if unseen else []
        outcome = outcome[is_outcome]
    named = outcome[outcome["patient"] != ""]
    notes.append(
        f"events of the outcome: {len(outcome):,}, of {named['patient'].nunique():,} patients; "
        f"{len(outcome) - len(named):,} name no patient and are ignored"
    )
    return named, dates, notes


def _read_follow_up(
    follow_up: FollowUp, given: pd.DataFrame, ecgs_path: Path, patients: pd.Series
) -> tuple[dict[str, pd.Series], list[Dates]]:
    """followed_until and died, as far as there are, row for row with the ECGs; their own dates."""
    columns = {"followed_until": follow_up.until, "died": follow_up.died}
    names = {new: name for new, name in columns.items() if name is not None}
    path = follow_up.path or ecgs_path
    table = given if follow_up.path is None else read_table(path)
    check_columns(table, list(names.values()), path)
    found = [read_dates(table[n], str(path), follow_up.date_format) for n in names.values()]
    ends = {new: dates.times for new, dates in zip(names, found, strict=True)}
    if follow_up.died is not None:
        _check_deaths(table[follow_up.died], ends["died"], path)
    if follow_up.path is not None:
        check_columns(table, [follow_up.patient], path)
        who = table[follow_up.patient].str.strip()
        _check_once(who[who != ""], path)
        _check_meet(patients, who, path)
        rows = patients.map(pd.Series(who.index, who).drop("", errors="ignore"))
        ends = {new: times.reindex(rows).set_axis(given.index) for new, times in ends.items()}
    return ends, found


def _check_new(given: pd.DataFrame, label: str, path: Path) -> None:
    if label in ("", *NEW_COLUMNS):
        raise ValueError(f"--label must name a column, and none of {', '.join(NEW_COLUMNS)}")
    taken = [name for name in (label, *NEW_COLUMNS) if name in given]
    if taken:
        raise ValueError(
            f"{path} has a column {', '.join(taken)} already, which would be overwritten; "
            "rename it (the label's name is given by --label)"
        )


def _check_deaths(column: pd.Series, died: pd.Series, path: Path) -> None:
    """An empty cell says alive, so that one which cannot be read must not be taken for empty."""
    wrong = column.index[died.isna() & (column.str.strip() != "")]
    if len(wrong):
        raise ValueError(
            f"{path}: column {column.name}, row {wrong[0] + 1} is no date ({len(wrong)} such); "
            "give the date of death, or nothing for who did not die"
        )


def _check_once(column: pd.Series, path: Path) -> None:
    twice = column.index[column.duplicated()]
    if len(twice):
        raise ValueError(
            f"{path}: column {column.name}, row {twice[0] + 1} repeats an earlier row "
            f"({len(twice)} such rows); each row must be one of its own"
        )


def _check_meet(patients: pd.Series, others: pd.Series, path: Path) -> str:
    """A note; ValueError if no patient is in both tables: identifiers are written differently."""
    known = set(patients) - {""}
    both = known & set(others)
    if not both:
        raise ValueError(
            f"{path}: none of its patients has an ECG; are the identifiers written the same way?"
        )
    return f"patients with an ECG and any event: {len(both):,} of {len(known):,}"
