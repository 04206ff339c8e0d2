"""Objects that show themselves in notebooks: an ECG on paper, scores as a table, a comparison as a
figure and a table. What comes from files is escaped."""
# L leads, S samples

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from hpc_ecg.comparison.comparison import Comparison
from hpc_ecg.comparison.figures import draw_strategies
from hpc_ecg.comparison.headline import headline
from hpc_ecg.comparison.tables import strategy_rows
from hpc_ecg.evaluation.metric_names import METRIC_NAMES
from hpc_ecg.reporting.ecg_paper import draw_ecg
from hpc_ecg.reporting.escape import xml_text
from hpc_ecg.reporting.html import html_table, inline_svg
from hpc_ecg.reporting.numbers import format_with_interval


@dataclass(frozen=True, kw_only=True)
class ECG:
    """A recording as its file states it; notebooks show it on ECG paper."""

    signal_LS: np.ndarray
    """float64 [leads, samples], mV; NaN where the file marks a sample as invalid."""
    leads: tuple[str, ...]
    sample_rate_hz: float
    flags: tuple[str, ...]
    name: str

    def plot(self) -> "SvgText":
        """The first 10 s at 25 mm/s and 10 mm/mV, as the text of an SVG file."""
        return SvgText(draw_ecg(self.signal_LS, self.leads, self.sample_rate_hz, self.name))

    def _repr_svg_(self) -> str:
        return self.plot()


class SvgText(str):
    """The text of an SVG file, which notebooks show as a picture."""

    def _repr_svg_(self) -> str:
        return str(self)


class RunScores(dict[str, Any]):
    """The content of evaluation.json; notebooks show metrics with their 95 % intervals."""

    def _repr_html_(self) -> str:
        metrics = [m for m in METRIC_NAMES if any(m in label for label in self["labels"].values())]
        rows = [
            (name, label["n"], *(format_with_interval(label.get(m, {})) for m in metrics))
            for name, label in self["labels"].items()
        ]
        caption = f"records: {self['split']}; 95 % intervals, patients resampled"
        return html_table(caption, ["label", "ECGs", *map(METRIC_NAMES.__getitem__, metrics)], rows)


@dataclass(frozen=True, repr=False)
class SweepComparison:
    """The strategies of a sweep, as `hpc-ecg report` compares them; notebooks show a figure."""

    comparison: Comparison

    @property
    def sentences(self) -> list[str]:
        """The verdict, in at most three sentences."""
        return headline(self.comparison)

    @property
    def table(self) -> pd.DataFrame:
        """A row per strategy and reference model, best first: metrics with the ends (`_low`,
        `_high`) of their 95 % intervals, as in report/table.csv."""
        return pd.DataFrame(strategy_rows(self.comparison))

    def __repr__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        names, metrics = METRIC_NAMES, self.comparison.metrics
        rows = [
            (s.name, len(s.seeds), *(format_with_interval(vars(s.estimates[m])) for m in metrics))
            for s in self.comparison.strategies
        ]
        caption = "mean over seeds; 95 % intervals, patients and seeds"
        svg = inline_svg(draw_strategies(self.comparison), "Strategies with their intervals")
        text = Markup("<p>{}</p>").format(xml_text(" ".join(self.sentences)))
        return text + svg + html_table(caption, ["", "seeds", *(names[m] for m in metrics)], rows)
