"""Lead names: any file's spelling in, the standard name or a row order out.

Recorders write `AVR`, `Lead aVR` and `MDC_ECG_LEAD_AVR` for the same thing. A name is reduced to
what is left without prefixes and separators; a sign (`-aVR`, as in Cabrera's order) makes another
lead, which stays unknown.
"""

import re
from collections.abc import Sequence

import numpy as np

from hpc_ecg.ecg.recording import RecordError, Recording
from hpc_ecg.ecg.signal import LEADS

_STANDARD = {lead.lower(): lead for lead in LEADS} | {"di": "I", "dii": "II", "diii": "III"}
_FROM_I_AND_II = {"III": (-1, 1), "aVR": (-0.5, -0.5), "aVL": (1, -0.5), "aVF": (-0.5, 1)}
_PREFIX = re.compile(r"(?:mdc_ecg_lead|ecg|lead|einthoven|goldberger|wilson)(?:[\s_.:]+|-)?")
_REMARK = re.compile(r"[,(\[].*")  # DICOM: "Lead I (Einthoven)"
_SEPARATORS = re.compile(r"[\s_.:]+")


def normalize_lead(name: str) -> str | None:
    """The standard name (`aVR`, `V1` …) behind any spelling of it; None if there is none."""
    bare = _REMARK.sub("", name.lower()).strip()
    while match := _PREFIX.match(bare):
        bare = bare[match.end() :]
    return _STANDARD.get(_SEPARATORS.sub("", bare))


def complete_leads(
    recording: Recording, wanted: Sequence[str], missing: str = "leave_out"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The wanted leads [L, samples] in their order, and flags that say what was not recorded.

    A limb lead that is absent follows from I and II (Einthoven, Goldberger): III = II - I,
    aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2; flag `derived:III,aVR`. Other absent
    leads: RecordError("leads"), or zeros with `missing="zero"` if any lead was recorded; flag
    `zero_filled:V3`.
    """
    found = [normalize_lead(name) for name in recording.leads]
    absent = [lead for lead in wanted if lead not in found]
    can_derive = found.count("I") == found.count("II") == 1
    derived = [lead for lead in absent if can_derive and lead in _FROM_I_AND_II]
    unknown = [lead for lead in absent if lead not in derived]
    filled = unknown if missing == "zero" and len(unknown) < len(wanted) else []
    rows = iter(order_rows(recording.leads, [w for w in wanted if w not in [*derived, *filled]]))
    signal_LS = np.zeros((len(wanted), recording.signal_LS.shape[1]))
    for row, lead in enumerate(wanted):
        if lead in derived:
            limbs_2S = recording.signal_LS[[found.index("I"), found.index("II")]]
            signal_LS[row] = np.array(_FROM_I_AND_II[lead]) @ limbs_2S
        elif lead not in filled:
            signal_LS[row] = recording.signal_LS[next(rows)]
    said = (("derived:", derived), ("zero_filled:", filled))
    return signal_LS, tuple(name + ",".join(leads) for name, leads in said if leads)


def order_rows(names: Sequence[str], leads: Sequence[str]) -> list[int]:
    """The row of each wanted lead among a file's `names`; rows that nobody wants are passed over.

    RecordError("leads") names every wanted lead that is missing or there twice.
    """
    found = [normalize_lead(name) for name in names]
    missing = [lead for lead in leads if lead not in found]
    twice = [lead for lead in leads if found.count(lead) > 1]
    if missing or twice:
        faults = [f"missing {', '.join(missing)}"] * bool(missing)
        faults += [f"more than one {', '.join(twice)}"] * bool(twice)
        listed = ", ".join(name or "(no name)" for name in names)
        raise RecordError("leads", f"{' and '.join(faults)}; its leads are named: {listed}")
    return [found.index(lead) for lead in leads]
