"""The TRIPOD+AI checklist, filled as far as a sweep knows: what it cannot know is the authors' to
write, and stands as such.

Items and numbers: Collins et al., TRIPOD+AI statement, BMJ 2024;385:e078378; wording is ours.
"""

from dataclasses import dataclass

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.reporting.numbers import format_percent, join_names

YOURS = "yours to write"


@dataclass(frozen=True, kw_only=True)
class Item:
    number: str
    topic: str
    text: str
    is_known: bool


def checklist(comparison: Comparison, flow: CohortFlow | str) -> list[Item]:
    known = _known(comparison, flow)
    return [
        Item(number=n, topic=topic, text=known.get(n, YOURS), is_known=n in known)
        for n, topic in TOPICS
    ]


TOPICS = (
    ("1", "Title"),
    ("2", "Abstract"),
    ("3", "Background: context, target population, known inequalities"),
    ("4", "Objectives"),
    ("5", "Data: sources and dates"),
    ("6", "Participants: setting, eligibility, treatments"),
    ("7", "Data preparation"),
    ("8", "Outcome: definition and assessment"),
    ("9", "Predictors"),
    ("10", "Sample size"),
    ("11", "Missing data"),
    ("12a", "Use of the data: development and evaluation"),
    ("12c", "Type of model and how it was built"),
    ("12d", "Clusters and heterogeneity"),
    ("12e", "Measures of performance"),
    ("12f", "Model updating"),
    ("13", "Class imbalance"),
    ("14", "Fairness"),
    ("15", "Model output and thresholds"),
    ("16", "Differences between training and evaluation"),
    ("17", "Ethical approval"),
    ("18", "Funding, interests, protocol, registration, sharing of data and code"),
    ("19", "Patient and public involvement"),
    ("20", "Flow and characteristics of participants"),
    ("21", "Participants and events in each analysis"),
    ("22", "Specification of the model"),
    ("23", "Performance, with subgroups"),
    ("25", "Interpretation"),
    ("26", "Limitations"),
    ("27", "Use in current care"),
)


def _known(comparison: Comparison, flow: CohortFlow | str) -> dict[str, str]:
    known = {
        "9": "12-lead ECGs; the signal's specification stands in each model card",
        "10": _sample_size(comparison),
        "11": "records without a label are left out of loss and metrics, and counted",
        "12a": "patients, not ECGs, are dealt to training, validation and test; thresholds, "
        "calibration and the best step come from validation",
        "12c": "see Strategies and Settings",
        "12d": "intervals and tests resample patients, with all of a patient's ECGs together",
        "12e": "discrimination, calibration, decision curves; see the figures",
        "12f": "see Strategies: what each one starts from",
        "13": _imbalance(comparison),
        "15": "probabilities; see Thresholds to take along",
        "22": f"best/model.safetensors of each run; cards in report/cards/ for "
        f"{join_names([c.cell.name for c in comparison.chosen])}",
        "21": _counts(comparison),
        "23": "see Strategies, Differences, Curves, Subgroups",
    }
    if isinstance(flow, CohortFlow):
        known |= {"7": f"{flow.signal}; see Cohort", "20": "see Cohort"}
    if any(c.label(name).get("subgroups") for c in comparison.chosen for name in comparison.labels):
        known["14"] = "see Subgroups, or subgroups.csv for all, with tests of interaction"
    return known


def _sample_size(comparison: Comparison) -> str:
    if not comparison.detectable:
        return "as many as there were; see Cohort"
    sizes = sorted(comparison.detectable.values())
    return (
        f"as many as there were; with this test set and these seeds differences of {sizes[0]:.3f} "
        f"to {sizes[-1]:.3f} {comparison.metric_name} are found in 4 of 5 sweeps"
    )


def _imbalance(comparison: Comparison) -> str:
    shares = [
        f"{label} {format_percent(c['prevalence'])} of the test set"
        for label, c in comparison.counts.items()
        if "prevalence" in c
    ]
    text = "; ".join(shares[:5]) or "no classes"
    return f"{text}; sampling and loss stand under Settings"


def _counts(comparison: Comparison) -> str:
    texts = []
    for label, c in list(comparison.counts.items())[:5]:
        positive = f", {c['n_positive']} with the event" if "n_positive" in c else ""
        texts.append(f"{label}: {c['n']} ECGs of {c['n_patients']} patients{positive}")
    return "test set: " + "; ".join(texts)
