"""The most confident errors of the best strategy's selected model, drawn as ECGs.

They are on a page of their own, since pictures of ECGs are data about patients and the report may
be mailed. A record is named by its key, which is its row in the table that was sharded.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.results import RunResult
from hpc_ecg.log import describe_error
from hpc_ecg.reporting.ecg_paper import draw_ecg
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.shards.inspection import read_mv
from hpc_ecg.shards.remote import open_shard_set

MAX_ERRORS = 10
Rows = list[dict[str, Any]]


def describe_errors(
    comparison: Comparison, settings: Mapping[str, Any], allow_pipe: bool = False
) -> tuple[Rows | str, str]:
    """The errors and a page with their pictures; or why there are none, and no page. `settings` are
    the run's by dotted key."""
    run, label = comparison.selected[0].run, comparison.labels[0]
    if run.test.probability_NK is None:
        return "a regression has no confident errors", ""
    try:
        shards = open_shard_set(str(settings["data.shards"]), allow_pipe)
        stated = run.settings["data_index_sha256"]
        if not settings.get("data.label_table") and shards.index_sha256 != stated:
            return "data.shards is not the data that was tested (its index differs)", ""
        errors = _find(run, label, shards.index.set_index("record")["key"].to_dict())
        return errors, _render(errors, shards, run.name)
    except (ValueError, OSError) as error:
        return f"the shards cannot be read here: {describe_error(error)}", ""


def _find(run: RunResult, label: str, key_of: Mapping[Any, str]) -> Rows:
    """The records whose probability is furthest from the label, by more than 0.5, one a patient."""
    test, k = run.test, run.test.labels.index(label)
    assert test.probability_NK is not None
    label_N, probability_N = test.label_NK[:, k], test.probability_NK[:, k]
    gap_N = np.nan_to_num(np.abs(label_N - probability_N))
    order = np.argsort(-gap_N, kind="stable")
    order = order[np.sort(np.unique(test.patient_N[order], return_index=True)[1])][:MAX_ERRORS]
    return [
        {"key": key_of[test.record_N[n]], "label": label}
        | {"value": int(label_N[n]), "probability": float(probability_N[n])}
        for n in order
        if gap_N[n] > 0.5 and test.record_N[n] in key_of
    ]


def _render(errors: Rows, shards: ShardSet, run_name: str) -> str:
    keys, pictures = shards.index["key"].tolist(), []
    for error in errors:
        text = f"Key {error['key']}: predicted {format_number(error['probability'])}"
        caption = f"{text}, {error['label']} {error['value']}"
        ecg_LS = read_mv(shards, shards.index.iloc[keys.index(error["key"])])
        svg = draw_ecg(ecg_LS, shards.signal.leads, shards.signal.sample_rate_hz, caption)
        pictures.append(inline_svg(svg, caption))
    return render_page("errors.html.jinja", pictures=pictures, run=run_name)
