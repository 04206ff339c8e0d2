"""Reporting checklists, filled in as far as the runs know, from one store of facts. The rest is for
the authors. TRIPOD+AI and PROBAST+AI have their item numbers; the EHRA list goes by topic.
"""

from importlib.resources import files
from typing import Any

import yaml

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.flow import CohortFlow
from hpc_ecg.evaluation.events import scarce
from hpc_ecg.reporting.numbers import count, format_percent, format_span, join_names

YOURS = "for the authors"


def read_checklists() -> dict[str, dict[str, Any]]:
    """`facts` that hold for every report, and `lists` by name: the `source`, and `items` as
    [number, topic, name of a fact or ""]."""
    text = (files("hpc_ecg.reporting") / "templates" / "checklists.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def fill_checklists(comparison: Comparison, flow: CohortFlow | str) -> list[dict[str, Any]]:
    """A row for each item of each list, with its `text`, and whether that `is_known`."""
    facts = _facts(comparison, flow)
    return [
        {"checklist": name, "number": number, "topic": topic}
        | {"text": facts.get(fact, YOURS), "is_known": fact in facts}
        for name, checklist in read_checklists()["lists"].items()
        for number, topic, fact in checklist["items"]
    ]


def _facts(comparison: Comparison, flow: CohortFlow | str) -> dict[str, str]:
    models, labels = comparison.selected, comparison.labels
    evaluations = [model.label(name) for model in models for name in labels]
    groups = {level["group"] for e in evaluations for level in e.get("subgroups", [])}
    facts = read_checklists()["facts"] | {
        "sample_size": _sample_size(comparison),
        "imbalance": _imbalance(comparison),
        "counts": _counts(comparison),
        "specification": "best/model.safetensors of each run; cards in report/cards/ for "
        f"{join_names([model.run.name for model in models])}",
    }
    facts["output"] = "; ".join([facts["output"], *_few_events(comparison)])
    if comparison.warnings:
        facts["warnings"] = "see the warnings at the top; the rest is for the authors"
    if comparison.baselines:
        facts["baselines"] = "see Is a network needed?"
    if not comparison.protocol["is_warning"]:
        facts["protocol"] = "protocol.json, fixed before the test; its SHA-256 is at the top"
    if isinstance(flow, CohortFlow):
        facts |= {"preparation": f"{flow.signal}; see Cohort", "flow": "see Cohort"}
        facts |= {"splits": "see Cohort: age, sex and outcome by split"}
        facts |= {"poor_input": "the checks that left out or flagged recordings; see Cohort"}
        facts["missing"] += f"; {flow.on_censoring}" * bool(flow.on_censoring)
        if flow.selection:
            facts |= {"eligibility": "see Cohort", "horizon": "see the flow of the cohort"}
    if "time" in models[0].run.test.groups:
        facts["dates"] = "see Calendar periods for the test set"
    if "site" in groups:
        facts |= {"sites": "see Subgroups by site", "heterogeneity": "see Subgroups by site"}
    if groups:
        facts["fairness"] = "see Subgroups, or subgroups.csv for all, with tests of interaction"
    if any(e.get("recalibrated") for e in evaluations):
        facts["updated"] = "evaluation.json of each run: scores after three kinds of recalibration"
    return facts


def _sample_size(comparison: Comparison) -> str:
    text = "as many patients as there were"
    sizes = [size for size in comparison.detectable.values() if size is not None]
    if not sizes:
        return f"{text}; see Cohort"
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
