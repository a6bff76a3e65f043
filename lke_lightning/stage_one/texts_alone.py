"""Stage one of editors that learn from the texts themselves: nothing is asked of any layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditBatch, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Targets
from lke_lightning.model.units import Whole
from lke_lightning.model.weights import EditedWeight
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.rows import check_requests
from lke_lightning.stage_one.stage import StageOne
from lke_lightning.step import EditStep


@dataclass(frozen=True)
class NoTargets(Targets):
    """What is known of requests that are learnt from their texts: what learning took, once stage two has done it."""

    ADVICE: ClassVar[str] = "raise the steps or the learning rate of stage_two, or how many facts it tells"
    are_known = False

    @classmethod
    def of(cls, count: int) -> NoTargets:
        """Begin with nothing."""
        nothing, zeros = torch.zeros(count, 0), [0.0] * count
        return cls(nothing, [0] * count, zeros, zeros, [""] * count, "block", [*range(count)], zeros, [False] * count)

    def written(
        self, numbers: Sequence[int], outputs: Sequence[Tensor], weights: Mapping[int, EditedWeight]
    ) -> list[float]:
        """Return NaN: there is no way to a target."""
        return [math.nan] * len(numbers)


class TextsAlone(StageOne):
    """Finds no targets; stage two has prompts and answers, and tells in the targets what learning them took.

    Args:
        contexts: texts in front of the prompts, for a stage two that learns in them too. Default: none.
    """

    expansion = Whole()
    has_targets = False

    def __init__(self, contexts: ContextTemplates | None = None) -> None:
        self.context_templates = contexts
        self.contexts, self.memory = [], {}

    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Sample the contexts, unless they came from a checkpoint; check that every request can be encoded in them."""
        if not self.contexts:
            templates = self.context_templates
            self.contexts = [SLOT] if templates is None else Team.of(model.network).first(templates.sample(model))
        check_requests(requests, self.contexts, model.text)

    def aim(self, model: LanguageModel, batch: EditBatch, layer: int | None = None) -> EditStep:
        """Begin the step."""
        return EditStep.of(batch, NoTargets.of(len(batch.requests)), self.contexts)
