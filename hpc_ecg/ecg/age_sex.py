"""Age and sex as tables and recording files write them.

What is understood gets one form. What is not becomes missing, and a remark says how many cells,
with an example. Letters and codes whose meaning differs between tables are not guessed.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

CAPPED_AGE = 90
"""Data sets write all ages over 89 as one value, as these identify people: `> 89`, `90+`, 300."""
MAX_AGE = 120
_PER_YEAR = {"y": 1, "j": 1, "a": 1, "m": 12, "w": 365.25 / 7, "d": 365.25}
_AGE = re.compile(
    r"'?(?:p(?=\d+[ymwd]$))?(\d+(?:[.,]\d*)?)(?:[\s-]*(y|yo|y\.o\.|(?:yrs?\.?|years?)(?:[ -]old)?"
    r"|jahre?|a|ans?|años|anni|m|mo|months?|w|wks?|weeks?|d|days?))?"
)
_CAPPED = re.compile(
    r"(?:=?>=?|≥|over|above)\s*(8\d|9\d|1[01]\d)(?:\.0)?\s*(?:y|yrs|years)?"
    r"|(8\d|9\d|1[01]\d)(?:\.0)?\s*(?:y|yrs|years)?\s*"
    r"(?:(?:\+|plus)\s*(?:y|yrs|years)?|(?:and|or) (?:over|older|above|more))"
    r"|(300)(?:\.0)?"
)
_WORDS = {
    "M": "m m. ♂ male man boy mann männlich maennlich masc masculin masculino homme hombre uomo",
    "F": "f f. ♀ k female woman girl frau weiblich fem feminin féminin femenino femme mujer donna",
    "O": "o other x divers diverse intersex",
    "": "u unk unknown unbekannt n/a na nan none null ? -",
}
_SEX_OF = {word: sex for sex, words in _WORDS.items() for word in words.split()}


@dataclass(frozen=True, kw_only=True)
class ReadColumn:
    values: pd.Series
    """Text, '' where it is missing."""
    remark: str
    capped_rows: list[int] = field(default_factory=list)
    """Of ages: which say no more than `90 or older`."""


def read_age(text: str) -> tuple[float | None, bool]:
    """Years, or None if this is no age from 0 to 120; and whether the age is capped.

    Understands `45`, `45,5`, DICOM's `045Y` and `018M`, `6 weeks`; `> 89`, `90+` and 300 are 90.
    """
    text = text.strip().casefold()
    if match := _CAPPED.fullmatch(text):
        age = int(match[1] or match[2] or match[3])
        return float(CAPPED_AGE if age in (CAPPED_AGE - 1, CAPPED_AGE, 300) else age), True
    if (match := _AGE.fullmatch(text)) is None:
        return None, False
    age_years = float(match[1].replace(",", ".")) / _PER_YEAR[(match[2] or "y")[0]]
    return age_years if age_years <= MAX_AGE else None, False


def read_ages(column: pd.Series, shown: bool = True) -> ReadColumn:
    """The ages in years as text. `shown`: the remark may show a cell."""
    text = column.str.strip()
    read = {cell: read_age(cell) for cell in text.unique()}
    years = {c: "" if age is None else repr(age).removesuffix(".0") for c, (age, _) in read.items()}
    values = text.map(years)
    capped = np.flatnonzero(text.isin([cell for cell in read if read[cell][1]])).tolist()
    note = f" ({len(capped):,} capped: {CAPPED_AGE} or older)" if capped else ""
    remark = describe_cells(text, (values == "") & (text != ""), note, shown)
    return ReadColumn(values=values, remark=remark, capped_rows=capped)


def read_sexes(column: pd.Series, shown: bool = True) -> ReadColumn:
    """M, F and O (other); one spelling of each, and codes such as 0 and 1, stay as written.

    ValueError: a letter that means different sexes in different tables, codes beside words.
    """
    text = column.str.strip()
    seen = sorted(set(text) - {""})
    sexes = {cell: _SEX_OF.get(cell.casefold()) for cell in seen}
    codes = {cell: cell[0] for cell in seen if re.fullmatch(r"\d(\.0)?", cell)}
    if "M" in sexes.values() and "F" not in sexes.values():
        sexes |= {cell: "F" for cell in seen if cell in "wW"}
    has_words = any(sexes.values())
    for cell in seen:
        if (cell in "wWhH" and not sexes[cell]) or (cell in codes and has_words):
            raise ValueError(
                f"column {column.name}: {cell!r} means different sexes in different tables; the "
                f"column holds {', '.join(seen[:8])}; write M and F"
            )
    kept = {cell: sex for cell, sex in (sexes | codes).items() if sex}
    if len(set(kept.values())) == len(kept) and not codes:
        kept = {cell: cell for cell in kept}  # one spelling of each
    unknown = text.isin([cell for cell, sex in sexes.items() if sex == ""])
    note = " (codes, kept as they are: which one is male is not stated)" if codes else ""
    note += f" ({unknown.sum():,} as unknown)" if unknown.any() else ""
    values = text.map(kept).fillna("")
    is_wrong = (values == "") & (text != "") & ~unknown
    return ReadColumn(values=values, remark=describe_cells(text, is_wrong, note, shown))


def spell_sex(cell: str) -> str:
    """M, F or O where the word or letter says which; anything else stays as written."""
    return _SEX_OF.get(cell.casefold()) or cell


def describe_cells(text: pd.Series, is_wrong: pd.Series, note: str = "", shown: bool = True) -> str:
    """How many cells were understood, how many were not, and the first of these."""
    wrong, empty = int(is_wrong.sum()), int((text == "").sum())
    remark = f"column {text.name}: {len(text) - wrong - empty:,} understood{note}"
    remark += f", {empty:,} empty" if empty else ""
    if wrong:
        row = is_wrong.to_numpy().argmax()
        example = f"row {row + 1}" + f": {text.iloc[row]!r}" * shown
        remark += f", {wrong:,} NOT understood, taken as missing ({example})"
    return remark
