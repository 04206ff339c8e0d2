"""The TRIPOD+AI checklist, filled in as far as a sweep knows. The rest is the authors' to write.

Items and numbers: Collins et al., TRIPOD+AI statement, BMJ 2024;385:e078378; the wording is ours.
"""

from dataclasses import dataclass

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.evaluation.events import scarce
from hpc_ecg.reporting.numbers import count, format_percent, format_span, join_names

YOURS = "yours to write"
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


@dataclass(frozen=True, kw_only=True)
class ChecklistItem:
    number: str
    topic: str
    text: str
    is_known: bool


def fill_checklist(comparison: Comparison, flow: CohortFlow | str) -> list[ChecklistItem]:
    known = _known(comparison, flow)
    return [
        ChecklistItem(number=n, topic=topic, text=known.get(n, YOURS), is_known=n in known)
        for n, topic in TOPICS
    ]


def _known(comparison: Comparison, flow: CohortFlow | str) -> dict[str, str]:
    models, labels = comparison.selected, comparison.labels
    known = {
        "9": "12-lead ECGs; each model card specifies the signal",
        "10": _sample_size(comparison),
        "11": "records without a label are left out of loss and metrics, and counted",
        "12a": "patients, not ECGs, are assigned to training, validation and test; thresholds, "
        "calibration and the best step come from validation",
        "12c": "see Strategies and Settings",
        "12d": "intervals and tests resample patients, with all ECGs of a patient together",
        "12e": "discrimination, calibration, decision curves; see the figures",
        "12f": "see What was run: the weights that each strategy starts from",
        "13": _imbalance(comparison),
        "15": "; ".join(["probabilities; see Thresholds", *_few_events(comparison)]),
        "21": _counts(comparison),
        "22": "best/model.safetensors of each run; cards in report/cards/ for "
        f"{join_names([model.run.name for model in models])}",
        "23": "see Strategies, Differences, Curves, Subgroups",
    }
    if isinstance(flow, CohortFlow):
        known |= {"7": f"{flow.signal}; see Cohort", "20": "see Cohort"}
    if any(model.label(name).get("subgroups") for model in models for name in labels):
        known["14"] = "see Subgroups, or subgroups.csv for all, with tests of interaction"
    return known


def _sample_size(comparison: Comparison) -> str:
    text = "as many patients as there were"
    if not comparison.detectable:
        return f"{text}; see Cohort"
    sizes = comparison.detectable.values()
    return (
        f"{text}; with this test set and these seeds, a sweep has 80 % power to find a difference "
        f"of {format_span(min(sizes), max(sizes))} {comparison.metric_name}"
    )


def _few_events(comparison: Comparison) -> list[str]:
    found = ((label, scarce(counts)) for label, counts in comparison.validation.items())
    return [f"{label}: fitted on only {few} of validation" for label, few in found if few][:5]


def _imbalance(comparison: Comparison) -> str:
    shares = [
        f"{label} {format_percent(counts['prevalence'])} of the test set"
        for label, counts in comparison.counts.items()
        if "prevalence" in counts
    ]
    return f"{'; '.join(shares[:5]) or 'no classes'}; for sampling and loss see Settings"


def _counts(comparison: Comparison) -> str:
    texts = []
    for label, n in list(comparison.counts.items())[:5]:
        positive = f", {n['n_positive']} with the event" if "n_positive" in n else ""
        text = f"{count(n['n'], 'ECG')} of {count(n['n_patients'], 'patient')}"
        texts.append(f"{label}: {text}{positive}")
    return f"test set: {'; '.join(texts)}"
