"""Cohort selection and labels: from ECGs and events to a labelled table and its flow.

The window of an ECG at time t is (t + blanking, t + within]. With an event in it, the ECG is 1.
Without one, and followed to the end of the window, it is 0. Without one, but followed for less, it
is censored, never 0. An event that may have come before the ECG is prevalent; if only its day is
known, an event on the day of the ECG is prevalent.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from hpc_ecg.cohort.dates import last_instant

DAYS = {"d": 1.0, "w": 7.0, "m": 365.25 / 12, "y": 365.25}
MAX_DAYS = 200 * 365.25
ASSUMED = " (follow-up is assumed to be complete)"


@dataclass(frozen=True, kw_only=True)
class Rules:
    within: str
    """Prediction horizon: a number with d, w, m or y; a year has 365.25 days, a month 1/12."""
    blanking: str = "0d"
    """Events up to this long after the ECG count as prevalent."""
    keep_prevalent: bool = False
    """Keep ECGs with a prevalent event, which then does not count (for recurrent outcomes)."""
    censored: Literal["exclude", "missing", "ipcw"] | None = None
    """ipcw: without a label, and what is labelled gets weights (censoring.py)."""
    death: Literal["negative", "censored"] | None = None
    """negative: followed until death without the event is 0; censored: death ends follow-up."""
    ecgs_per_patient: Literal["all", "first", "last", "random"] = "all"
    seed: int = 0
    """For the random choice, by a hash of seed, patient and record."""
    min_age: float | None = None
    max_age: float | None = None

    def __post_init__(self) -> None:
        low, high = self.age_limits
        if not low <= high:
            raise ValueError(f"--min-age {low:g} must not be above --max-age {high:g}")
        if parse_span(self.blanking, "--blanking") >= parse_span(self.within, "--within"):
            raise ValueError(
                f"--blanking {self.blanking} must be shorter than --within {self.within}"
            )

    @property
    def age_limits(self) -> tuple[float, float]:
        low, high = self.min_age, self.max_age
        return -np.inf if low is None else low, np.inf if high is None else high


@dataclass(frozen=True, kw_only=True)
class Count:
    text: str
    ecgs: int
    patients: int


@dataclass(frozen=True, kw_only=True)
class Flow:
    """start - left_out = labelled, both for ECGs and for patients."""

    start: Count
    left_out: list[Count]
    """In order. A patient counts at the step that leaves out their last ECG."""
    labelled: Count
    labels: list[Count]
    """A patient can count in several of them."""


def apply_rules(
    ecgs: pd.DataFrame, events: pd.DataFrame, rules: Rules
) -> tuple[pd.DataFrame, Flow]:
    """Label the ECGs that stay: columns `label` (1, 0 or NaN), `days_to_event`, `days_followed`,
    and `exit_days`: until the label was settled, or the ECG censored (0 if nobody knows when).

    `ecgs` has a row per ECG: patient and record (text), time; age (number) if it is limited;
    followed_until unless follow-up is complete for all; died if `death` is set. `events` has a row
    per event of the outcome: patient, time. Times are datetime64[us], NaT if unknown.
    """
    start = _count("in the table", ecgs)
    left_out: list[Count] = []
    ecgs = _with_events(ecgs, events, rules)
    for reason, is_out in _exclusions(ecgs, rules):
        ecgs = _leave_out(ecgs, is_out, reason, left_out)
    # select before labelling: to select by what came after the ECG would bias the cohort
    if rules.ecgs_per_patient != "all":
        reason = f"another ECG of the patient is taken ({rules.ecgs_per_patient})"
        ecgs = _leave_out(ecgs, ~_is_selected(ecgs, rules), reason, left_out)
    is_assumed = "followed_until" not in ecgs
    ecgs = _with_labels(ecgs, rules)
    missing = []
    for reason, is_censored in _censored(ecgs, rules):
        if rules.censored == "exclude":
            ecgs = _leave_out(ecgs, is_censored, reason, left_out)
        else:
            missing.append(_count(f"missing, {reason}", ecgs[is_censored]))
    labels = [
        _count(f"positive: an event within {rules.within}", ecgs[ecgs["label"] == 1]),
        _count("negative" + ASSUMED * is_assumed, ecgs[ecgs["label"] == 0]),
    ]
    labelled = _count("in the cohort", ecgs)
    flow = Flow(start=start, left_out=left_out, labelled=labelled, labels=labels + missing)
    return ecgs[["label", "days_to_event", "days_followed", "exit_days"]], flow


def parse_span(text: str, option: str) -> np.timedelta64:
    """`5y`, `30d` -> microseconds; ValueError names the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([dwmy])", text)
    days = float(match[1]) * DAYS[match[2]] if match else np.inf
    if days > MAX_DAYS:
        raise ValueError(f"{option} must be like 5y, 6m, 2w or 30d, at most 200y; got {text!r}")
    return round(days * 86_400_000_000) * np.timedelta64(1, "us")


