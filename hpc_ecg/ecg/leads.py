"""Lead names: from any file's spelling to the standard name and to the wanted row order.

Recorders write `AVR`, `Lead aVR` and `MDC_ECG_LEAD_AVR` for the same lead. Prefixes and separators
are stripped from a name before it is looked up. A sign (`-aVR`, as in Cabrera's order) makes it
another lead, which stays unknown.
"""

import re
from collections.abc import Sequence

import numpy as np

from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import LEADS

_STANDARD = {lead.lower(): lead for lead in LEADS} | {"di": "I", "dii": "II", "diii": "III"}
_FROM_I_AND_II = {"III": (-1, 1), "aVR": (-0.5, -0.5), "aVL": (1, -0.5), "aVF": (-0.5, 1)}
_PREFIX = re.compile(r"(?:mdc_ecg_lead|e[ck]g|lead|einthoven|goldberger|wilson)(?:[\s_.:]+|-)?")
_REMARK = re.compile(r"[,(\[].*")  # DICOM: "Lead I (Einthoven)"
_SEPARATORS = re.compile(r"[\s_.:]+")


def normalize_lead(name: str) -> str | None:
    """The standard name (`aVR`, `V1` …) of a lead in any spelling; None if it has none."""
    bare = _REMARK.sub("", name.lower()).strip()
    while match := _PREFIX.match(bare):
        bare = bare[match.end() :]
    return _STANDARD.get(_SEPARATORS.sub("", bare))


def covered_leads(names: Sequence[str], derive: bool = True) -> set[str]:
    """The standard leads among a file's lead `names`, and those that I and II give."""
    standard = {lead for name in names if (lead := normalize_lead(name))}
    return standard | set(_FROM_I_AND_II if derive and {"I", "II"} <= standard else ())


def complete_leads(
    recording: Recording, wanted: Sequence[str], missing: str = "leave_out"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The wanted leads [L, samples] in order, and flags for those that were not recorded.

    A missing limb lead is derived from I and II (Einthoven, Goldberger): III = II - I,
    aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2; flag `derived:III,aVR`. Any other
    missing lead raises RecordError("leads") or, with `missing="zero"` and at least one recorded
    lead, becomes zeros; flag `zero_filled:V3`.
    """
    names = [normalize_lead(name) for name in recording.leads]
    absent = [lead for lead in wanted if lead not in names]
    can_derive = names.count("I") == names.count("II") == 1
    derived = [lead for lead in absent if can_derive and lead in _FROM_I_AND_II]
    unknown = [lead for lead in absent if lead not in derived]
    filled = unknown if missing == "zero" and len(unknown) < len(wanted) else []
    recorded = [lead for lead in wanted if lead not in [*derived, *filled]]
    rows = dict(zip(recorded, order_rows(recording.leads, recorded), strict=True))
    signal_LS = np.zeros((len(wanted), recording.signal_LS.shape[1]))
    for row, lead in enumerate(wanted):
        if lead in rows:
            signal_LS[row] = recording.signal_LS[rows[lead]]
        elif lead in derived:
            limbs_2S = recording.signal_LS[[names.index("I"), names.index("II")]]
            signal_LS[row] = np.array(_FROM_I_AND_II[lead]) @ limbs_2S
    flags = {"derived:": derived, "zero_filled:": filled}
    return signal_LS, tuple(flag + ",".join(leads) for flag, leads in flags.items() if leads)


def order_rows(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The row of each wanted lead among a file's lead `names`; other rows are ignored.

    RecordError("leads") lists every wanted lead that is missing or appears more than once.
    """
    standard = [normalize_lead(name) for name in names]
    faults = {
        "missing": [lead for lead in wanted if lead not in standard],
        "more than one": [lead for lead in wanted if standard.count(lead) > 1],
    }
    if any(faults.values()):
        texts = [f"{fault} {', '.join(leads)}" for fault, leads in faults.items() if leads]
        listed = ", ".join(name or "(no name)" for name in names)
        raise RecordError("leads", f"{' and '.join(texts)}; its leads are named: {listed}")
    return [standard.index(lead) for lead in wanted]
