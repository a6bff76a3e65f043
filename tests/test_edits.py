"""The vocabulary's own checks."""

import pytest

from lke_lightning.edits import EditError, check_number


@pytest.mark.parametrize(
    ("value", "bounds", "allowed"),
    [
        (float("nan"), {}, "a finite number$"),
        (float("inf"), {"above": 0}, "a finite number above 0$"),
        (10**400, {"above": 0}, "a finite number above 0$"),
        ("1", {}, "a finite number$"),
        (None, {"at_least": 1}, "a finite number at least 1$"),
        (0, {"above": 0}, "a finite number above 0$"),
        (0.9, {"at_least": 1}, "a finite number at least 1$"),
        (1, {"above": 0, "below": 1}, "a finite number above 0 and below 1$"),
        (1.5, {"above": 0, "at_most": 1}, "a finite number above 0 and at most 1$"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_its_name_and_bounds(value, bounds, allowed):
    with pytest.raises(EditError, match=f"some.option is {value}: it has to be {allowed}"):
        check_number("some.option", value, **bounds)


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_bounds_are_kept_as_they_say(value):
    check_number("some.option", value, at_least=0, at_most=1)
    check_number("some.option", value, above=-1, below=2)
