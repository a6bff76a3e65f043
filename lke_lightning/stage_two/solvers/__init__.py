"""From keys and residuals to an update of one weight. Torch only; one layer at a time.

Shapes: edits first. keys (n, d_key), residuals (n, d_out), update D (d_out, d_key); the papers' K is `keys.T`.
A solver keeps nothing: what has to survive between batches is the memory it takes and returns, a dict of tensors.
"""

from lke_lightning.stage_two.solvers.equality import EqualityConstrained
from lke_lightning.stage_two.solvers.least_squares import LeastSquares
from lke_lightning.stage_two.solvers.shrinking import ShrinkingNullSpace
from lke_lightning.stage_two.solvers.solver import Downdatable, EditSystem, Eigen, Memory, Solver
from lke_lightning.stage_two.solvers.virtual_queue import VirtualQueue

__all__ = [
    "Downdatable",
    "EditSystem",
    "Eigen",
    "EqualityConstrained",
    "LeastSquares",
    "Memory",
    "ShrinkingNullSpace",
    "Solver",
    "VirtualQueue",
]
