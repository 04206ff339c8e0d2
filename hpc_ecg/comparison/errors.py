"""The most confident errors of the best strategy's selected model, drawn as ECGs.

They are on a page of their own, since pictures of ECGs are data about patients and the report may
be mailed. A record is named by its key, which is its row in the table that was sharded.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.log import describe_error
from hpc_ecg.reporting.ecg_paper import draw_ecg
from hpc_ecg.reporting.html import inline_svg, render_page
from hpc_ecg.reporting.numbers import format_number
from hpc_ecg.shards.format import ShardSet
from hpc_ecg.shards.inspection import read_mv
from hpc_ecg.shards.remote import open_shard_set

MAX_ERRORS = 10


def find_errors(
    comparison: Comparison, settings: Mapping[str, Any], allow_pipe: bool = False
) -> tuple[list[dict[str, Any]], str | ShardSet]:
    """The records of the first label whose probability is furthest from it (by more than 0.5, one
    a patient), and their shards, or why these cannot be read."""
    run, label = comparison.selected[0].run, comparison.labels[0]
    test, k = run.test, run.test.labels.index(label)
    if test.probability_NK is None:
        return [], "a regression has no confident errors"
    try:
        shards = open_shard_set(str(settings["data.shards"]), allow_pipe)
    except (ValueError, OSError) as error:
        return [], f"the shards cannot be read here: {describe_error(error)}"
    gap_N = np.nan_to_num(np.abs(test.label_NK[:, k] - test.probability_NK[:, k]))
    order = np.argsort(-gap_N, kind="stable")
    order = order[np.sort(np.unique(test.patient_N[order], return_index=True)[1])][:MAX_ERRORS]
    key_of = dict(zip(shards.index["record"], shards.index["key"], strict=True))
    return [
        {"key": key_of[record], "label": label, "value": int(value), "probability": float(p)}
        for record, value, p, gap in zip(
            test.record_N[order],
            test.label_NK[order, k],
            test.probability_NK[order, k],
            gap_N[order],
            strict=True,
        )
        if gap > 0.5 and record in key_of
    ], shards


def render_errors(errors: list[dict[str, Any]], shards: ShardSet, run_name: str) -> str:
    """The page with a picture of each. ValueError for a damaged shard."""
    index, pictures = shards.index.set_index("key", drop=False), []
    for error in errors:
        text = f"Key {error['key']}: predicted {format_number(error['probability'])}"
        caption = f"{text}, {error['label']} {error['value']}"
        ecg_LS = read_mv(shards, index.loc[error["key"]])
        svg = draw_ecg(ecg_LS, shards.signal.leads, shards.signal.sample_rate_hz, caption)
        pictures.append((caption, inline_svg(svg, caption)))
    return render_page("errors.html.jinja", pictures=pictures, run=run_name)
