"""The rules against a slow and obvious version, and the cases that decide a study."""

import hashlib
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_ecg.cohort.rules import Rules, apply_rules, parse_span

DAY = timedelta(days=1)
START = datetime(2019, 3, 1)
SPANS = {"0d": timedelta(0), "2d": 2 * DAY, "5d": 5 * DAY, "1w": 7 * DAY}


def frames(ecgs, events):
    """Lists of dicts -> the frames that `apply_rules` takes."""
    of_ecgs = pd.DataFrame(ecgs)
    for name in of_ecgs.columns.intersection(["time", "followed_until", "died"]):
        of_ecgs[name] = pd.to_datetime(of_ecgs[name]).astype("datetime64[us]")
    of_events = pd.DataFrame(events, columns=["patient", "time"]).astype({"patient": str})
    of_events["time"] = pd.to_datetime(of_events["time"], format="ISO8601").astype("datetime64[us]")
    return of_ecgs, of_events


def last_of(time):
    return time + DAY - timedelta(microseconds=1) if time == time.replace(hour=0) else time


def follow(ecgs, events, rules):
    """The ECGs that stay and, for each rule, a word of its reason, ECGs left out, patients lost."""
    left, steps = list(ecgs), []

    def leave_out(word, is_out):
        nonlocal left
        left, before = [ecg for ecg in left if not is_out(ecg)], left
        steps.append((word, len(before) - len(left), patients(before) - patients(left)))

    def prevalent(ecg):
        until = last_of(ecg["time"]) + SPANS[rules.blanking]
        return any(e["patient"] == ecg["patient"] and e["time"] <= until for e in events)

    leave_out("no patient", lambda ecg: ecg["patient"] == "")
    leave_out("no readable date", lambda ecg: ecg["time"] is None)
    if rules.death:
        leave_out("death", lambda ecg: ecg["died"] and last_of(ecg["died"]) < ecg["time"])
    if rules.min_age is not None or rules.max_age is not None:
        leave_out("age unknown", lambda ecg: ecg["age"] is None)
        low, high = rules.min_age or 0, rules.max_age or 999
        leave_out("age", lambda ecg: not low <= ecg["age"] <= high)
    undated = [event["patient"] for event in events if event["time"] is None]
    leave_out("event without a readable date", lambda ecg: ecg["patient"] in undated)
    if not rules.keep_prevalent:
        leave_out("prevalent", prevalent)
    if rules.ecgs_per_patient != "all":
        chosen = {}
        for ecg in left:
            chosen.setdefault(ecg["patient"], []).append(ecg)
        taken = [one_of(group, rules)["record"] for group in chosen.values()]
        leave_out("another ECG", lambda ecg: ecg["record"] not in taken)
    if rules.censored == "exclude":
        leave_out(
            "end of follow-up is unknown", lambda ecg: label_of(ecg, events, rules) == "unknown"
        )
        leave_out("less than the window", lambda ecg: label_of(ecg, events, rules) == "cut")
    return left, steps


def one_of(group, rules):
    def by_hash(ecg):
        text = f"{rules.seed}\0{ecg['patient']}\0{ecg['record']}"
        return hashlib.sha256(text.encode()).digest()

    in_time = sorted(group, key=lambda ecg: (ecg["time"], ecg["record"]))
    if rules.ecgs_per_patient == "random":
        return min(group, key=by_hash)
    return in_time[0] if rules.ecgs_per_patient == "first" else in_time[-1]


def next_event(ecg, events, rules):
    opens = last_of(ecg["time"]) + SPANS[rules.blanking]
    times = [e["time"] for e in events if e["patient"] == ecg["patient"] and e["time"] > opens]
    return min(times, default=None)


def end_of(ecg):
    ends = [ecg.get("followed_until"), ecg.get("died")]
    return min((time for time in ends if time), default=None)


def label_of(ecg, events, rules):
    event, closes = next_event(ecg, events, rules), ecg["time"] + SPANS[rules.within]
    if event is not None and event <= closes:
        return 1
    followed, died = ecg.get("followed_until"), ecg.get("died")
    if rules.death == "negative" and died and (followed is None or last_of(followed) >= died):
        return 0
    end = end_of(ecg)
    if end is None:
        return "unknown" if "followed_until" in ecg else 0
    return 0 if last_of(end) >= closes else "cut"


