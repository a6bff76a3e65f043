"""What the optimiser moves, and which change of the edited matrices that is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lke_lightning.edits import EditError, check_number
from lke_lightning.model.weights import EditedWeight


def entry(weight: EditedWeight) -> float:
    """Return the size of a typical entry of the unedited matrix, its root mean square; 1 of an empty matrix."""
    return weight.base.double().square().mean().sqrt().item() or 1.0


class Change(ABC):
    """A change of the edited matrices in parameters of its own, zero at first."""

    parameters: list[nn.Parameter]

    @abstractmethod
    def of(self, layer: int) -> Tensor:
        """Return the change of a layer's matrix, (d_out, d_key), in the delta's dtype; differentiable."""

    def set(self, layer: int, change: Tensor) -> None:
        """Let the parameters be those of another change."""
        raise NotImplementedError


class Parametrisation(ABC):
    """Which parameters make the change of a batch."""

    is_free: ClassVar[bool] = False
    """Whether any change can be made, so that steps may be constrained."""
    share: float = 1.0
    """Which part of what was learnt is written."""

    @abstractmethod
    def start(self, weights: Mapping[int, EditedWeight], draw: torch.Generator) -> Change:
        """Return a change that is zero.

        Args:
            weights: the edited weights, by layer.
            draw: of random numbers.
        """

    @abstractmethod
    def count(self, d_out: int, d_key: int) -> int:
        """Return how many parameters a matrix has."""


class Dense(Parametrisation):
    """Every entry of the change is a parameter.

    Args:
        relative: count changes in typical entries of each matrix (`entry`), so that a learning rate means the same on
            every model; false: as they are, as published.
    """

    is_free = True

    def __init__(self, relative: bool = True) -> None:
        self.relative = relative

    def start(self, weights: Mapping[int, EditedWeight], draw: torch.Generator) -> Change:
        """Begin with zeros."""
        return _DenseChange(weights, {layer: entry(w) if self.relative else 1.0 for layer, w in weights.items()})

    def count(self, d_out: int, d_key: int) -> int:
        """Count the entries."""
        return d_out * d_key


class _DenseChange(Change):
    def __init__(self, weights: Mapping[int, EditedWeight], units: Mapping[int, float]) -> None:
        self._of = {layer: nn.Parameter(torch.zeros_like(weight.delta)) for layer, weight in weights.items()}
        self._units = units
        self.parameters = list(self._of.values())

    def of(self, layer: int) -> Tensor:
        return self._units[layer] * self._of[layer]

    @torch.no_grad()
    def set(self, layer: int, change: Tensor) -> None:
        self._of[layer].copy_(change / self._units[layer])


class LowRankAdapter(Parametrisation):
    """A LoRA adapter on each edited matrix, by peft, new for every batch and merged into the weights when it is learnt.

    The change is alpha / rank * B A, with A random and B zero at first. No dropout.

    Args:
        rank: of the change of each matrix.
        alpha: the scale; a larger one makes larger steps.
        merge: which part is merged: W + merge (W_adapted - W). 1: all of it; 0.25: LoRA-Merge of WikiBigEdit
            (arXiv 2503.05683), which forgets less.
        relative: multiply alpha by a typical entry of the matrix and the root of d_key, which is about 1 in most
            models; false: as published.

    Raises:
        EditError: a number is out of range, or peft is not installed.
    """

    def __init__(self, rank: int = 4, alpha: float = 8.0, merge: float = 1.0, relative: bool = True) -> None:
        check_number("LowRankAdapter.rank", rank, at_least=1)
        check_number("LowRankAdapter.alpha", alpha, above=0)
        check_number("LowRankAdapter.merge", merge, above=0, at_most=1)
        if find_spec("peft") is None:
            raise EditError("LowRankAdapter needs peft: pip install 'lke-lightning[lora]'")
        self.rank, self.alpha, self.share, self.relative = rank, alpha, merge, relative

    def start(self, weights: Mapping[int, EditedWeight], draw: torch.Generator) -> Change:
        """Let peft make the adapters, on linear layers of the same shapes, so that the network stays as it is."""
        from peft import LoraConfig, inject_adapter_in_model

        alphas = {
            str(layer): self.alpha * (entry(weight) * weight.delta.shape[1] ** 0.5 if self.relative else 1.0)
            for layer, weight in weights.items()
        }
        shapes = {str(layer): weight.delta.shape for layer, weight in weights.items()}
        layers = nn.ModuleDict(  # empty ones, whose weights are never touched
            {name: nn.utils.skip_init(nn.Linear, d_key, d_out, bias=False) for name, (d_out, d_key) in shapes.items()}
        )
        config = LoraConfig(r=self.rank, target_modules=list(shapes), alpha_pattern=alphas, lora_dropout=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.randint(2**62, (), generator=draw).item())
            inject_adapter_in_model(config, layers)
        for layer, weight in weights.items():
            adapted: Any = layers[str(layer)]
            for factor in (adapted.lora_A["default"], adapted.lora_B["default"]):
                factor.to(weight.delta)
        return _Adapters(layers)

    def count(self, d_out: int, d_key: int) -> int:
        """Count the entries of both factors."""
        return self.rank * (d_out + d_key)


class _Adapters(Change):
    def __init__(self, layers: nn.ModuleDict) -> None:
        self._layers = layers
        self.parameters = [parameter for parameter in layers.parameters() if parameter.requires_grad]

    def of(self, layer: int) -> Tensor:
        adapted: Any = self._layers[str(layer)]
        return adapted.get_delta_weight("default")
