"""What the edits changed in each matrix, and how a format says of which model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.model.architecture import is_transposed

SAMPLES = 32
"""How many entries of an unedited matrix a format holds, so that another base model is recognised."""


@dataclass(frozen=True)
class Change:
    """What the edits changed in one matrix, as the model is read: after the method's readout."""

    matrix: nn.Module
    """The module whose weight it is, in the network."""
    base: Tensor
    """The unedited weight, in the network's dtype and as the network stores it."""
    total: Tensor
    """Live weight minus unedited weight before rounding to the network's dtype, (d_out, d_key), float32 or better."""

    def stored(self) -> Tensor:
        """Return the total change as the network stores the weight: transposed for GPT-2's Conv1D."""
        return self.total.T if is_transposed(self.matrix) else self.total

    def sizes(self) -> tuple[float, float]:
        """Return the Frobenius norms of the edited weight and of the change over that of the unedited weight."""
        base = self.base.to(self.total)
        size = base.norm()
        return ((base + self.stored()).norm() / size).item(), (self.total.norm() / size).item()


def changes(editor: Editor) -> dict[str, Change]:
    """Return what was changed, by the name that the weight has in the network's `state_dict`.

    Raises:
        EditError: the edits are not in the weights, or a change is not finite.
    """
    check_in_weights(editor)
    model = editor.language_model
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    with editor.as_read():
        weights = [model.weight(layer) for layer in model.layers]
        return {names[id(w.matrix.weight)]: Change(w.matrix, w.base, w.delta.clone()) for w in weights}


def check_in_weights(editor: Editor) -> None:
    """Raise `EditError` unless the edits are finite changes of the weights, which is all that most formats hold."""
    for module in editor.language_model.beside.values():
        raise EditError(
            f"the edits are not in the weights but beside them, in a {type(module).__name__}, for which merged, delta, "
            "lora and gguf have no place: use --format module"
        )
    for layer in editor.language_model.layers:
        if not editor.language_model.weight(layer).delta.isfinite().all():
            raise EditError(
                f"the change of layer {layer} has entries that are not finite: export an earlier checkpoint of the run"
            )


def base_name(editor: Editor) -> str:
    """Name the unedited model, without the path of a local folder."""
    return Path(editor.pretrained).name if Path(editor.pretrained).exists() else editor.pretrained


def sample(weight: Tensor) -> list[float]:
    """Return a few evenly spread entries of an unedited weight."""
    count = min(SAMPLES, weight.numel())
    return weight.flatten()[:: weight.numel() // count][:count].tolist()
