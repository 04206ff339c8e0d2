"""Identifiers that are the same to a person: 0012345 and 12345, 1000 and 1000.0, é in two forms.

Spreadsheets and float columns rewrite identifiers. Taken as they are, one patient would be two, or
lose the events of another table. So wherever identifiers are joined or grouped, two spellings of
one stop the command; only the user can say that they are not the same.
"""

import re
import unicodedata
from collections.abc import Mapping

import numpy as np
import pandas as pd

AS_WRITTEN = "--ids-as-written"
_INVISIBLE = re.compile(
    r"[\s\0-\x1f\xad\u0307\u061c\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_DASH = re.compile(r"[\u2010-\u2015\u2212]")
_WHOLE = re.compile(r"(\d{1,99})(?:\.0*|,0{1,2})?")
_THOUSANDS = re.compile(r"\d{1,3}(?:[.,'’]\d{3}){1,9}")
_FLOAT = re.compile(r"(\d{1,40})(?:[.,](\d{1,40}))?e\+?(\d{1,2})")
_SHEET = r"^\d[.,](\d+)[eE]\+(\d\d)$"
_DAY = re.compile(r"(\d{4})[-/.](\d\d)[-/.](\d\d)(?:t?00:00(?::00(?:\.0+)?)?)?")
_LETTERS = str.maketrans("авекмнорстухіѕıαβεζηικμνορτυχ", "abekmhopctyxisiabezhikmnoptyx")


def comparable(identifier: str) -> str:
    """The identifier without what a person overlooks and programs change: case, blanks and other
    invisible characters, kinds of dashes, quotes around it and `="…"`, Unicode forms (NFKC),
    letters that look the same; of a number leading zeros, `.0`, marks of thousands and the form
    1.2e3; of a date its marks and midnight."""
    text = identifier.casefold()
    if not (text.isascii() and text.isalnum()):
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = _DASH.sub("-", _INVISIBLE.sub("", text)).translate(_LETTERS).strip("='\"‘’“”„«»`")
    if not text[:1].isdigit():
        return text
    if match := _FLOAT.fullmatch(text):
        whole, fraction, exponent = match[1], (match[2] or "").rstrip("0"), int(match[3])
        if len(fraction) <= exponent:
            text = whole + fraction.ljust(exponent, "0")
    elif match := _DAY.fullmatch(text):
        text = "".join(match.groups())
    if match := _WHOLE.fullmatch(text):
        return str(int(match[1]))
    return str(int(re.sub(r"\D", "", text))) if _THOUSANDS.fullmatch(text) else text


def _rounded(ids: pd.Series) -> pd.Series:
    """Those that lost digits: 1.23457E+11, or all of 16 digits and more end in 0 after the 15th."""
    floats, long = ids[ids.str.contains("+", regex=False)], ids[ids.str.len() > 15]
    parts, cut = floats.str.extract(_SHEET), long[long.str.fullmatch(r"\d{15}0+")]
    all_cut = long.str.isdigit().sum() == len(cut) > 1
    return pd.concat(
        [floats[parts[0].str.len() < parts[1].astype(float)], cut[: len(cut) * all_cut]]
    )


def check_spellings(
    columns: Mapping[str, pd.Series], as_written: bool, cure: str = AS_WRITTEN, shown: bool = True
) -> None:
    """Raise ValueError if one identifier is written in two ways, within a column or across them, or
    if a spreadsheet rounded identifiers.

    `columns`: what each is, for the message -> its identifiers, indexed by row; '' is none.
    `as_written`: the user says that they are different. `shown`: name the spellings, not only rows.
    """
    if as_written:
        return
    parts = [column[column != ""].drop_duplicates() for column in columns.values()]
    ids = pd.concat(parts, keys=columns).drop_duplicates()
    hashes = (hash(comparable(i)) for i in ids.to_numpy(object))  # as text they take much memory
    groups = pd.Series(np.fromiter(hashes, np.int64, len(ids)), ids.index)
    twice = groups[groups.duplicated(keep=False)]
    if len(twice):
        pair = ids[twice.index[twice == twice.iloc[0]]][:2].items()
        first, second = (f"{what[0]}, row {what[1] + 1}" + f": {i!r}" * shown for what, i in pair)
        raise ValueError(
            f"identifiers in more than one spelling: {twice.nunique():,}, such as ({first}) and "
            f"({second}); write each in one way everywhere, or say with {cure} that they are not "
            "the same"
        )
    lost = pd.concat([_rounded(part) for part in parts], keys=columns)
    for what, row in lost.index[:1]:
        raise ValueError(
            f"identifiers that lost digits in a spreadsheet: {len(lost):,}, such as ({what}, "
            f"row {row + 1}" + f": {lost.iloc[0]!r}" * shown + "); export that column again as "
            f"text, or say with {cure} that they are meant so"
        )
