import pytest

from hpc_ecg.reporting.numbers import (
    count,
    format_number,
    format_p,
    format_percent,
    format_probability,
    format_span,
    format_threshold,
    format_with_interval,
    join_names,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8124, "0.812"),
        (9.9994, "9.999"),
        (9.9996, "10.00"),
        (62.345, "62.34"),
        (123.45, "123.5"),
        (1234.5, "1234"),
        (-0.25, "−0.250"),
        (-0.0001, "0.000"),
        (None, "–"),
    ],
)
def test_numbers_have_three_decimals_or_four_figures_and_a_true_minus(value, text):
    assert format_number(value) == text


def test_a_signed_number_that_is_not_negative_has_a_plus():
    assert [format_number(x, signed=True) for x in (0.1, 0, -0.1)] == ["+0.100", "+0.000", "−0.100"]


def test_an_interval_with_a_minus_is_written_with_a_word_between():
    def show(value, low, high):
        return format_with_interval({"value": value, "low": low, "high": high})

    assert show(-0.053, -0.492, 0.395) == "−0.053 (−0.492 to 0.395)"
    assert show(0.8, 0.7, 0.9) == "0.800 (0.700–0.900)"
    assert show(12.3, 8, None) == "12.30 (8.000 to –)"
    assert show(0.8, None, None) == "0.800"
    assert show(None, 0.7, 0.9) == "–"


def test_p_values_probabilities_and_percentages_do_not_promise_more_than_they_hold():
    assert [format_p(p) for p in (0.0004, 0.0123, 0.123)] == ["< 0.001", "= 0.012", "= 0.12"]
    assert [format_probability(p) for p in (0.001, 0.5, 0.999)] == ["< 0.01", "0.50", "> 0.99"]
    assert format_percent(0.1234) == "12.3 %"


def test_names_are_joined_as_in_a_sentence():
    assert join_names(["a"]) == "a"
    assert join_names(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "cell"), "1 cell"),
        ((0, "cell"), "0 cells"),
        ((1200, "ECG"), "1,200 ECGs"),
        ((1, "label", "are"), "1 label is"),
        ((2, "label", "are"), "2 labels are"),
    ],
)
def test_a_number_agrees_with_its_noun_and_verb(arguments, text):
    assert count(*arguments) == text


def test_a_span_of_one_number_is_that_number():
    assert format_span(0.4591, 0.4592) == "0.459"
    assert format_span(0.012, 0.034) == "0.012 to 0.034"


def test_a_threshold_of_a_rare_event_is_not_printed_as_zero():
    assert [format_threshold(x) for x in (0.00041237, 0.5)] == ["0.0004124", "0.5"]
