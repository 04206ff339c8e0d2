"""`hpc-ecg explain`: a page on what moved a model's output for one ECG, or for a cohort's sample on
average; with the checks of map_checks, without which no map is drawn."""
# L leads, S samples, P pieces

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from scipy.special import expit
from scipy.stats import spearmanr

from hpc_ecg.config.suggestions import did_you_mean
from hpc_ecg.ecg.delineation import SEGMENTS
from hpc_ecg.ecg.preprocess import MICROVOLTS_PER_COUNT, PreparedECG
from hpc_ecg.hashing import check_kinds, read_record
from hpc_ecg.inference import cohort_context
from hpc_ecg.inference.api import open_source
from hpc_ecg.inference.attribution import DividedECG, LabelOutput, attribute, occlude
from hpc_ecg.inference.bundle import MODEL, is_bundle
from hpc_ecg.inference.map_checks import BOUNDS, check_maps
from hpc_ecg.inference.model_source import ModelSource, open_model
from hpc_ecg.log import waiting_for
from hpc_ecg.reporting.ecg_paper import FULL, Paper, draw_ecg
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.reporting.plots import Group, line_plot
from hpc_ecg.weights import load_model

STRONGEST, SMOOTH_S = 98, 0.04
"""Percentile of the sizes in a map that has the strongest colour; smoothing of a mean map."""
BEATS = replace(FULL, mm_per_s=50, row_mm=40, rhythm=None)


class Explainer(NamedTuple):
    model: ModelSource
    label: str
    network: LabelOutput
    seeds: list[LabelOutput]
    """Models that differ in their seed alone, if there are several."""
    percentiles: cohort_context.Percentiles
    seed: int


def open_explainer(path: Path, strategy: str | None, label: str | None, seed: int) -> Explainer:
    """A run, sweep, bundle or file of weights. ValueError: it is none, or has no such label."""
    model = others = open_source(path, strategy, ensemble=False)
    if label not in model.labels and (label is not None or len(model.labels) > 1):
        hint = did_you_mean(label or "", model.labels)
        raise ValueError(f"{model.name}: --label must be one of {', '.join(model.labels)}{hint}")
    label, percentiles = label or model.labels[0], {}
    if is_bundle(path):
        percentiles = read_record(path / MODEL).get("risks_by_outcome", {}).get(label, {})
        check_kinds(path / MODEL, percentiles, {"*": {"patients": int, "risks": list}})
    elif model.is_run:
        percentiles = cohort_context.risks_by_outcome(model, behind=1).get(label, {})
        if path in model.files[0].parents[3:4]:  # a sweep
            others = open_model(path, strategy, is_ensemble=True)
    network = _load(model, label, model.files)
    seeds = [_load(model, label, [file]) for file in others.files if len(others.files) > 1]
    return Explainer(model, label, network, seeds, percentiles, seed)


def _load(model: ModelSource, label: str, files: list[Path]) -> LabelOutput:
    """In float32, on the GPU if there is one."""
    members = [load_model(file, None, model_config=model.config.model) for file in files]
    platt = [fit for file, fit in zip(model.files, model.platt, strict=False) if file in files]
    network = LabelOutput(members, model.labels.index(label), model.is_regression, platt)
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def explain_recording(explainer: Explainer, prepared: PreparedECG, name: str) -> tuple[str, bool]:
    """The page on one ECG, and whether it has a map. ValueError: too few heartbeats."""
    model, network = explainer.model, explainer.network
    ecg_LS = prepared.counts_LS * (MICROVOLTS_PER_COUNT / 1000)
    ecg = DividedECG(ecg_LS, prepared.samples, model.signal)
    with waiting_for("computing: integrated gradients and occlusion"):
        (map_LS, missing), table = attribute(network, ecg), occlude(network, ecg)
    map_LP, output = ecg.sums(map_LS), float(network.outputs([ecg.ecg_LS], ecg.samples)[0])
    scale = max(float(np.percentile(np.abs(map_LP), STRONGEST)), 1e-12)
    shade_LS = np.repeat(map_LP / scale, np.diff([*ecg.starts, ecg.samples]), axis=1)
    by_segment = [map_LP[:, ecg.segment_P == number].sum(axis=1) for number in range(len(SEGMENTS))]
    about = {
        "risk": output if model.is_regression else float(expit(output)),
        "output": output,
        "missing": missing,
        "methods": spearmanr(np.ravel(by_segment), table[:-1, :-1].T.ravel())[0],
        "unmeasured": ecg.unmeasured,
        "flags": prepared.flags,
        "table": list(zip([*model.signal.leads, "all leads"], table.tolist(), strict=True)),
        "near": cohort_context.nearest_members(model, network, prepared, explainer.seed),
    }
    checked = check_maps(network, [(ecg, map_LP)], explainer.seeds, explainer.seed)
    drawn = ecg.ecg_LS[:, : ecg.samples], shade_LS, name
    return _render(explainer, checked, name, [drawn], FULL, about)


def explain_cohort(explainer: Explainer, folder: str, num: int, name: str) -> tuple[str, bool]:
    """The page on the mean maps of a sample of the shards in a folder, by outcome."""
    model, label, network, seeds, _, seed = explainer
    groups = cohort_context.mean_maps(network, folder, model, label, num, seed)
    maps = [pair for group in groups for pair in group["checked"]]
    size = round(SMOOTH_S * model.signal.sample_rate_hz)
    smooth = [uniform_filter1d(group["map"], size, axis=1) for group in groups]
    scale = max(float(np.percentile(np.abs(smooth), STRONGEST)), 1e-12)
    # four times over: a lead's strip shows its own quarter of the time
    titles = [f"{label} = {g['outcome']}: mean beat, n = {g['used']}" for g in groups]
    beats, maps_LW = [np.tile(group["beat"], 4) for group in groups], np.tile(smooth, 4) / scale
    drawn = list(zip(beats, maps_LW, titles, strict=True))
    about = {"groups": groups, "split": cohort_context.SPLIT, "checked": len(maps)}
    checked = check_maps(network, maps, seeds, seed)
    return _render(explainer, checked, name, drawn, BEATS, about)


def _render(
    explainer: Explainer, checked: dict, name: str, drawn: list, paper: Paper, about: dict
) -> tuple[str, bool]:
    """`drawn`: ECGs with their maps, which are left out if a check failed, and titles."""
    spec, pictures = explainer.model.signal, []
    for ecg_LS, map_LS, title in drawn:
        shade_LS = map_LS if checked["has_map"] else None
        svg = draw_ecg(ecg_LS, spec.leads, spec.sample_rate_hz, title, paper, shade_LS)
        pictures.append(inline_svg(svg, title))
    (first, last), *random = (curves.tolist() for curves in checked["curves"])
    x = np.linspace(0, 100, len(first)).tolist()
    groups = [
        Group(name="what raises it most, first", bold=(x, first)),
        Group(name="what lowers it most, first", bold=(x, last)),
        Group(name="random orders", thin=[(x, row) for pair in random for row in pair]),
    ]
    svg = line_plot(groups, name="deletion", xlabel="pieces deleted (%)", ylabel="output")
    values = {"explainer": explainer, "checked": checked, "name": name, "pictures": pictures}
    values |= {"curves": inline_svg(svg, "Deletion curves"), "bounds": BOUNDS, "segments": SEGMENTS}
    page = render_page("explain.html.jinja", format_number=format_number, about=about, **values)
    return page, checked["has_map"]
