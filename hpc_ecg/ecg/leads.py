"""Lead names: any file's spelling in, the standard name or a row order out.

Recorders write `AVR`, `Lead aVR` and `MDC_ECG_LEAD_AVR` for the same thing. A name is reduced to
what is left without prefixes and separators; a sign (`-aVR`, as in Cabrera's order) makes another
lead, which stays unknown.
"""

import re
from collections.abc import Sequence

from hpc_ecg.ecg.recording import RecordError
from hpc_ecg.ecg.signal import LEADS

_STANDARD = {lead.lower(): lead for lead in LEADS} | {"di": "I", "dii": "II", "diii": "III"}
_PREFIX = re.compile(r"(?:mdc_ecg_lead|ecg|lead|einthoven|goldberger|wilson)(?:[\s_.:]+|-)?")
_REMARK = re.compile(r"[,(\[].*")  # DICOM: "Lead I (Einthoven)"
_SEPARATORS = re.compile(r"[\s_.:]+")


def normalize_lead(name: str) -> str | None:
    """The standard name (`aVR`, `V1` …) behind any spelling of it; None if there is none."""
    bare = _REMARK.sub("", name.lower()).strip()
    while match := _PREFIX.match(bare):
        bare = bare[match.end() :]
    return _STANDARD.get(_SEPARATORS.sub("", bare))


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
