"""From solved updates to written ones: what a transform makes of them, and what it leaves for later batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lke_lightning.model.weights import EditedWeight
from lke_lightning.stage_two.transforms import State, UpdateTransform


class Writing:
    """Transforms the updates of a run, layer by layer, and with `compensate` makes up for what that leaves out.

    OTE-SE (arXiv 2605.26670): with all past edits in the solver's memory, updates D without a transform add up to the
    solution W* of one solve over all edits. `error` is W - W*, what the transform T has left of it. The next batch is
    solved in W* = W - error, as if nothing had been left; of its update T(D - error) is written, and the error becomes
    T(D - error) - (D - error). So W - error is always the solution of one solve. The paper keeps E = error A, with A
    the solver's matrix, and subtracts it on the right-hand side of the next system: the same numbers.

    Args:
        transform: T; `None`: updates are written as they are.
        compensate: keep the error.
    """

    def __init__(self, transform: UpdateTransform | None, compensate: bool) -> None:
        self.transform, self.compensate = transform, compensate
        self.states: dict[int, State] = {}
        """The transform's state, by layer."""
        self.errors: dict[int, Tensor] = {}
        """The error, by layer, (d_out, d_key); none before the first update and without `compensate`."""

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold; nothing where there is nothing, as in those of earlier versions."""
        states = {str(layer): state for layer, state in self.states.items() if state}
        errors = {str(layer): error for layer, error in self.errors.items()}
        return {name: part for name, part in (("states", states), ("errors", errors)) if part}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what `saved` returned, among other things."""
        self.states = {int(layer): dict(state) for layer, state in saved.get("states", {}).items()}
        self.errors = {int(layer): error for layer, error in saved.get("errors", {}).items()}

    def mark(self) -> tuple[dict[int, State], dict[int, Tensor]]:
        """Return what `return_to` needs to return to this moment; tensors are never changed in place."""
        return dict(self.states), dict(self.errors)

    def return_to(self, mark: tuple[dict[int, State], dict[int, Tensor]]) -> None:
        """Return to an earlier moment."""
        states, errors = mark
        self.states, self.errors = dict(states), dict(errors)

    def return_layer(self, layer: int, mark: tuple[dict[int, State], dict[int, Tensor]]) -> None:
        """Return to an earlier moment in one layer."""
        self.forget(layer)
        states, errors = mark
        if layer in states:
            self.states[layer] = states[layer]
        if layer in errors:
            self.errors[layer] = errors[layer]

    def forget(self, layer: int) -> None:
        """Forget the state and the error of a layer whose weight is unedited again."""
        self.states.pop(layer, None)
        self.errors.pop(layer, None)

    def error(self, layer: int, weight: EditedWeight) -> Tensor | None:
        """Return the error of a layer, (d_out, d_key) in the change's dtype, on its device; `None`: zero."""
        return self.errors[layer].to(weight.delta) if layer in self.errors else None

    def solved(self, layer: int, weight: EditedWeight) -> Tensor:
        """Return the total change that the solver knows of: that of W*, (d_out, d_key)."""
        error = self.error(layer, weight)
        return weight.delta if error is None else weight.delta - error

    def written(self, layer: int, weight: EditedWeight, update: Tensor, agreed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what to write of an update, and note what that leaves; where W* is unedited again, W is too.

        Args:
            layer: its number.
            weight: its weight, before the update.
            update: what was solved for, (d_out, d_key).
            agreed: makes an update the same on all processes, in the dtype of the weight's change, or refuses it.
        """
        update = agreed(update)
        if self.transform is None:
            return update
        if self.compensate and not (self.solved(layer, weight) + update).any():
            self.forget(layer)
            return -weight.delta
        error, base = self.error(layer, weight), weight.wide_base()
        missing = update if error is None else update - error
        state = self.states[layer] if layer in self.states else self.transform.start(base)
        state = {name: part.to(base.device) for name, part in state.items()}
        written, self.states[layer] = self.transform(base, weight.delta, missing, state)
        written = agreed(written)
        if self.compensate:
            self.errors[layer] = written - missing
        return written