def patients(ecgs):
    return len({ecg["patient"] for ecg in ecgs} - {""})


# days and half days: both sides of every edge are met often
TIMES = st.integers(0, 16).map(lambda halves: START + halves * DAY / 2)


@st.composite
def cohorts(draw):
    has_end, death = draw(st.booleans()), draw(st.sampled_from([None, "negative", "censored"]))
    unlikely = draw(st.booleans())
    columns = {"patient": st.sampled_from(["a", "b", "c", *[""] * unlikely])}
    columns["time"] = st.none() | TIMES if unlikely else TIMES
    columns["age"] = st.sampled_from([18, 60, 90, *[None, 17, 91] * unlikely])
    columns |= {"followed_until": st.none() | TIMES} if has_end else {}
    columns |= {"died": st.none() | TIMES} if death else {}
    ecgs = draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=8))
    names = draw(st.permutations(range(len(ecgs))))
    ecgs = [{**ecg, "record": f"r{name}"} for ecg, name in zip(ecgs, names, strict=True)]
    event = {"patient": st.sampled_from(["a", "b", "x"]), "time": TIMES}
    events = draw(st.lists(st.fixed_dictionaries(event), max_size=6))
    events += [{"patient": "b", "time": None}] * unlikely
    is_cut = has_end or death == "censored"
    rules = Rules(
        within=draw(st.sampled_from(["5d", "1w"])),
        blanking=draw(st.sampled_from(["0d", "2d"])),
        keep_prevalent=draw(st.booleans()),
        censored=draw(st.sampled_from(["exclude", "missing"])) if is_cut else None,
        death=death,
        ecgs_per_patient=draw(st.sampled_from(["all", "first", "last", "random"])),
        seed=draw(st.integers(0, 3)),
        min_age=draw(st.none() | st.just(18.0)),
        max_age=draw(st.none() | st.just(90.0)),
    )
    return ecgs, events, rules


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cohorts())
def test_the_rules_agree_with_a_slow_and_obvious_version_and_the_counts_add_up(cohort):
    ecgs, events, rules = cohort
    table, flow = apply_rules(*frames(ecgs, events), rules)
    left, steps = follow(ecgs, events, rules)
    assert [(count.ecgs, count.patients) for count in flow.left_out] == [s[1:] for s in steps]
    assert all(word in count.text for count, (word, *_) in zip(flow.left_out, steps, strict=True))
    for name, number in (("ecgs", len(ecgs)), ("patients", patients(ecgs))):
        lost = sum(getattr(count, name) for count in flow.left_out)
        assert getattr(flow.start, name) == number == getattr(flow.labelled, name) + lost
    assert sum(count.ecgs for count in flow.labels) == flow.labelled.ecgs == len(table)
    assert table.index.tolist() == [row for row, ecg in enumerate(ecgs) if ecg in left]
    labels = [label_of(ecg, events, rules) for ecg in left]
    counts = [labels.count(label) for label in (1, 0, "unknown", "cut")]
    assert [c.ecgs for c in flow.labels] == counts[: 4 if rules.censored == "missing" else 2]
    for ecg, label, row in zip(left, labels, table.itertuples(), strict=True):
        np.testing.assert_equal(row.label, label if label in (0, 1) else np.nan)
        event, end = next_event(ecg, events, rules), end_of(ecg)
        for time, days in ((event, row.days_to_event), (end, row.days_followed)):
            expected = np.nan if time is None else (time - ecg["time"]) / DAY
            assert days == pytest.approx(expected, abs=1e-3, nan_ok=True)


@settings(max_examples=10, deadline=None)
@given(cohorts(), st.randoms())
def test_the_order_of_the_rows_changes_nothing(cohort, random):
    ecgs, events, rules = cohort
    of_ecgs, of_events = frames(ecgs, events)
    shuffled = of_ecgs.sample(frac=1, random_state=random.randint(0, 99))
    table, flow = apply_rules(of_ecgs, of_events, rules)
    other, other_flow = apply_rules(
        shuffled.reset_index(drop=True), of_events[::-1].reset_index(drop=True), rules
    )
    assert flow == other_flow
    pd.testing.assert_frame_equal(
        table, other.set_axis(shuffled.index[other.index]).sort_index(), check_index_type=False
    )


