"""RECT, PRUNE, REVIVE and SPHERE keep what their papers say they keep."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lke_lightning.edits import EditError
from lke_lightning.stage_two.transforms import SpectralCap, SpectralFilter, TopRelativeChange, WrittenReadout

SPHERE = SpectralFilter(0.5, strength=0.5, sides="keys", basis="current", unit_rows=True)


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.floats(0.01, 1), st.integers(0, 99))
@settings(deadline=None)
def test_rect_keeps_the_share_that_changes_most(keep, seed):
    base, change, update = (randn(9, 13, seed=seed + i) for i in (0, 100, 200))
    kept, _ = TopRelativeChange(keep)(base, change, update, {})
    weight = base + change
    chosen = kept != 0
    assert chosen.sum() == round(keep * update.numel())
    assert torch.equal(kept[chosen], update[chosen])
    relative = (update / weight).abs()
    if chosen.any() and not chosen.all():
        assert relative[chosen].min() >= relative[~chosen].max()


def test_prune_is_the_published_formula():
    base, change = randn(6, 8, seed=1), 20 * randn(6, 8, seed=2)
    capped = SpectralCap(1.2)(base, change)
    limit = torch.linalg.svdvals(base).max()
    values = torch.linalg.svdvals(change)
    expected = torch.where(
        values > limit, values.log() / torch.tensor(1.2).log() - limit.log() / 0.1823215568 + limit, values
    )
    torch.testing.assert_close(
        torch.linalg.svdvals(capped), expected.sort(descending=True).values, rtol=1e-6, atol=1e-6
    )
    assert torch.linalg.svdvals(capped).max() < values.max()


def test_prune_leaves_small_changes_alone():
    base, change = 10 * randn(6, 8, seed=1), 0.1 * randn(6, 8, seed=2)
    torch.testing.assert_close(SpectralCap()(base, change), change)


def transformed(part, base, update):
    """Apply a readout to an update alone, or a transform to the first one."""
    if isinstance(part, SpectralCap):
        return part(base, update)
    return part(base, torch.zeros_like(base), update, part.start(base))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "transform",
    [TopRelativeChange(0.4), SpectralCap(), WrittenReadout(SpectralCap()), SpectralFilter(0.5), SPHERE],
    ids=["rect", "prune", "written", "revive", "sphere"],
)
def test_zeros_give_zeros_and_half_precision_gives_no_nan(transform, dtype):
    weight = randn(9, 13, seed=1).to(dtype)
    weight[:5] = 0
    weight[5] = -1e-8  # what the published denominator W + 1e-8 makes zero
    zero, update = torch.zeros(9, 13, dtype=dtype), 20 * randn(9, 13, seed=2).to(dtype)
    update[0] = 0
    assert not transformed(transform, weight, zero).any()
    assert not transformed(transform, torch.zeros_like(weight), zero).any()
    for base in (weight, torch.zeros_like(weight)):
        found = transformed(transform, base, update)
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert found.any()


def test_rect_keeps_its_share_where_half_precision_weights_are_zero():
    weight, update = randn(9, 13, seed=1).bfloat16(), randn(9, 13, seed=2)
    weight[:2] = 0
    kept = transformed(TopRelativeChange(0.4), weight, update)
    assert (kept != 0).sum() == round(0.4 * update.numel())
    assert torch.equal(kept[:2], update[:2])


def leading(weight, share):
    """Count the fewest singular values whose squares are more than a share; decompose the whole space."""
    left, values, right = torch.linalg.svd(weight)
    shares = values.square().cumsum(0) / values.square().sum()
    return int((shares <= share).sum()) + 1, left, right


@pytest.mark.parametrize("shape", [(9, 13), (13, 9)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_revive_zeroes_the_coefficients_in_the_unedited_weights_basis(shape, share):
    base, change, update = (randn(*shape, seed=seed) for seed in (1, 2, 3))
    transform = SpectralFilter(share)
    state = transform.start(base)
    found, after = transform(base, change, update, state)
    count, left, right = leading(base, share)
    coefficients = left.T @ update @ right.T
    coefficients[:count], coefficients[:, :count] = 0, 0
    torch.testing.assert_close(found, left @ coefficients @ right, rtol=1e-10, atol=1e-12)
    assert after is state
    assert [state[name].shape for name in ("outputs", "keys")] == [(shape[0], count), (shape[1], count)]


@pytest.mark.parametrize("shape", [(9, 13), (13, 9)])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_sphere_is_the_published_formula_in_the_edited_weight(shape, strength):
    base, change, update = (randn(*shape, seed=seed) for seed in (1, 2, 3))
    transform = SpectralFilter(0.5, strength, sides="keys", basis="current", unit_rows=True)
    found, state = transform(base, change, update, transform.start(base))
    rows = (base + change) / (base + change).norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    count = int((values.flip(0).cumsum(0) / values.sum() <= 0.5).sum()) + 1
    chosen = vectors[:, -count:]
    torch.testing.assert_close(found, update - strength * update @ chosen @ chosen.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found @ chosen, (1 - strength) * update @ chosen, rtol=1e-9, atol=1e-12)
    assert state == {}


def test_a_basis_of_the_unedited_weight_does_not_move():
    base, update = randn(9, 13, seed=1), randn(9, 13, seed=3)
    for basis, moves in (("unedited", False), ("current", True)):
        transform = SpectralFilter(0.5, basis=basis)
        state = transform.start(base)
        early, late = (transform(base, size * randn(9, 13, seed=2), update, state)[0] for size in (0, 5))
        assert torch.equal(early, late) != moves


def test_a_filter_that_leaves_nothing_is_refused():
    with pytest.raises(EditError, match=r"share 0.9 protects all 9 directions of a weight \(9, 13\).*smaller one"):
        SpectralFilter(0.9).start(torch.eye(9, 13))
    SpectralFilter(0.9, strength=0.5).start(torch.eye(9, 13))


@pytest.mark.parametrize(("option", "value"), [("share", 0.0), ("share", 1.0), ("strength", 0.0), ("strength", 1.1)])
def test_what_is_no_share_or_strength_of_a_filter_is_refused(option, value):
    with pytest.raises(EditError, match=rf"SpectralFilter.{option} is .* above 0"):
        SpectralFilter(**{"share": 0.5, option: value})


def test_a_written_readout_makes_the_total_change_what_the_readout_shows():
    base, change, update = randn(6, 8, seed=1), 10 * randn(6, 8, seed=2), 10 * randn(6, 8, seed=3)
    written, _ = WrittenReadout(SpectralCap())(base, change, update, {})
    torch.testing.assert_close(change + written, SpectralCap()(base, change + update))


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_an_impossible_share_is_refused(keep):
    with pytest.raises(EditError, match=r"TopRelativeChange.keep is .* above 0 and at most 1"):
        TopRelativeChange(keep)


@pytest.mark.parametrize("base", [1.0, 0.0, -2.0, float("nan"), float("inf")])
def test_what_is_no_base_of_a_growing_logarithm_is_refused(base):
    with pytest.raises(EditError, match=r"SpectralCap.base is .* above 1"):
        SpectralCap(base)
