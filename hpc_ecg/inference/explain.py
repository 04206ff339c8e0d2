"""`hpc-ecg explain`: a page on what moved a model's output for one ECG, or for a cohort's sample on
average; with the checks of map_checks, without which no map is drawn."""
# L leads, S samples, P pieces, W samples of a beat

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.ecg.delineation import SEGMENTS
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, PreparedECG
from hpc_ecg.hashing import check_kinds, read_record
from hpc_ecg.inference.api import open_source
from hpc_ecg.inference.attribution import DividedECG, LabelOutput, attribute, occlude
from hpc_ecg.inference.bundle import MODEL, is_bundle
from hpc_ecg.inference.cohort_context import Percentiles, nearest_members, risks_by_outcome
from hpc_ecg.inference.map_checks import BOUNDS, check_maps
from hpc_ecg.inference.mean_map import SPLIT, Sample, mean_map
from hpc_ecg.inference.model_source import ModelSource, open_model
from hpc_ecg.reporting.ecg_paper import FULL, Paper, draw_ecg
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.reporting.plots import ForestRow, Group, forest_plot, line_plot
from hpc_ecg.weights import load_model

STRONGEST, BINS_PER_S = 98, 50
"""Percentile of the sizes in a map that has the strongest colour; colours of a mean beat."""
SQUARES = ((2, 0.3, 0.1), (10, 0.55, 0.15))
BEATS = Paper(mm_per_s=50, row_mm=40, rhythm=None, squares=SQUARES, text_mm=3.2)


@dataclass(frozen=True, kw_only=True)
class Explainer:
    model: ModelSource
    seeds: ModelSource
    """Models that differ in their seed alone; the model if there are no others."""
    label: str
    percentiles: Percentiles
    """Risks of validation."""
    seed: int

    def networks(self, model: ModelSource, is_ensemble: bool) -> list[LabelOutput]:
        """The ensemble, or each of its members; in float32, on the GPU if there is one."""
        device, index = (
            "cuda" if torch.cuda.is_available() else "cpu",
            model.labels.index(self.label),
        )
        members = [load_model(file, None, model_config=model.config.model) for file in model.files]
        groups = [members] if is_ensemble else [[member] for member in members]
        return [LabelOutput(group, index, model.is_regression).to(device) for group in groups]

    def draw(self, ecg_LS: np.ndarray, title: str, paper: Paper, shade_LS: Any) -> str:
        spec = self.model.signal
        svg = draw_ecg(ecg_LS, spec.leads, spec.sample_rate_hz, title, paper, shade_LS)
        return inline_svg(svg, title)


def open_explainer(path: Path, strategy: str | None, label: str | None, seed: int) -> Explainer:
    """A run, sweep, bundle or file of weights. ValueError: it is none, or has no such label."""
    model = seeds = open_source(path, strategy, ensemble=False)
    if label not in model.labels and (label is not None or len(model.labels) > 1):
        hint = did_you_mean(label or "", model.labels)
        raise ValueError(f"{model.name}: --label must be one of {', '.join(model.labels)}{hint}")
    label, percentiles = label or model.labels[0], {}
    if is_bundle(path):
        percentiles = read_record(path / MODEL).get("risks_by_outcome", {}).get(label, {})
        kinds = {outcome: {"patients": int, "risks": list} for outcome in percentiles}
        check_kinds(path / MODEL, percentiles, kinds)
    elif model.is_run:
        percentiles = risks_by_outcome(model, behind=1).get(label, {})
        if path in model.files[0].parents[3:4]:  # a sweep
            seeds = open_model(path, strategy, is_ensemble=True)
    return Explainer(model=model, seeds=seeds, label=label, percentiles=percentiles, seed=seed)


