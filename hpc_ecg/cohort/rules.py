"""Who is in the cohort, and with which label: ECGs and events in, a labelled table and counts out.

The window of an ECG at t is (t + blanking, t + within]. An event in it: 1. None, and followed to
its end: 0. None, but followed for less: censored, which is never 0. What may have happened before
the ECG is prevalent: where a day is all that is known, events of that day are.
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
    """How far to look ahead: a number with d, w, m or y; a year has 365.25 days, a month 1/12."""
    blanking: str = "0d"
    """Events until then after the ECG count as prevalent."""
    keep_prevalent: bool = False
    """Events before the window neither exclude the ECG nor count (for what can happen again)."""
    censored: Literal["exclude", "missing"] | None = None
    death: Literal["negative", "censored"] | None = None
    """negative: who was followed until death without the event is 0; censored: follow-up ended."""
    ecgs_per_patient: Literal["all", "first", "last", "random"] = "all"
    seed: int = 0
    """Of the choice at random: a hash of seed, patient and record."""
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
    """What each step left out adds up to what is labelled, for ECGs and for patients."""

    start: Count
    left_out: list[Count]
    """In order; the patients are those without any ECG left."""
    labelled: Count
    labels: list[Count]
    """A patient can be in several of them."""


def apply_rules(
    ecgs: pd.DataFrame, events: pd.DataFrame, rules: Rules
) -> tuple[pd.DataFrame, Flow]:
    """Label the ECGs that stay: columns `label` (1, 0 or NaN), `days_to_event`, `days_followed`.

    `ecgs`, a row each: patient and record (text), time; age (number) if it is limited;
    followed_until unless follow-up is complete for all; died if `death` is set. `events`, of the
    outcome: patient, time. Times are datetime64[us], NaT if unknown.
    """
    start = _count("in the table", ecgs)
    left_out: list[Count] = []
    ecgs = _with_events(ecgs, events, rules)
    for reason, is_out in _not_eligible(ecgs, rules):
        ecgs = _leave_out(ecgs, is_out, reason, left_out)
    # chosen by what is known at the ECG: choosing by what came later would be a bias
    if rules.ecgs_per_patient != "all":
        reason = f"another ECG of the patient is taken ({rules.ecgs_per_patient})"
        ecgs = _leave_out(ecgs, ~_is_chosen(ecgs, rules), reason, left_out)
    is_assumed = "followed_until" not in ecgs
    ecgs = _with_labels(ecgs, rules)
    missing = []
    for reason, is_cut in _censored(ecgs, rules):
        if rules.censored == "exclude":
            ecgs = _leave_out(ecgs, is_cut, reason, left_out)
        else:
            missing.append(_count(f"missing, {reason}", ecgs[is_cut]))
    labels = [
        _count(f"positive: an event within {rules.within}", ecgs[ecgs["label"] == 1]),
        _count("negative" + ASSUMED * is_assumed, ecgs[ecgs["label"] == 0]),
    ]
    labelled = _count("in the cohort", ecgs)
    flow = Flow(start=start, left_out=left_out, labelled=labelled, labels=labels + missing)
    return ecgs[["label", "days_to_event", "days_followed"]], flow


def parse_span(text: str, option: str) -> np.timedelta64:
    """`5y`, `30d` -> microseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([dwmy])", text)
    days = float(match[1]) * DAYS[match[2]] if match else np.inf
    if days > MAX_DAYS:
        raise ValueError(f"{option} must be like 5y, 6m, 2w or 30d, at most 200y; got {text!r}")
    return round(days * 86_400_000_000) * np.timedelta64(1, "us")


def _with_events(ecgs: pd.DataFrame, events: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """More columns: is_undated, is_prevalent, event (the first since the window opens)."""
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


def _not_eligible(ecgs: pd.DataFrame, rules: Rules) -> Iterator[tuple[str, pd.Series]]:
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
        blanked = parse_span(rules.blanking, "--blanking") > np.timedelta64(0, "us")
        until = f", or up to {rules.blanking} after it" if blanked else ""
        yield f"prevalent: an event at or before the ECG{until}", ecgs["is_prevalent"]


def _is_chosen(ecgs: pd.DataFrame, rules: Rules) -> pd.Series:
    """One of each patient; ECGs of the same time in the order of their records."""
    key = ecgs["time"]
    if rules.ecgs_per_patient == "random":
        pairs = zip(ecgs["patient"], ecgs["record"], strict=True)
        key = pd.Series([_hash(rules.seed, *pair) for pair in pairs], ecgs.index, dtype=object)
    ordered = ecgs.assign(key=key).sort_values(["key", "record"])
    is_last = rules.ecgs_per_patient == "last"
    return ~ordered.duplicated("patient", keep="last" if is_last else "first").reindex(ecgs.index)


def _hash(seed: int, patient: str, record: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}\0{record}".encode()).digest()


def _with_labels(ecgs: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """label, days_to_event, days_followed, and followed_until: the end by follow-up or death."""
    closes = ecgs["time"] + parse_span(rules.within, "--within")
    never = pd.Series(np.datetime64("NaT", "us"), ecgs.index)
    died = never if rules.death is None else ecgs["died"]
    end = pd.concat([ecgs.get("followed_until", never), died], axis=1).min(axis=1)
    is_complete = last_instant(end) >= closes
    if "followed_until" not in ecgs:
        is_complete |= end.isna()
    if rules.death == "negative":  # but not where follow-up ended before the death
        is_complete |= last_instant(end) >= died
    label = pd.Series(np.where(is_complete, 0.0, np.nan), ecgs.index)
    return ecgs.assign(
        label=label.mask(ecgs["event"] <= closes, 1.0),
        days_to_event=_days(ecgs["event"] - ecgs["time"]),
        days_followed=_days(end - ecgs["time"]),
        followed_until=end,
    )


def _days(spans: pd.Series) -> pd.Series:
    return (spans.dt.total_seconds() / 86_400).round(3)


def _censored(ecgs: pd.DataFrame, rules: Rules) -> Iterator[tuple[str, pd.Series]]:
    if rules.censored is not None:
        is_cut, is_known = ecgs["label"].isna(), ecgs["followed_until"].notna()
        yield "censored: the end of follow-up is unknown", is_cut & ~is_known
        died = " (or died)" if rules.death == "censored" else ""
        yield f"censored: followed for less than the window{died}", is_cut & is_known


def _leave_out(
    ecgs: pd.DataFrame, is_out: pd.Series, reason: str, left_out: list[Count]
) -> pd.DataFrame:
    left = ecgs[~is_out[ecgs.index]]
    before, after = _count(reason, ecgs), _count(reason, left)
    lost = before.ecgs - after.ecgs, before.patients - after.patients
    left_out.append(Count(text=reason, ecgs=lost[0], patients=lost[1]))
    return left


def _count(text: str, ecgs: pd.DataFrame) -> Count:
    return Count(
        text=text, ecgs=len(ecgs), patients=ecgs.loc[ecgs["patient"] != "", "patient"].nunique()
    )
