"""The user's tables of ECGs, events and follow-up, read into the frames that `apply_rules` takes.

Notes say what the user should know of the tables. Notes and messages name rows and not what they
hold, except for an identifier in two spellings.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hpc_ecg.atomic_io import write_text
from hpc_ecg.cohort.dates import Dates, check_zones, read_dates
from hpc_ecg.cohort.identifiers import check_spellings
from hpc_ecg.cohort.rules import Flow, Rules
from hpc_ecg.cohort.table import WEIGHT_PREFIX, check_columns, check_unique, patient_ids
from hpc_ecg.cohort.table_files import read_table
from hpc_ecg.ecg.age_sex import read_ages
from hpc_ecg.reporting.escape import csv_text

NEW_COLUMNS = ("days_to_event", "days_followed")


@dataclass(frozen=True, kw_only=True)
class SourceTables:
    """The tables and the meaning of their columns, named as on the command line."""

    ecgs: Path
    events: Path
    follow_up: Path | None = None
    """A row per patient. None: the table of ECGs has its columns."""
    patient: str
    time: str
    record: str | None = None
    """Default: `record` or `file`, whichever the table has."""
    age: str
    """Read only if age is limited."""
    date_format: str | None = None
    event_patient: str
    event_time: str
    event_code: str
    event: list[str]
    event_prefix: list[str]
    any_event: bool = False
    """Every row is an event of the outcome, whatever its code."""
    event_date_format: str | None = None
    followed_until: str | None = None
    died: str | None = None
    follow_up_patient: str
    follow_up_date_format: str | None = None
    label: str
    """Name of the new label column."""
    ids_as_written: bool = False
    """Two spellings of a patient, such as 012 and 12, are two patients."""


@dataclass(frozen=True, kw_only=True)
class CohortTables:
    given: pd.DataFrame
    """The user's table of ECGs, row for row with `ecgs`."""
    ecgs: pd.DataFrame
    events: pd.DataFrame
    notes: list[str]


def read_tables(sources: SourceTables, age_is_limited: bool) -> CohortTables:
    """Read the tables as `apply_rules` takes them.

    ValueError: a column that is missing or would be overwritten, a record listed twice, ambiguous
    dates, mixed time zones, codes that no event has, tables without a common patient, a patient in
    two spellings.
    """
    given = read_table(sources.ecgs)
    default = "file" if "file" in given and "record" not in given else "record"
    record = default if sources.record is None else sources.record
    age = [sources.age] if age_is_limited else []
    check_columns(given, [sources.patient, sources.time, record, *age], sources.ecgs)
    _check_new_columns(given, sources)
    check_unique(given[record], sources.ecgs)
    times = read_dates(given[sources.time], str(sources.ecgs), sources.date_format)
    patients = patient_ids(given[sources.patient])
    ecgs = pd.DataFrame({"patient": patients, "record": given[record], "time": times.times})
    remarks = []
    if age_is_limited:
        ages = read_ages(given[sources.age], shown=False)
        ecgs["age"] = pd.to_numeric(ages.values)
        remarks = [f"{sources.ecgs.name}: {ages.remark}"]
    events, event_times, notes = _read_events(sources, patients)
    ends, end_times = _read_follow_up(sources, given, patients)
    dates = [times, event_times, *end_times]
    check_zones(dates)
    remarks += [read.remark for read in dates]
    notes = [remark for remark in remarks if "NOT" in remark or "capped" in remark] + notes
    return CohortTables(given=given, ecgs=ecgs.assign(**ends), events=events, notes=notes)


def check_options(rules: Rules, sources: SourceTables) -> None:
    """Raise ValueError for options that contradict or lack one another."""
    codes = [*sources.event, *sources.event_prefix]
    if sources.any_event == bool(codes) or not all(codes):
        raise ValueError(
            "the outcome: give --event, --event-prefix or --event-file, not empty, or --any-event"
        )
    has_end, has_death = sources.followed_until is not None, sources.died is not None
    if has_death != (rules.death is not None):
        raise ValueError("--died COLUMN and --death negative or censored: give both, or neither")
    if sources.follow_up is not None and not (has_end or has_death):
        raise ValueError("--follow-up FOLLOW needs --followed-until or --died, a column of it")
    if (has_end or rules.death == "censored") != (rules.censored is not None):
        raise ValueError(
            "--censored exclude, missing or ipcw: needed with --followed-until and --death "
            "censored, without effect otherwise"
        )


def write_labelled(
    out: Path, given: pd.DataFrame, labelled: pd.DataFrame, flow: Flow, label: str
) -> None:
    """Write the rows that stay, in their order: all columns of the table, and the new ones."""
    if len(labelled) == 0:
        reasons = [f"{count.ecgs:,} {count.text}" for count in flow.left_out if count.ecgs]
        raise ValueError(f"no ECG is left: {'; '.join(reasons) or 'the table has no rows'}")
    labels = labelled.drop(columns="exit_days", errors="ignore").astype({"label": "Int64"})
    labels = labels.rename(columns={"label": label, "ipcw": WEIGHT_PREFIX + label})
    write_text(out, csv_text(given.loc[labels.index].join(labels)), about_people=True)


