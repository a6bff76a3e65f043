"""Grouping of sequences into passes: little padding, few passes, within memory."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lke_lightning.edits import EditError

Item = TypeVar("Item")
Result = TypeVar("Result")

PASS_COST = {"cpu": 16, "cuda": 256}
"""Cost of another pass by device, in tokens: kernel launches, and reading the weights again."""


def by_length(lengths: Sequence[int], max_tokens: int, device: torch.device) -> list[list[int]]:
    """Group sequences to minimize the joint cost of padding and passes.

    Args:
        lengths: length of each sequence.
        max_tokens: maximum tokens of a group with padding; a longer sequence gets its own group.
        device: where they will run; see `PASS_COST`.

    Returns:
        The numbers of the sequences in each group, short groups first.
    """
    counts = Counter(lengths)
    present = sorted(counts)
    pass_cost = PASS_COST.get(device.type, 256)
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the `end` shortest lengths, and where their last group starts
    for end in range(1, len(present) + 1):
        cost, count = [], 0
        for start in reversed(range(end)):
            count += counts[present[start]]
            cost.append((best[start][0] + count * present[end - 1] + pass_cost, start))
        best.append(min(cost))
    upper, end = [], len(present)
    while end:
        upper.append(present[end - 1])
        end = best[end][1]

    members: dict[int, list[int]] = {bound: [] for bound in reversed(upper)}
    bound_of = {length: min(bound for bound in upper if bound >= length) for length in present}
    for number, length in enumerate(lengths):
        members[bound_of[length]].append(number)
    groups = []
    for bound, numbers in members.items():
        size = max(1, max_tokens // max(bound, 1))
        groups += [numbers[i : i + size] for i in range(0, len(numbers), size)]
    return groups


def within_memory(
    run: Callable[[list[Item]], Result], items: Sequence[Item], tokens: Callable[[Item], int], max_tokens: int
) -> tuple[list[Result], int]:
    """Run items in order, as many at once as the budget and the device's memory allow.

    When memory runs out, the budget is halved and the failed part is repeated: results do not depend on it.

    Args:
        run: runs some items.
        items: what to run.
        tokens: size of one item.
        max_tokens: size of what runs at once; an item larger than that runs alone.

    Returns:
        The results, and the final budget.

    Raises:
        EditError: a single item is too large for the device.
    """
    results: list[Result] = []
    left = list(items)
    while left:
        count = used = 0
        while count < len(left) and (count == 0 or used + tokens(left[count]) <= max_tokens):
            used += tokens(left[count])
            count += 1
        try:
            results.append(run(left[:count]))
            left = left[count:]
        except torch.OutOfMemoryError as error:
            if count == 1:
                raise EditError(
                    f"one item of {used} tokens does not fit into the device's memory: use a smaller dtype, another "
                    "device or Lightning's model-parallel strategies"
                ) from error
            torch.cuda.empty_cache()  # does nothing without a GPU
            max_tokens = used // 2
            warnings.warn(f"out of memory: continuing with {max_tokens} tokens at once (max_tokens)", stacklevel=2)
    return results, max_tokens