def one_label(ecg, events, **rules):
    """The label of a single ECG at noon of 2019-03-01; None if it is left out."""
    ecg = {"patient": "a", "record": "r", "time": "2019-03-01T12:00"} | ecg
    rows = [{"patient": "a", "time": time} for time in events]
    table, _ = apply_rules(*frames([ecg], rows), Rules(**({"within": "5y"} | rules)))
    return None if len(table) == 0 else table["label"].tolist()[0]


def test_a_patient_who_is_followed_for_less_than_the_window_is_never_negative():
    short = {"followed_until": "2023-03-01"}
    assert one_label(short, [], censored="exclude") is None
    assert np.isnan(one_label(short, [], censored="missing"))
    assert one_label(short, ["2021-01-01"], censored="exclude") == 1
    assert np.isnan(one_label({"followed_until": None}, [], censored="missing"))
    assert one_label({"followed_until": "2024-03-01"}, [], censored="missing") == 0


def test_five_calendar_years_of_follow_up_are_enough_for_a_window_of_five_years():
    for year in (2016, 2017, 2018, 2019):
        ecg = {"time": f"{year}-05-03", "followed_until": f"{year + 5}-05-03"}
        assert one_label(ecg, [], censored="missing") == 0


def test_an_event_on_the_day_of_the_ecg_is_prevalent_unless_both_times_are_known():
    assert one_label({}, ["2019-03-01"]) is None
    assert one_label({"time": "2019-03-01"}, ["2019-03-01T15:00"]) is None
    assert one_label({}, ["2019-03-01T12:00"]) is None
    assert one_label({}, ["2019-03-01T12:01"]) == 1
    assert one_label({}, ["2019-03-02"]) == 1


def test_events_within_the_blanking_time_are_prevalent_even_if_another_follows():
    assert one_label({}, ["2019-03-31T12:00", "2020-01-01"], blanking="30d") is None
    assert one_label({}, ["2019-03-31T12:01"], blanking="30d") == 1


def test_kept_prevalent_ecgs_are_labelled_by_the_next_event():
    assert one_label({}, ["2010-01-01"], keep_prevalent=True) == 0
    assert one_label({}, ["2010-01-01", "2019-04-01"], keep_prevalent=True) == 1
    early = ["2010-01-01", "2019-03-31T12:00"]
    assert one_label({}, early, keep_prevalent=True, blanking="30d") == 0


def test_between_two_ecgs_of_the_same_time_the_name_decides_not_the_row():
    for names in (("r1", "r2"), ("r2", "r1")):
        ecgs, events = frames(
            [{"patient": "a", "record": name, "time": "2019-03-01"} for name in names], []
        )
        for which, taken in (("first", "r1"), ("last", "r2")):
            table, _ = apply_rules(ecgs, events, Rules(within="5y", ecgs_per_patient=which))
            assert ecgs["record"][table.index].tolist() == [taken]


def test_death_is_negative_or_ends_follow_up_as_requested():
    died = {"followed_until": "2021-01-01", "died": "2021-01-01T09:00"}
    assert one_label(died, [], death="negative", censored="missing") == 0
    assert np.isnan(one_label(died, [], death="censored", censored="missing"))
    lost_before = {"followed_until": "2020-01-01", "died": "2021-01-01"}
    assert np.isnan(one_label(lost_before, [], death="negative", censored="missing"))
    assert one_label({"died": "2019-02-28"}, [], death="negative") is None


@pytest.mark.parametrize(
    ("text", "days"), [("5y", 1826.25), ("6m", 182.625), ("2w", 14), ("30d", 30), ("0.5y", 182.625)]
)
def test_a_year_has_365_25_days(text, days):
    assert parse_span(text, "--within") / np.timedelta64(1, "D") == days


@pytest.mark.parametrize(
    "text", ["", "5", "y", "-5y", "5 y", "5Y", "5years", "201y", "1e9y", "nany"]
)
def test_a_span_without_a_unit_or_beyond_200_years_is_refused(text):
    with pytest.raises(ValueError, match="--within must be like 5y"):
        Rules(within=text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blanking": "5y"}, "--blanking 5y must be shorter"),
        ({"min_age": 50, "max_age": 40}, "--min-age 50 must not be above"),
        ({"min_age": float("nan")}, "--min-age nan"),
    ],
)
def test_contradictory_rules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Rules(**{"within": "5y"} | changes)
