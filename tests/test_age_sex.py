"""Ages and sexes as tables write them: the right value, or missing with a count and an example."""

import pandas as pd
import pytest

from hpc_ecg.ecg.age_sex import read_age, read_ages, read_sexes


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("45", 45),
        (" 45.5 ", 45.5),
        ("45,5", 45.5),
        ("0", 0),
        ("120", 120),
        ("063Y", 63),
        ("018M", 1.5),
        ("018m", 1.5),
        ("026W", 26 * 7 / 365.25),
        ("300D", 300 / 365.25),
        ("63 years", 63),
        ("63 y", 63),
        ("63yo", 63),
        ("P63Y", 63),
        ("P18M", 1.5),
        ("63-year-old", 63),
        ("63 yrs old", 63),
        ("63 a", 63),
        ("63 ans", 63),
        ("'63", 63),
        ("6 months", 0.5),
        ("5 weeks", 5 * 7 / 365.25),
        ("10 days", 10 / 365.25),
    ],
)
def test_an_age_is_in_years_whatever_its_unit(text, years):
    assert read_age(text) == (pytest.approx(years), False)


CAPPED = ["> 89", ">89", ">89y", "90+", "89+", ">=90", ">= 90", "≥90", "over 89", "90 and over"]
CAPPED += ["=>90", "> 89.0", "90plus", "90+ years"]


@pytest.mark.parametrize("text", CAPPED)
def test_ages_that_are_capped_are_90_and_marked(text):
    assert read_age(text) == (90, True)
    assert read_age("300") == (90, True)  # PTB-XL's code for an age over 89
    assert read_age("85+") == (85, True)


@pytest.mark.parametrize(
    "text",
    [
        "Unknown",
        "-1",
        "999",
        "121",
        "1950-05-03",
        "nan",
        "65+",
        "> 50",
        "",
        "1e2",
        "Y",
        "P63",
        "63-",
        "60-69",
    ],
)
def test_what_is_no_age_is_missing(text):
    assert read_age(text) == (None, False)


def test_a_column_says_what_was_understood_and_what_was_not_with_the_first():
    column = pd.Series(["61", "045Y", "", "999", "> 89", "x"], name="age")
    read = read_ages(column)
    assert read.values.tolist() == ["61", "45", "", "", "90", ""]
    assert read.capped_rows == [4]
    assert read.remark == (
        "column age: 3 understood (1 capped: 90 or older), 1 empty, "
        "2 NOT understood, taken as missing (row 4: '999')"
    )
    assert read_ages(column, shown=False).remark.endswith("(row 4)")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["M", "F", ""], ["M", "F", ""]),
        (["male", "female", "male"], ["male", "female", "male"]),
        (["M", "Male", "f", "FEMALE", " m "], ["M", "M", "F", "F", "M"]),
        (["männlich", "weiblich", "M"], ["M", "F", "M"]),
        (["M", "W", "m"], ["M", "F", "M"]),
        (["M", "K", "m"], ["M", "F", "M"]),
        (["♂", "♀", "M."], ["M", "F", "M"]),
        (["F", "O", "diverse"], ["F", "O", "O"]),
        (["F", "Unknown", "U"], ["F", "", ""]),
        (["0", "1", ""], ["0", "1", ""]),
        (["1", "2.0", "2"], ["1", "2", "2"]),
    ],
)
def test_words_for_a_sex_become_one(cells, expected):
    assert read_sexes(pd.Series(cells, name="sex")).values.tolist() == expected


def test_words_that_are_not_known_are_missing_and_counted():
    read = read_sexes(pd.Series(["F", "zz", "", "zz", "U"], name="sex"))
    assert read.values.tolist() == ["F", "", "", "", ""]
    assert read.remark == (
        "column sex: 2 understood (1 as unknown), 1 empty, "
        "2 NOT understood, taken as missing (row 2: 'zz')"
    )
    codes = read_sexes(pd.Series(["0", "1"], name="sex"))
    assert "codes, kept as they are: which one is male is not stated" in codes.remark


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["M", "F", "1"], "'1' means different sexes in different tables"),
        (["M", "Male", "f", "1", "W"], "the column holds 1, M, Male, W, f; write M and F"),
        (["F", "W"], "'W' means different sexes in different tables"),
        (["W", "B"], "'W' means different sexes in different tables"),
        (["H", "M"], "'H' means different sexes in different tables"),
    ],
)
def test_what_could_mean_either_sex_is_refused_with_what_was_seen(cells, said):
    with pytest.raises(ValueError, match="column sex: ") as caught:
        read_sexes(pd.Series(cells, name="sex"))
    assert said in str(caught.value)
