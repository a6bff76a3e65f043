"""Random statistics and edits of one weight, in float64."""

import torch

from lke_lightning.stage_two.solvers import EditSystem

D_KEY, D_OUT = 24, 10


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed=0, d_key=D_KEY, decades=3):
    basis, _ = torch.linalg.qr(randn(d_key, d_key, seed=seed))
    values = torch.logspace(0, -decades, d_key, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.T


def system(n, seed, d_key=D_KEY):
    keys = randn(n, d_key, seed=seed)
    return EditSystem(keys, keys, randn(n, D_OUT, seed=seed + 1000))


def close(found, expected, tolerance=1e-9):
    assert (found - expected).norm() <= tolerance * expected.norm()
