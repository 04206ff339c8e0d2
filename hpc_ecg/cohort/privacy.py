"""De-identification: pseudonyms for patients and records, dates shifted or dropped.

Without a key a patient becomes the number of their first row: that cannot be reversed, but another
table gives another number. With the user's key, patients and records become keyed hashes
(HMAC-SHA256): the same in every table, and nobody without the key can find a name by trying.
"""

import dataclasses
import hmac
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hpc_ecg.cohort.table import Cohort
from hpc_ecg.log import logger
from hpc_ecg.safe_reading import check_regular

DATES = ("keep", "shift", "drop")
MIN_KEY_BYTES = 16
HASH_CHARACTERS = 16  # 64 bits: a collision among 500,000 patients has a probability of 7e-9
MAX_SHIFT_DAYS = 365
DATE = r"\b\d{4}-\d{2}-\d{2}|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"


@dataclass(frozen=True, kw_only=True)
class Privacy:
    key_file: Path | None = None
    """File whose bytes are the key; it stays with the user."""
    dates: str = "keep"
    """keep, drop, or shift: by 1 to 365 days, the same for all dates of a patient."""


def deidentify(cohort: Cohort, privacy: Privacy) -> Cohort:
    """The cohort as the index may show it. Split it first: splits by time need the true dates.

    ValueError: a key that is missing or too short, dates that cannot be shifted or dropped safely.
    """
    if privacy.dates not in DATES:
        raise ValueError(f"--dates must be one of {', '.join(DATES)}, got {privacy.dates!r}")
    if privacy.dates == "shift" and privacy.key_file is None:
        raise ValueError("--dates shift needs --key FILE: the shifts are made from the key")
    key = None if privacy.key_file is None else read_key(privacy.key_file)
    extra = cohort.extra.copy()
    if privacy.dates != "keep":
        _check_no_other_dates(extra)
    if privacy.dates == "drop":
        extra = extra.drop(columns="time", errors="ignore")
    elif key is not None and privacy.dates == "shift":
        if "time" not in extra:
            raise ValueError("--dates shift: there is no column of times; name it with --time")
        extra["time"] = _shifted(extra["time"], cohort.patients, key)
    if key is None:
        first_N = pd.Series(np.arange(len(cohort))).groupby(cohort.patients).transform("first")
        patients = "p" + first_N.astype(str).str.zfill(8)
        return dataclasses.replace(cohort, patients=patients, extra=extra)
    return dataclasses.replace(
        cohort,
        patients=pd.Series(["p" + _hash(patient, key) for patient in cohort.patients]),
        records=pd.Series(["r" + _hash(record, key) for record in cohort.records]),
        extra=extra,
    )


def read_key(path: Path) -> bytes:
    """The key, without whitespace at its ends; at least 16 bytes."""
    try:
        check_regular(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ValueError(f"--key {path} cannot be read: {error.strerror}") from None
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(
            f"--key {path} holds {len(key)} bytes, at least {MIN_KEY_BYTES} are needed; make one "
            f"with: (umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > {path})"
        )
    if path.stat().st_mode & 0o077:
        logger.warning(f"--key {path} can be read by others: chmod 600 {path}")
    return key


def _check_no_other_dates(extra: pd.DataFrame) -> None:
    """One true date beside a shifted one would reveal the shift."""
    for name in extra.drop(columns="time", errors="ignore"):
        if extra[name].str.contains(DATE).any():
            raise ValueError(
                f"--keep {name} holds dates, but --dates shift and drop treat only --time; "
                "do not keep it"
            )


def _hash(text: str, key: bytes) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()[:HASH_CHARACTERS]


def _shifted(times: pd.Series, patients: pd.Series, key: bytes) -> pd.Series:
    """The times, shifted by 1 to 365 days per patient; ValueError for a cell that is not a date."""
    days = [1 + int(_hash(f"shift of {p}", key), 16) % MAX_SHIFT_DAYS for p in patients]
    parsed = pd.to_datetime(times, errors="coerce", format="ISO8601", utc=True)
    wrong = np.flatnonzero(parsed.isna() & (times != ""))
    if len(wrong):
        raise ValueError(
            f"--dates shift: row {wrong[0] + 1} of the column of times holds no date like "
            f"2019-01-31 ({len(wrong)} such rows); correct them, or use --dates drop"
        )
    shifted = parsed - pd.to_timedelta(pd.Series(days, index=times.index), unit="D")
    return shifted.dt.strftime("%Y-%m-%dT%H:%M:%S").fillna("")
