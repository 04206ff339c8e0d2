"""The user's tables of ECGs, events and follow-up, taken apart for the rules; what to know of them.

Comes in: paths and names of columns. Goes out: frames as `apply_rules` takes them, and notes.
Messages name rows, never what is in them.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hpc_ecg.atomic_io import write_text
from hpc_ecg.cohort.dates import Dates, check_zones, read_dates
from hpc_ecg.cohort.rules import Flow, Rules
from hpc_ecg.cohort.table import check_columns, check_unique, clean_patient_ids, read_table

NEW_COLUMNS = ("days_to_event", "days_followed")


@dataclass(frozen=True, kw_only=True)
class SourceTables:
    """The tables and which of their columns hold what, named as on the command line."""

    ecgs: Path
    events: Path
    follow_up: Path | None = None
    """A row per patient. None: its columns are those of the ECGs."""
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
    """Each row is the outcome, whatever its code."""
    event_date_format: str | None = None
    followed_until: str | None = None
    died: str | None = None
    follow_up_patient: str
    follow_up_date_format: str | None = None
    label: str
    """Of the new table."""


@dataclass(frozen=True, kw_only=True)
class CohortTables:
    given: pd.DataFrame
    """The table of ECGs as it is, row for row with `ecgs`."""
    ecgs: pd.DataFrame
    events: pd.DataFrame
    notes: list[str]


def read_tables(sources: SourceTables, age_is_limited: bool) -> CohortTables:
    """ValueError: a column that is missing or would be overwritten, a record listed twice, dates
    that are ambiguous or mix time zones, codes or patients that never meet."""
    given = read_table(sources.ecgs)
    default = "file" if "file" in given and "record" not in given else "record"
    record = default if sources.record is None else sources.record
    age = [sources.age] if age_is_limited else []
    check_columns(given, [sources.patient, sources.time, record, *age], sources.ecgs)
    _check_new(given, sources)
    check_unique(given[record], sources.ecgs)
    times = read_dates(given[sources.time], str(sources.ecgs), sources.date_format)
    patients = clean_patient_ids(given[sources.patient])
    table = pd.DataFrame({"patient": patients, "record": given[record], "time": times.times})
    if age_is_limited:
        table["age"] = pd.to_numeric(given[sources.age].str.strip(), errors="coerce")
    outcome, event_times, notes = _read_events(sources, patients)
    ends, end_times = _read_follow_up(sources, given, patients)
    check_zones([times, event_times, *end_times])
    return CohortTables(given=given, ecgs=table.assign(**ends), events=outcome, notes=notes)


def check_options(rules: Rules, sources: SourceTables) -> None:
    """ValueError: options that do not go together, or that say nothing of a case that must be."""
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
            "--censored exclude or missing: needed with --followed-until and --death censored, "
            "without meaning otherwise"
        )


def write_labelled(
    out: Path, given: pd.DataFrame, labelled: pd.DataFrame, flow: Flow, label: str
) -> None:
    """The rows that stay, in their order: all columns of the table, and the new ones."""
    if len(labelled) == 0:
        reasons = [f"{count.ecgs:,} {count.text}" for count in flow.left_out if count.ecgs]
        raise ValueError(f"no ECG is left: {'; '.join(reasons) or 'the table has no rows'}")
    labels = labelled.astype({"label": "Int64"}).rename(columns={"label": label})
    write_text(out, given.join(labels, how="inner").to_csv(index=False))


def _read_events(sources: SourceTables, known: pd.Series) -> tuple[pd.DataFrame, Dates, list[str]]:
    path, code, prefixes = sources.events, sources.event_code, sources.event_prefix
    table = read_table(path)
    wanted = [sources.event_patient, sources.event_time]
    check_columns(table, wanted if sources.any_event else [*wanted, code], path)
    patients = clean_patient_ids(table[sources.event_patient])
    notes = [_check_meet(known, patients, path)]
    dates = read_dates(table[sources.event_time], str(path), sources.event_date_format)
    outcome = pd.DataFrame({"patient": patients, "time": dates.times})
    if not sources.any_event:
        codes = table[code].str.strip()
        is_outcome = codes.isin(sources.event) | codes.str.startswith(tuple(prefixes))
        if not is_outcome.any():
            raise ValueError(f"{path}: no row of column {code} has such a code")
        unseen = sorted(set(sources.event) - set(codes))
        unseen += [f"{p}…" for p in prefixes if not codes.str.startswith(p).any()]
        notes += [f"codes that no event has: {', '.join(unseen)}"] if unseen else []
        asked = tuple(asked.lower() for asked in [*sources.event, *prefixes])
        alike = codes[~is_outcome & codes.str.lower().str.startswith(asked)]
        if len(alike):
            seen = ", ".join(sorted(set(alike))[:5])
            notes.append(
                f"! {len(alike):,} more events have codes that only begin so, or are written in "
                f"other case ({seen}): they do not count; --event-prefix takes beginnings"
            )
        outcome = outcome[is_outcome]
    named = outcome[outcome["patient"] != ""]
    notes.append(
        f"events of the outcome: {len(outcome):,}, of {named['patient'].nunique():,} patients; "
        f"{len(outcome) - len(named):,} name no patient and are ignored"
    )
    return named, dates, notes


def _read_follow_up(
    sources: SourceTables, given: pd.DataFrame, patients: pd.Series
) -> tuple[dict[str, pd.Series], list[Dates]]:
    """followed_until and died, as far as there are, row for row with the ECGs; their own dates."""
    columns = {"followed_until": sources.followed_until, "died": sources.died}
    names = {new: name for new, name in columns.items() if name is not None}
    path = sources.follow_up or sources.ecgs
    table = given if sources.follow_up is None else read_table(path)
    check_columns(table, list(names.values()), path)
    date_format = sources.follow_up_date_format
    if date_format is None and sources.follow_up is None:
        date_format = sources.date_format
    found = {new: read_dates(table[name], str(path), date_format) for new, name in names.items()}
    ends = {new: dates.times for new, dates in found.items()}
    if sources.died is not None:
        _check_deaths(table[sources.died], ends["died"], path)
    if sources.follow_up is not None:
        check_columns(table, [sources.follow_up_patient], path)
        who = clean_patient_ids(table[sources.follow_up_patient])
        check_unique(who[who != ""], path)
        _check_meet(patients, who, path)
        rows = patients.map(pd.Series(who.index, who).drop("", errors="ignore"))
        ends = {new: times.reindex(rows).set_axis(given.index) for new, times in ends.items()}
    return ends, list(found.values())


def _check_new(given: pd.DataFrame, sources: SourceTables) -> None:
    new = (sources.label, *NEW_COLUMNS)
    if "" in new or len(set(new)) < len(new):
        raise ValueError(f"--label must name a column, and none of {', '.join(NEW_COLUMNS)}")
    taken = [name for name in new if name in given]
    if taken:
        raise ValueError(
            f"{sources.ecgs} has a column {', '.join(taken)} already, which would be overwritten; "
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


def _check_meet(patients: pd.Series, others: pd.Series, path: Path) -> str:
    """A note; ValueError if no patient is in both tables: identifiers are written differently."""
    known = set(patients) - {""}
    both = known & set(others)
    if not both:
        raise ValueError(
            f"{path}: none of its patients has an ECG; are the identifiers written the same way?"
        )
    return f"patients with an ECG and any event: {len(both):,} of {len(known):,}"
