"""Watches that a model stays a model while it is edited, and takes batches back that break it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch, EditError, EditRequest, check_least
from lke_lightning.evaluation.canary import Canary, Health
from lke_lightning.evaluation.documents import check_files
from lke_lightning.model.targets import Targets
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.update import WeightUpdate

Action = Literal["warn", "stop", "skip", "split"]


class Guard(Callback):
    """After each batch, compares the model with the unedited one; acts where it leaves its band.

    Without any limit it does nothing and costs nothing. Every decision is written into the ledger.

    Args:
        norm_growth: how large |W| / |W0| of any edited matrix may become.
        perplexity_growth: how large the perplexity of the canary text may become, in multiples of the unedited
            model's.
        activation_growth: how large the mean norm of the last block's output on the canary text may become, likewise.
        agreement: on what fraction of the canary text's tokens the most probable next token must still be the unedited
            model's: a capability measured without questions.
        text: text files, a document per line, needed for the last three; none of the edits should be about them.
        text_tokens: how many tokens of that text are read after every batch.
        action: `warn`: say so once and go on. `stop`: take the batch back and end the run, with a checkpoint. `skip`:
            take it back and go on with the next one. `split`: take it back and edit its halves, down to single edits;
            only those that break the model are left out. Batches are taken back from the weights bit for bit, and
            from the solver's memory.
        give_up_after: stop after so many batches in a row of which nothing could be kept.

    Raises:
        EditError: a limit needs a text and there is none; a limit that the unedited model would break.
    """

    def __init__(
        self,
        norm_growth: float | None = None,
        perplexity_growth: float | None = None,
        activation_growth: float | None = None,
        agreement: float | None = None,
        text: list[str] | None = None,
        text_tokens: int = 2000,
        action: Action = "stop",
        give_up_after: int = 5,
    ) -> None:
        check_files(text or [], "guard.text")
        check_least("guard.text_tokens", text_tokens, 1)
        ceilings = {"norm_growth": norm_growth, "perplexity_growth": perplexity_growth,
                    "activation_growth": activation_growth}  # fmt: skip
        self.ceilings = {name: limit for name, limit in ceilings.items() if limit is not None}
        self.agreement = agreement
        needs_text = [name for name in self.ceilings if name != "norm_growth"] + ["agreement"] * (agreement is not None)
        if needs_text and not text:
            raise EditError(f"guard.{needs_text[0]} is measured on a text: name one with guard.text")
        low = [name for name, limit in self.ceilings.items() if limit <= 1]
        if low:
            raise EditError(
                f"guard.{low[0]} is {self.ceilings[low[0]]:g}: the unedited model has 1, a limit is above that"
            )
        if agreement is not None and not 0 < agreement < 1:
            raise EditError(f"guard.agreement is {agreement:g}: a fraction between 0 and 1 is needed")
        self.text, self.text_tokens = text if needs_text else None, text_tokens
        self.action, self.give_up_after = action, give_up_after
        self.lost_in_a_row = 0
        self._canary: Canary | None = None
        self._unedited: Health | None = None
        self._has_warned = False
        self._good: _Good

    @property
    def is_watching(self) -> bool:
        """Whether there is any limit."""
        return bool(self.ceilings) or self.agreement is not None

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches were lost in a row, and what the unedited model was like."""
        unedited = None if self._unedited is None else self._unedited.plain()
        return {"lost_in_a_row": self.lost_in_a_row, "has_warned": self._has_warned, "unedited": unedited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the interrupted run knew."""
        self.lost_in_a_row, self._has_warned = state_dict["lost_in_a_row"], state_dict["has_warned"]
        self._unedited = state_dict["unedited"] and Health(**state_dict["unedited"])

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Look at the unedited model.

        Raises:
            EditError: an earlier part of this run was not guarded on this text.
        """
        if not self.text:
            return
        self._canary = Canary(pl_module.language_model, self.text, self.text_tokens)
        if self._unedited is None:
            if pl_module.made:
                raise EditError("this run began without guard.text: what its unedited model was like is not known")
            with trainer.precision_plugin.forward_context():
                health = self._canary.examine(pl_module.language_model)
            self._unedited = Team.of(pl_module.language_model.network).first(health)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Editor, batch: EditBatch, batch_idx: int) -> None:
        """Remember the state that a batch can be taken back to."""
        if self.is_watching and self.action != "warn":
            self._good = _Good.of(pl_module, _part(trainer, WeightUpdate))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        """Compare, decide, act."""
        if not self.is_watching or not pl_module.batch.requests:
            return
        with trainer.precision_plugin.forward_context(), pl_module.timed("guard"):
            measured = self.measure(pl_module)
            broken = self._broken(measured)
            if not broken:
                self.lost_in_a_row = 0
                return
            told = ", ".join(f"{name} is {measured[name]:.3g}, {limit:g} allowed" for name, limit in broken.items())
            pl_module.events.append(
                {
                    "event": "guard",
                    "batch": trainer.global_step - 1,
                    "action": self.action,
                    "measured": measured,
                    "limits": self.limits,
                }
            )
            if self.action == "warn":
                if not self._has_warned:
                    rank_zero_warn(f"the model has left its band after {pl_module.made} edits: {told}")
                self._has_warned = True
                return
            rank_zero_info(f"batch {trainer.global_step} is taken back ({self.action}): {told}")
            self._take_back(trainer, pl_module, told)
        self.lost_in_a_row = 0 if pl_module.batch.requests else self.lost_in_a_row + 1
        if self.action == "stop" or self.lost_in_a_row >= self.give_up_after:
            rank_zero_warn(f"the guard stops the run after {pl_module.made} edits: {told}")
            trainer.should_stop = True

    @property
    def limits(self) -> dict[str, float]:
        """The band: ceilings, and the floor of the agreement."""
        return {**self.ceilings, **({} if self.agreement is None else {"agreement": self.agreement})}

    def measure(self, editor: Editor) -> dict[str, float]:
        """Return what is limited, for the model as it is; the same on all processes, which decide by it."""
        model = editor.language_model
        growth = max(now / before for before, now in (model.weight(layer).norms() for layer in model.layers))
        measured = {"norm_growth": growth}
        if self._canary is not None:
            measured |= self._canary.examine(model).compared_with(self._unedited)
        return Team.of(model.network).first(measured)

    def _broken(self, measured: dict[str, float]) -> dict[str, float]:
        # written so that a value that is no number breaks its limit
        broken = {name: limit for name, limit in self.ceilings.items() if not measured[name] <= limit}
        if self.agreement is not None and not measured["agreement"] >= self.agreement:
            broken["agreement"] = self.agreement
        return broken

    def _take_back(self, trainer: Trainer, editor: Editor, told: str) -> None:
        stage_one, stage_two = _part(trainer, TargetOptimization), _part(trainer, WeightUpdate)
        requests = list(editor.batch.requests)
        self._good.return_to(editor, stage_two)
        kept: list[tuple[list[EditRequest], Targets]] = []
        waiting = [requests] if self.action != "split" else _halves(requests)
        while waiting:
            part = waiting.pop(0)
            why = told
            if self.action == "split":
                good = _Good.of(editor, stage_two)
                targets = stage_one.optimize(editor.language_model, part, editor.contexts)
                stage_two.apply(editor.language_model, part, editor.contexts, targets)
                broken = self._broken(measured := self.measure(editor))
                if not broken:
                    editor.mark_edited(part)
                    kept.append((part, targets))
                    continue
                good.return_to(editor, stage_two)
                why = ", ".join(f"{name} would be {measured[name]:.3g}" for name in broken)
            if self.action == "split" and len(part) > 1:
                waiting = _halves(part) + waiting
            else:
                editor.left_out += [(request, f"taken back by the guard: {why}") for request in part]
        editor.batch = EditBatch([request for part, _ in kept for request in part])
        editor.targets = Targets.joined([targets for _, targets in kept]) if kept else editor.targets.chosen([])


@dataclass
class _Good:
    """A state to return to: the total changes, and how many edits the solver remembers."""

    deltas: dict[int, Tensor]
    remembered: int
    standing: dict[tuple[str, str], str]
    made: int

    @classmethod
    def of(cls, editor: Editor, stage_two: WeightUpdate) -> _Good:
        model = editor.language_model
        deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
        return cls(deltas, len(stage_two.register), dict(editor.standing), editor.made)

    def return_to(self, editor: Editor, stage_two: WeightUpdate) -> None:
        stage_two.roll_back(editor.language_model, self.deltas, self.remembered)
        editor.standing, editor.made = dict(self.standing), self.made


def _halves(requests: Sequence[EditRequest]) -> list[list[EditRequest]]:
    middle = (len(requests) + 1) // 2
    return [part for part in (list(requests[:middle]), list(requests[middle:])) if part]


def _part(trainer: Trainer, kind: type) -> Any:
    return next(part for part in trainer.callbacks if isinstance(part, kind))