def explain_recording(
    explainer: Explainer, prepared: PreparedECG, name: str, members: int
) -> tuple[str, bool]:
    """The page on one ECG, with the nearest of this many `members` of the cohort; and whether it
    has a map. ValueError: too few heartbeats."""
    model = explainer.model
    ecg_LS = prepared.counts_LS * (MICROVOLTS_PER_COUNT / 1000)
    ecg = DividedECG(ecg_LS, prepared.samples, model.signal)
    (network,) = explainer.networks(model, is_ensemble=True)
    (map_LS, missing), table = attribute(network, ecg), occlude(network, ecg)
    map_LP = ecg.sums(map_LS)
    seeds = explainer.networks(explainer.seeds, is_ensemble=False)
    checked = check_maps(network, [(ecg, map_LP)], seeds, explainer.seed)
    lengths = np.diff([*ecg.starts, ecg.samples])
    scale = max(float(np.percentile(np.abs(map_LP), STRONGEST)), 1e-12)
    shade_LS = np.repeat(map_LP / scale, lengths, axis=1) if checked["has_map"] else None
    by_segment = [map_LP[:, ecg.segment_P == number].sum(axis=1) for number in range(len(SEGMENTS))]
    output = float(network.outputs([ecg.ecg_LS], ecg.samples)[0])
    risk = output if model.is_regression else float(expit(output))
    about = {
        "risk": risk,
        "output": output,
        "missing": missing,
        "methods": spearmanr(np.ravel(by_segment), table[:-1, :-1].T.ravel())[0],
        "unmeasured": ecg.unmeasured,
        "flags": prepared.flags,
        "table": list(zip([*model.signal.leads, "all leads"], table.tolist(), strict=True)),
        "place": _draw_place(risk, explainer.percentiles) if explainer.percentiles else "",
        "near": nearest_members(model, network, prepared, explainer.label, members, explainer.seed),
    }
    picture = explainer.draw(ecg.ecg_LS[:, : ecg.samples], name, FULL, shade_LS)
    return _render(explainer, checked, name, [picture], about), checked["has_map"]


def explain_cohort(explainer: Explainer, sample: Sample, name: str) -> tuple[str, bool]:
    """The page on the mean maps of a sample by outcome."""
    (network,) = explainer.networks(explainer.model, is_ensemble=True)
    groups = [mean_map(network, sample[0], outcome, rows) for outcome, rows in sample[1].items()]
    seeds = explainer.networks(explainer.seeds, is_ensemble=False)
    maps = [pair for group in groups for pair in group["checked"]]
    checked = check_maps(network, maps, seeds, explainer.seed)
    size = max(explainer.model.signal.sample_rate_hz // BINS_PER_S, 1)
    binned = []
    for group in groups:
        starts = np.arange(0, group["map_LW"].shape[1], size)
        mean_LP = np.add.reduceat(group["map_LW"], starts, axis=1)
        binned.append(np.repeat(mean_LP, size, axis=1)[:, : group["map_LW"].shape[1]])
    scale, pictures = max(float(np.abs(binned).max()), 1e-12), []
    for group, map_LW in zip(groups, binned, strict=True):
        title = f"{explainer.label} = {group['outcome']}: mean beat, n = {group['used']}"
        # four times over: a lead's strip shows its own quarter of the time
        shade_LS = np.tile(map_LW / scale, 4) if checked["has_map"] else None
        pictures.append(explainer.draw(np.tile(group["beat_LW"], 4), title, BEATS, shade_LS))
    about = {"groups": groups, "split": SPLIT, "checked": len(maps)}
    return _render(explainer, checked, name, pictures, about), checked["has_map"]


def _draw_place(risk: float, percentiles: Percentiles) -> str:
    """Median and percentiles of each outcome, and this risk as a line."""
    rows = []
    for style, (outcome, stated) in enumerate(percentiles.items()):
        percents, risks = np.array(stated["risks"]).T
        median, ends = float(np.interp(50, percents, risks)), {"low": risks[0], "high": risks[-1]}
        rows.append(ForestRow(name=outcome, value=median, points=risks, style=style, **ends))
    svg = forest_plot(rows, "risk; dashed: this ECG", name="place", reference=risk)
    return inline_svg(svg, "Risks of validation by outcome")


def _render(
    explainer: Explainer, checked: dict[str, Any], name: str, pictures: list[str], about: Any
) -> str:
    (first, last), *random = (curves.tolist() for curves in checked["curves"])
    x = np.linspace(0, 100, len(first)).tolist()
    groups = [
        Group(name="what raises it most, first", bold=(x, first)),
        Group(name="what lowers it most, first", bold=(x, last)),
        Group(name="random orders", thin=[(x, row) for pair in random for row in pair]),
    ]
    svg = line_plot(groups, name="deletion", xlabel="pieces deleted (%)", ylabel="output")
    return render_page(
        "explain.html.jinja",
        explainer=explainer,
        checked=checked,
        name=name,
        pictures=pictures,
        about=about,
        bounds=BOUNDS,
        curves=inline_svg(svg, "Deletion curves"),
        segments=SEGMENTS,
        format_number=format_number,
    )