def _read_events(
    sources: SourceTables, ecg_patients: pd.Series
) -> tuple[pd.DataFrame, Dates, list[str]]:
    """The events of the outcome, the dates of all events, and notes."""
    path, code = sources.events, [] if sources.any_event else [sources.event_code]
    table = read_table(path)
    check_columns(table, [sources.event_patient, sources.event_time, *code], path)
    patients = patient_ids(table[sources.event_patient])
    notes = _check_overlap(sources, ecg_patients, patients, path)
    dates = read_dates(table[sources.event_time], str(path), sources.event_date_format)
    events = pd.DataFrame({"patient": patients, "time": dates.times})
    if not sources.any_event:
        is_outcome, code_notes = _match_codes(table[sources.event_code].str.strip(), sources)
        events, notes = events[is_outcome], notes + code_notes
    named = events[events["patient"] != ""]
    notes.append(
        f"events of the outcome: {len(events):,}, of {named['patient'].nunique():,} patients; "
        f"{len(events) - len(named):,} name no patient and are ignored"
    )
    return named, dates, notes


def _match_codes(codes: pd.Series, sources: SourceTables) -> tuple[pd.Series, list[str]]:
    """Which events have a code of the outcome; notes on codes that match nothing or nearly."""
    exact, prefixes = sources.event, tuple(sources.event_prefix)
    is_outcome = codes.isin(exact) | codes.str.startswith(prefixes)
    if not is_outcome.any():
        bare = tuple(code.lower().replace(".", "") for code in [*exact, *prefixes])
        near = sorted(set(codes[codes.str.lower().str.replace(".", "").str.startswith(bare)]))
        cure = f"; codes that begin so: {', '.join(near[:5])}; --event-prefix matches beginnings"
        raise ValueError(
            f"{sources.events}: no row of column {sources.event_code} has such a code"
            + (cure if near else "")
        )
    unseen = sorted(set(exact) - set(codes))
    unseen += [f"{prefix}…" for prefix in prefixes if not codes.str.startswith(prefix).any()]
    notes = [f"codes that no event has: {', '.join(unseen)}"] if unseen else []
    lower = tuple(code.lower() for code in [*exact, *prefixes])
    similar = codes[~is_outcome & codes.str.lower().str.startswith(lower)]
    if len(similar):
        seen = ", ".join(sorted(set(similar))[:5])
        notes.append(
            f"! {len(similar):,} more events have codes that only begin like these, or differ in "
            f"case ({seen}): they do not count; --event-prefix matches beginnings"
        )
    return is_outcome, notes


def _read_follow_up(
    sources: SourceTables, given: pd.DataFrame, patients: pd.Series
) -> tuple[dict[str, pd.Series], list[Dates]]:
    """followed_until and died if they are given, row for row with the ECGs; the dates as read."""
    options = {"followed_until": sources.followed_until, "died": sources.died}
    columns = {name: column for name, column in options.items() if column is not None}
    path, date_format = sources.follow_up, sources.follow_up_date_format
    if path is None:
        path, table = sources.ecgs, given
        date_format = sources.date_format if date_format is None else date_format
    else:
        table = read_table(path)
    check_columns(table, list(columns.values()), path)
    dates = {n: read_dates(table[column], str(path), date_format) for n, column in columns.items()}
    ends = {name: read.times for name, read in dates.items()}
    if sources.died is not None:
        _check_deaths(table[sources.died], ends["died"], path)
    if sources.follow_up is not None:
        check_columns(table, [sources.follow_up_patient], path)
        ids = patient_ids(table[sources.follow_up_patient])
        check_unique(ids[ids != ""], path)
        _check_overlap(sources, patients, ids, path)
        rows = patients.map(pd.Series(ids.index, ids).drop("", errors="ignore"))
        ends = {name: times.reindex(rows).set_axis(given.index) for name, times in ends.items()}
    return ends, list(dates.values())


def _check_new_columns(given: pd.DataFrame, sources: SourceTables) -> None:
    new = (sources.label, *NEW_COLUMNS, WEIGHT_PREFIX + sources.label)
    if "" in new or len(set(new)) < len(new):
        raise ValueError(f"--label must name a column, and none of {', '.join(NEW_COLUMNS)}")
    taken = [name for name in new if name in given]
    if taken:
        raise ValueError(
            f"{sources.ecgs} has a column {', '.join(taken)} already, which would be overwritten; "
            "rename it (--label sets the label's name)"
        )


def _check_deaths(column: pd.Series, died: pd.Series, path: Path) -> None:
    """An empty cell means alive, so an unreadable one must not pass for empty."""
    wrong = column.index[died.isna() & (column.str.strip() != "")]
    if len(wrong):
        raise ValueError(
            f"{path}: column {column.name}, row {wrong[0] + 1} is no date ({len(wrong)} such); "
            "write the date of death, or nothing for a patient who did not die"
        )


def _check_overlap(
    sources: SourceTables, ecg_patients: pd.Series, others: pd.Series, path: Path
) -> list[str]:
    """Notes; ValueError if a patient has two spellings, or the tables share no patient."""
    ids = {sources.ecgs.name: ecg_patients, f"{path.name}, column {others.name}": others}
    check_spellings(ids, sources.ids_as_written)
    known, named = set(ecg_patients) - {""}, others[others != ""].drop_duplicates()
    without = named[~named.isin(known)]
    if len(without) == len(named):
        raise ValueError(
            f"{path}: none of its patients has an ECG; are the identifiers written the same way?"
        )
    notes = [
        f"patients of {path.name} without an ECG: {len(without):,} of {len(named):,}, "
        f"such as that of row {row + 1}"
        for row in without.index[:1]
    ]
    shared = len(named) - len(without)
    return [*notes, f"patients with an ECG and any event: {shared:,} of {len(known):,}"]
