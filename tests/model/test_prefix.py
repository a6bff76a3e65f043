"""Rows continued from shared prefixes say what whole rows say."""

import pytest
import torch

from lke_lightning.model.prefix import Prefixes, shared_beginnings
from tests.stage_one.test_optimization import FAMILIES, make_model

ROWS = [(5, 6, 7, 8, 9, 10, 11, 12, 13), (5, 6, 7, 20, 21), (5, 6, 7, 20, 22, 23), (30,), (31, 32, 33), (5,), (5, 6, 7)]
SPLITS = [6, 4, 3, 0, 2, 0, 3]


def test_shared_beginnings_are_those_of_neighbours():
    assert shared_beginnings([(1, 2, 3), (1, 2, 4), (5,), (5, 6)]) == [(1, 2), (1, 2), (5,), (5,)]


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_agree_with_whole_rows(family):
    model = make_model(family)
    split = [(row[:at], row[at:]) for row, at in zip(ROWS, SPLITS, strict=True) if row[at:]]
    prefixes = Prefixes.run(model, [before for before, _ in split], max_tokens=10)
    batch = prefixes.followed_by(model, [before for before, _ in split], [after for _, after in split])
    numbers = torch.arange(len(split))
    for _ in range(2):  # what one forward wrote behind the prefixes does not leak into the next
        logits = model.logits(batch, numbers, batch.mask.sum(1) - 1)
        for found, (before, after) in zip(logits, split, strict=True):
            with torch.no_grad():
                whole = model.network(torch.tensor([before + after])).logits[0, -1]
            torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-7)


def test_gradients_reach_the_states_written_behind_a_prefix():
    model = make_model("llama")
    prefixes = Prefixes.run(model, [(5, 6, 7)], max_tokens=10)
    batch = prefixes.followed_by(model, [(5, 6, 7)], [(8, 9, 10)])
    hidden = model.network.model.embed_tokens(batch.ids).requires_grad_()
    reads = torch.tensor([0]), torch.tensor([2])
    for _ in range(2):
        [found] = torch.autograd.grad(model.states(batch, *reads, 1, hidden).sum(), hidden)

    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    after = model.observe(model.text.pad([_row(ids)]), [model.architecture.blocks[0]], stop=1)[0][1][:, :3]
    whole = torch.cat([after, hidden.detach()], 1).requires_grad_()
    batch = model.text.pad([_row(ids)])
    [expected] = torch.autograd.grad(model.states(batch, torch.tensor([0]), torch.tensor([5]), 1, whole).sum(), whole)
    torch.testing.assert_close(found, expected[:, 3:])


def _row(ids):
    from lke_lightning.model.tokens import Row

    return Row(tuple(ids[0].tolist()), 0)
