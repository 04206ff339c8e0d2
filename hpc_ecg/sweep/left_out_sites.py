"""A sweep that leaves out one site at a time: which sites there are, and which can be tested on."""

from typing import Any

from hpc_ecg.data.settings import DataConfig
from hpc_ecg.data.views import site_names
from hpc_ecg.evaluation import events
from hpc_ecg.shards.format import LABEL_PREFIX, ShardSet
from hpc_ecg.shards.remote import open_shard_set
from hpc_ecg.sweep.arms import LEFT_OUT_SITE, axes_of
from hpc_ecg.sweep.settings import SweepConfig

SUMMARY = (
    "AUROC, calibration slope, observed/expected by site, their mean (random effects), a new site; "
    "differences in AUROC: all pairs of strategies, and strategies against baselines, by Holm"
)


def sites_of(data: DataConfig) -> list[str]:
    """The sites of the shards. ValueError without such a column, or with fewer than two sites."""
    site_N = site_names(open_shard_set(data.shards, data.allow_pipe).index, data.site_column)
    sites = sorted(set(site_N) - {""})
    if len(sites) < 2:
        column, names = data.site_column or "site", ", ".join(sites) or "no site"
        found = f"column {column} of {data.shards} has {names}"
        raise ValueError(f"sites=leave_one_out needs two sites or more; {found}")
    return sites


def check_left_out_site(shards: ShardSet, labels: list[str], data: DataConfig) -> None:
    """ValueError if no label has MIN_EVENTS patients of each outcome at the site that is left out,
    or in validation without it."""
    if data.left_out_site is None:
        return
    if data.task == "regression":
        raise ValueError("data.left_out_site needs yes/no labels, not data.task=regression")
    keep = f"keep it in training, with the others as grid.{LEFT_OUT_SITE}=[…]"
    advice = {"test": ("at this site", keep)}
    advice["valid"] = "in validation without this site", "make shards with more for validation"
    for split, (place, remedy) in advice.items():
        rows = shards.index[shards.index["split"] == split]
        patient_N, few = rows["patient"].to_numpy(), {}
        for label in labels:
            counts = events.count_events(rows[LABEL_PREFIX + label].to_numpy(float), patient_N)
            few[label] = events.scarce(counts, events.MIN_EVENTS)
        if all(few.values()):
            found = "; ".join(f"{label}: {text}" for label, text in [*few.items()][:3])
            needs = f"{events.MIN_EVENTS} with each outcome are needed: {remedy}"
            raise ValueError(f"data.left_out_site={data.left_out_site}: {found} {place}; {needs}")


def describe_design(config: SweepConfig) -> dict[str, Any]:
    """The protocol's entry for a sweep that leaves out sites; {} for another."""
    sites = axes_of("grid", config.grid).get(LEFT_OUT_SITE)
    return {"left_out_sites": {"sites": sites, "summary": SUMMARY}} if sites else {}