def _with_events(ecgs: pd.DataFrame, events: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Add is_undated (the patient has an event without a date), is_prevalent, and event: the time
    of the first one after the window opens."""
    opens = last_instant(ecgs["time"]) + parse_span(rules.blanking, "--blanking")
    dated = events[events["time"].notna()]
    undated = events.loc[events["time"].isna(), "patient"].unique()
    first = dated.groupby("patient")["time"].min().reindex(ecgs["patient"])
    known = ecgs.assign(opens=opens, row=np.arange(len(ecgs)))[opens.notna()]
    after = pd.merge_asof(
        known[["opens", "row", "patient"]].sort_values("opens"),
        dated[["time", "patient"]].rename(columns={"time": "event"}).sort_values("event"),
        left_on="opens",
        right_on="event",
        by="patient",
        direction="forward",
        allow_exact_matches=False,
    )
    event = after.set_index("row")["event"].reindex(np.arange(len(ecgs)))
    return ecgs.assign(
        is_undated=ecgs["patient"].isin(undated),
        is_prevalent=first.to_numpy() <= opens,
        event=event.to_numpy(),
    )


def _exclusions(ecgs: pd.DataFrame, rules: Rules) -> Iterator[tuple[str, pd.Series]]:
    """Each reason to leave an ECG out that is known at the ECG, in order."""
    yield "no patient", ecgs["patient"] == ""
    yield "no readable date of the ECG", ecgs["time"].isna()
    if rules.death is not None:
        yield "the ECG is dated after the death", last_instant(ecgs["died"]) < ecgs["time"]
    low, high = rules.age_limits
    if (low, high) != (-np.inf, np.inf):
        yield "age unknown", ecgs["age"].isna()
        limits = [f"below {low:g}"] * (low > -np.inf) + [f"above {high:g}"] * (high < np.inf)
        yield f"age {' or '.join(limits)}", ~ecgs["age"].between(low, high)
    yield "the patient has an event without a readable date", ecgs["is_undated"]
    if not rules.keep_prevalent:
        is_blanked = parse_span(rules.blanking, "--blanking") > np.timedelta64(0, "us")
        until = f", or up to {rules.blanking} after it" if is_blanked else ""
        yield f"prevalent: an event at or before the ECG{until}", ecgs["is_prevalent"]


def _is_selected(ecgs: pd.DataFrame, rules: Rules) -> pd.Series:
    """One ECG per patient; the record's name decides between ECGs of the same time."""
    key = ecgs["time"]
    if rules.ecgs_per_patient == "random":
        texts = f"{rules.seed}\0" + ecgs["patient"] + "\0" + ecgs["record"]
        key = texts.map(lambda text: hashlib.sha256(text.encode()).digest()).astype(object)
    keep: Literal["first", "last"] = "last" if rules.ecgs_per_patient == "last" else "first"
    ordered = ecgs.assign(key=key).sort_values(["key", "record"])
    return ~ordered.duplicated("patient", keep=keep).reindex(ecgs.index)


def _with_labels(ecgs: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Add label, days_to_event, days_followed; death, if it comes first, ends followed_until."""
    closes = ecgs["time"] + parse_span(rules.within, "--within")
    never = pd.Series(np.datetime64("NaT", "us"), ecgs.index)
    died = never if rules.death is None else ecgs["died"]
    end = pd.concat([ecgs.get("followed_until", never), died], axis=1).min(axis=1)
    is_complete = last_instant(end) >= closes
    if "followed_until" not in ecgs:
        is_complete |= end.isna()
    if rules.death == "negative":  # unless follow-up ended before the death
        is_complete |= last_instant(end) >= died
    label = pd.Series(np.where(is_complete, 0.0, np.nan), ecgs.index)
    label = label.mask(ecgs["event"] <= closes, 1.0)
    ends = [ecgs["event"], closes, died if rules.death == "negative" else never]
    settled = pd.concat(ends, axis=1).min(axis=1)
    return ecgs.assign(
        label=label,
        exit_days=_days(settled.where(label.notna(), end) - ecgs["time"]).clip(lower=0).fillna(0),
        days_to_event=_days(ecgs["event"] - ecgs["time"]),
        days_followed=_days(end - ecgs["time"]),
        followed_until=end,
    )


def _days(spans: pd.Series) -> pd.Series:
    return (spans.dt.total_seconds() / 86_400).round(3)


def _censored(ecgs: pd.DataFrame, rules: Rules) -> Iterator[tuple[str, pd.Series]]:
    if rules.censored is not None:
        is_censored, is_known = ecgs["label"].isna(), ecgs["followed_until"].notna()
        yield "censored: the end of follow-up is unknown", is_censored & ~is_known
        died = " (or died)" if rules.death == "censored" else ""
        yield f"censored: followed for less than the window{died}", is_censored & is_known


def _leave_out(
    ecgs: pd.DataFrame, is_out: pd.Series, reason: str, left_out: list[Count]
) -> pd.DataFrame:
    """The other ECGs; appends to `left_out`."""
    kept = ecgs[~is_out[ecgs.index]]
    before, after = _count(reason, ecgs), _count(reason, kept)
    ecgs_lost, patients_lost = before.ecgs - after.ecgs, before.patients - after.patients
    left_out.append(Count(text=reason, ecgs=ecgs_lost, patients=patients_lost))
    return kept


def _count(text: str, ecgs: pd.DataFrame) -> Count:
    patients = ecgs["patient"]
    return Count(text=text, ecgs=len(ecgs), patients=patients[patients != ""].nunique())
