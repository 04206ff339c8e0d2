"""Fields of settings: ranges, choices, and what may change, declared beside the field."""

from dataclasses import dataclass, field

import pytest

from hpc_ecg.config.schema import check_settings, rules_by_key, setting
from hpc_ecg.training.run_folder import differing_keys


@dataclass(frozen=True, kw_only=True)
class Inner:
    kind: str = setting("a", choices=("a", "b"), may_change=True)


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = setting(1.0, above=0)
    share: float | None = setting(None, at_least=0, below=1)
    count: int = setting(3, at_least=1, hint="or leave it out")
    pair: tuple[float, float] = setting((0.5, 0.5), above=0, at_most=1)
    names: list[str] = setting([])
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_settings(self, "outer")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.0}, "outer.rate must be positive, got 0.0"),
        ({"rate": float("nan")}, "outer.rate must be positive, got nan"),
        ({"share": 1.0}, "outer.share must be in [0, 1) or null, got 1.0"),
        ({"count": 0}, "outer.count must be at least 1, got 0; or leave it out"),
        ({"pair": (0.5, 1.5)}, "outer.pair must be in (0, 1], got [0.5, 1.5]"),
    ],
)
def test_a_value_outside_of_its_range_is_named_with_what_is_allowed(values, message):
    with pytest.raises(ValueError) as error:
        Outer(**values)
    assert str(error.value) == message


def test_a_choice_that_does_not_exist_is_named_with_all_choices():
    with pytest.raises(ValueError, match=r"^kind must be one of a, b, got 'c'$"):
        check_settings(Inner(kind="c"), "")


def test_limits_themselves_and_what_is_off_are_allowed():
    assert Outer(share=0.0, pair=(1.0, 0.1), count=1).share == 0.0
    assert Outer(share=None).share is None


def test_instances_do_not_share_a_default_list():
    Outer().names.append("x")
    assert Outer().names == []


def test_rules_are_found_by_dotted_key_through_sections():
    rules = dict(rules_by_key(Outer))
    assert list(rules) == ["rate", "share", "count", "pair", "names", "inner.kind"]
    assert rules["inner.kind"].may_change and not rules["rate"].may_change


def test_a_run_may_change_what_says_so_and_what_lies_below_it():
    one = {"run_dir": "a", "files.base": "x", "optim.lr": 1, "train.log_every": 1}
    other = {"run_dir": "b", "files.base": "y", "optim.lr": 2, "train.log_every": 5}
    assert differing_keys(one, other) == ["optim.lr"]
