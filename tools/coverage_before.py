"""What version 0.1 gave, for the columns `before` of tools/coverage_tables.py.

Tables edges, interaction and censoring compute the old method anew, on the same cohorts. The
figures here are quoted. `its own table`: the docstrings of version 0.1 had them for this very row.
Others come from simulations of version 0.1 with code of their own (cohorts of 200 to 600 patients
with 1 to 5 ECGs each); their setting is that of the row but for what is named.
"""

from collections.abc import Hashable
from itertools import product
from typing import NamedTuple

from simulated_cohorts import Design


class Before(NamedTuple):
    figure: str
    """As in the row: mostly in %."""
    setting: str


WIDTH = 11  # of a figure
OWN = "its own table"
COHORTS = "cohorts of 200–600 patients"
SIX_HUNDRED = "whole cohorts of 600 patients"
VERSION_0_1: dict[Hashable, Before] = {
    ("family", 6, 3, 1.5, "all"): Before("14", f"{SIX_HUNDRED}; its test on normal scores 9.2"),
    ("family", 4, 3, 1.5, "all"): Before("10", f"{SIX_HUNDRED}; its test on normal scores 7.2"),
    ("family", 6, 5, 1.5, "all"): Before("3.8", f"{SIX_HUNDRED}; its test on normal scores 4.5"),
    ("family", 6, 3, 1.5, "half"): Before("6.2", "its test on normal scores"),
    ("family", 6, 5, 1.5, "half"): Before("3.5", "its test on normal scores"),
    ("sweeps", 6, 3, 1.5): Before("14", "600 patients"),
    ("sweeps", 4, 3, 1.5): Before("10", "600 patients"),
    ("sweeps", 6, 5, 1.5): Before("3.8", "600 patients"),
    ("best", 6, 0): Before("90", f"{COHORTS}; an AUROC 0.024–0.036 too high"),
    ("power", 2): Before("79", "a difference of 0.094 in one sweep"),
    ("power", 6): Before("43", "a difference of 0.094 in one sweep"),
    ("jumps", 0): Before("0.832–1", "20 positive patients"),
    ("jumps", 1): Before("0.999–1", "20 positive patients, 0.9998"),
    ("jumps", 10): Before("0.949–1", "20 positive patients, 0.9982"),
    ("interaction", 0.98): Before("9.9–13", "AUROC of 0.98 or more"),
    ("interaction", 0.995): Before("9.9–13", "AUROC of 0.98 or more"),
    ("edges", "npv"): Before("88–90", COHORTS),
    ("edges", "brier"): Before("89", COHORTS),
    ("edges", "intercept"): Before("91", COHORTS),
    ("edges", "net benefit 0.8"): Before("38", f"{COHORTS}; [0, 0] where nobody is flagged"),
    ("edges", "ece"): Before("88–92", COHORTS),
    ("edges", "macro auroc"): Before("92–93", "6 to 9 positives a label"),
    ("censoring", "risk", "O/E"): Before("1.67", "4,055 ECGs left out"),
    ("censoring", "risk", "AUROC"): Before("0.79", "for 0.73; 4,055 ECGs left out"),
    ("error", 3): Before("4.8–5.9", f"{OWN}; 4.3–6.0 in {COHORTS}"),
    ("error", 5): Before("4.4–5.2", f"{OWN}; 4.3–6.0 in {COHORTS}"),
    ("error", 10): Before("4.7–5.4", f"{OWN}; 4.3–6.0 in {COHORTS}"),
}
NEAR_1 = ((21, 0.0, "87"), (21, 0.03, "59"), (11, 0.0, "90"), (11, 0.03, "66"))
"""Of an AUROC of 0.998: positive patients, the share of them that looks healthy, coverage."""
FEW = {2: 99.9, 3: 97.9, 5: 97.4, 7: 96.8, 10: 95.0, 15: 94.4}


def _published() -> dict[Hashable, Before]:
    """Figures for a name and a design of `_rows` in coverage_tables.py."""
    figures: dict[Hashable, Before] = {}
    for positives, missed, figure in NEAR_1:
        design = Design(patients=300, auroc=0.998, positives=positives, missed=missed)
        figures["few", "auroc ours", design] = Before(figure, COHORTS)
    for auroc, (positives, least) in product((0.75, 0.9, 0.98), FEW.items()):
        design = Design(patients=300, auroc=auroc, positives=positives)
        figures["few", "auroc ours", design] = Before(f"≥ {least}", OWN)
        figures["few", "auprc ours", design] = Before("≥ 97.9", OWN)
    for positives, share in product((5, 10, 20, 40, 100), (0.7, 0.9, 0.95)):
        design = Design(patients=300, auroc=0.9, positives=positives)
        figure = "97.5–99.7" if positives <= 10 else "94.0–97.7"
        figures["shares", f"{share} ours", design] = Before(figure, OWN)
    for patients, auroc, share in product(
        (200, 1000, 5000), (0.75, 0.9), (0.02, 0.05, 0.1, 0.2, 0.5)
    ):
        if patients * share >= 20:
            design = Design(patients=patients, auroc=auroc, prevalence=share)
            figures["intervals", "auroc ours", design] = Before("94.1–96.5", OWN)
            figures["intervals", "auprc ours", design] = Before("93.6–96.4", OWN)
            figures["difference", "auroc ours", design] = Before("94–96", OWN)
            figures["difference", "auprc ours", design] = Before("94–97", OWN)
    return figures


VERSION_0_1 |= _published()


def beside(
    now: float | str, key: Hashable = None, computed: float | None = None, digits: int = 1
) -> str:
    """`before 14  now 4.2`: what the old method gives here, or else is quoted, and what is found
    now; no `before` where version 0.1 has no figure."""
    figure = VERSION_0_1[key].figure if key in VERSION_0_1 else ""
    if computed is not None:
        figure = f"{computed:.{digits}f}"
    before = f"before {figure:>{WIDTH}}  " if figure else " " * len(f"before {figure:>{WIDTH}}  ")
    return f"{before}now {now if isinstance(now, str) else f'{now:5.{digits}f}'}"


def quoted(*keys: Hashable, figures: bool = False) -> str:
    """The end of a row: the settings of quoted figures, with the figures if they are not shown."""
    found = [VERSION_0_1[key] for key in keys if key in VERSION_0_1]
    texts = [f"{one.figure} ({one.setting})" if figures else one.setting for one in found]
    return f"  [version 0.1: {'; '.join(dict.fromkeys(texts))}]" if found else ""
