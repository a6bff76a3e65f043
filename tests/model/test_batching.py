"""Grouping against every possible grouping; running out of memory."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lke_lightning.edits import EditError
from lke_lightning.model.batching import PASS_COST, by_length, within_memory

CPU = torch.device("cpu")


def cost(groups, lengths):
    return sum(len(group) * max(lengths[i] for i in group) + PASS_COST["cpu"] for group in groups)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=7))
def test_no_cut_of_the_sorted_lengths_costs_less(lengths):
    groups = by_length(lengths, 10**6, CPU)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    every = (
        [order[a:b] for a, b in itertools.pairwise([0, *cuts, len(order)])]
        for count in range(len(order))
        for cuts in itertools.combinations(range(1, len(order)), count)
    )
    assert cost(groups, lengths) == min(cost(cut, lengths) for cut in every)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 100))
def test_groups_keep_the_budget_or_hold_one_sequence(lengths, max_tokens):
    for group in by_length(lengths, max_tokens, CPU):
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= max_tokens


def test_halves_the_budget_when_memory_runs_out_and_loses_nothing():
    calls = []

    def run(items):
        calls.append(list(items))
        if sum(items) > 5:
            raise torch.OutOfMemoryError
        return list(items)

    with pytest.warns(UserWarning, match="out of memory"):
        found, budget = within_memory(run, [3, 2, 1, 1, 4], int, 100)
    assert list(itertools.chain(*found)) == [3, 2, 1, 1, 4]
    assert budget == 5
    assert calls[0] == [3, 2, 1, 1, 4]


def test_says_when_a_single_item_does_not_fit():
    def run(items):
        raise torch.OutOfMemoryError

    with pytest.raises(EditError, match="one item of 7 tokens"):
        within_memory(run, [7], int, 100)
