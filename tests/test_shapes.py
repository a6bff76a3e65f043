"""Values from files against the types that they should have."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch

from lke_lightning.shapes import fits, lacking, types_of


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int), (1, float), (1.5, float), (None, str | None), ("a", str | None), ("a", Literal["a", "b"]),
        ([1, None], list[int | None]), ([], list[str]), ([1], Sequence[int]), ({"a": [1]}, dict[str, list[int]]),
        (torch.zeros(1), torch.Tensor), (object(), Any), ({}, dict), (True, bool),
    ],
)  # fmt: skip
def test_what_fits(value, hint):
    assert fits(value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int), (True, float), (1.5, int), ("1", int), (3, str | None), ("c", Literal["a", "b"]),
        ([1, "a"], list[int]), ("ab", Sequence[str]), ({1: "a"}, dict[str, Any]), ({"a": 1}, dict[str, str]),
        ([0.0], torch.Tensor), (None, dict),
    ],
)  # fmt: skip
def test_what_does_not(value, hint):
    assert not fits(value, hint)


def test_the_first_part_that_is_missing_is_named():
    wanted = {"a": int, "b": {"c": list[str]}}
    assert lacking({"a": 1, "b": {"c": ["x"]}, "more": 2}, wanted) is None
    assert lacking({"b": {"c": []}}, wanted) == "a"
    assert lacking({"a": 1, "b": 2}, wanted) == "b"
    assert lacking({"a": 1, "b": {"c": [1]}}, wanted) == "b.c"


def test_a_state_wants_others_like_it():
    wanted = types_of({"count": 3, "names": ["a"], "nothing": None, "empty": {}, "nested": {"value": 0.5}})
    assert lacking({"count": 2.0, "names": [], "nothing": 7, "empty": {"x": 1}, "nested": {"value": 1}}, wanted) is None
    assert lacking({"count": 2, "names": {}, "nothing": 7, "empty": {}, "nested": {"value": 1}}, wanted) == "names"
