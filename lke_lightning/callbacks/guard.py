"""Monitors the health of a model while it is edited, and rolls back batches that damage it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lke_lightning.data.corpus import check_files
from lke_lightning.distributed import Team
from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch, EditError, EditRequest, check_number
from lke_lightning.evaluation.canary import Canary, Health
from lke_lightning.stage_two.arrival import arrival
from lke_lightning.stage_two.update import Mark
from lke_lightning.step import EditStep

Action = Literal["warn", "stop", "skip", "split"]


class Guard(Callback):
    """Compares the model with the unedited one after each batch, and acts if a limit is exceeded.

    Without limits it does nothing and costs nothing. Every decision is written to the ledger.

    Args:
        norm_growth: limit on |W| / |W0| of every edited matrix.
        perplexity_growth: limit on the perplexity of the canary text, in multiples of the unedited model's.
        activation_growth: limit on the mean norm of the last block's output on the canary text, likewise.
        agreement: smallest fraction of the canary text's tokens on which the most probable next token is still that of
            the unedited model.
        text: text files, one document per line, needed for the last three; they should be unrelated to the edits.
        text_tokens: how many tokens of that text are read after every batch.
        action: `warn`: warn once and continue. `stop`: roll the batch back and end the run, with a checkpoint. `skip`:
            roll it back and continue with the next one. `split`: roll it back and edit its halves, down to single
            edits; only those that exceed a limit are left out. Weights are rolled back bit for bit, and the solver's
            memory with them.
        give_up_after: stop after this many consecutive batches that were rolled back whole.

    Raises:
        EditError: a limit needs a text and there is none, or the unedited model would already exceed a limit.
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
        ceilings = {"norm_growth": norm_growth, "perplexity_growth": perplexity_growth,
                    "activation_growth": activation_growth}  # fmt: skip
        self.ceilings = {name: limit for name, limit in ceilings.items() if limit is not None}
        self.agreement = agreement
        needs_text = [name for name in self.ceilings if name != "norm_growth"] + ["agreement"] * (agreement is not None)
        if needs_text and not text:
            raise EditError(f"guard.{needs_text[0]} is measured on a text: name one with guard.text")
        for name, limit in self.ceilings.items():
            check_number(f"guard.{name}", limit, above=1)  # the unedited model has 1
        if agreement is not None:
            check_number("guard.agreement", agreement, above=0, below=1)
        check_number("guard.text_tokens", text_tokens, at_least=2)
        check_number("guard.give_up_after", give_up_after, at_least=1)
        self.text, self.text_tokens = text if needs_text else None, text_tokens
        self.action, self.give_up_after = action, give_up_after
        self.lost_in_a_row = 0
        self._canary: Canary | None = None
        self._unedited: Health | None = None
        self._has_warned = False
        self._good: tuple[dict[str, Any], Mark]

    @property
    def is_watching(self) -> bool:
        """Whether there is any limit."""
        return bool(self.ceilings) or self.agreement is not None

    def state_dict(self) -> dict[str, Any]:
        """Return how many consecutive batches were lost, and the measurements of the unedited model."""
        unedited = None if self._unedited is None else self._unedited.plain()
        return {"lost_in_a_row": self.lost_in_a_row, "has_warned": self._has_warned, "unedited": unedited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the interrupted run."""
        self.lost_in_a_row, self._has_warned = state_dict["lost_in_a_row"], state_dict["has_warned"]
        self._unedited = state_dict["unedited"] and Health(**state_dict["unedited"])

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Measure the unedited model.

        Raises:
            EditError: an earlier part of this run was not guarded on this text.
        """
        if not self.text:
            return
        self._canary = Canary(pl_module.language_model, self.text, self.text_tokens)
        if self._unedited is None:
            if pl_module.made:
                raise EditError(
                    "this run began without guard.text, so its unedited model was not measured: start a new run"
                )
            with pl_module.working("guard"):
                health = self._canary.examine(pl_module.language_model)
            self._unedited = Team.of(pl_module.language_model.network).first(health)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Editor, batch: EditBatch, batch_idx: int) -> None:
        """Remember the state that a batch can be rolled back to."""
        if self.is_watching and self.action != "warn":
            self._good = pl_module.stages.mark(pl_module.language_model, pl_module.register)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        """Measure the model, and act if a limit is exceeded."""
        if not self.is_watching or not pl_module.step.requests:
            return
        with pl_module.working("guard"):
            measured = self.measure(pl_module)
            broken = self._broken(measured)
            if not broken:
                self.lost_in_a_row = 0
                return
            violations = ", ".join(
                f"{name} is {measured[name]:.3g}, the limit is {limit:g}" for name, limit in broken.items()
            )
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
                    rank_zero_warn(f"the model exceeds its limits after {pl_module.made} edits: {violations}")
                self._has_warned = True
                return
            rank_zero_info(f"batch {trainer.global_step} is rolled back ({self.action}): {violations}")
            self._roll_back(pl_module, violations)
        self.lost_in_a_row = 0 if pl_module.step.requests else self.lost_in_a_row + 1
        if self.action == "stop" or self.lost_in_a_row >= self.give_up_after:
            rank_zero_warn(f"the guard stops the run after {pl_module.made} edits: {violations}")
            trainer.should_stop = True

    @property
    def limits(self) -> dict[str, float]:
        """The upper limits, and the lower limit of the agreement."""
        return {**self.ceilings, **({} if self.agreement is None else {"agreement": self.agreement})}

    def measure(self, editor: Editor) -> dict[str, float]:
        """Return the limited quantities of the present model, the same on all processes, which all act on them."""
        model = editor.language_model
        growth = max(now / before for before, now in (model.weight(layer).norms() for layer in model.layers))
        measured = {"norm_growth": growth}
        if self._canary is not None:
            measured |= self._canary.examine(model).compared_with(self._unedited)  # type: ignore[arg-type]  # with it
        return Team.of(model.network).first(measured)

    def _broken(self, measured: dict[str, float]) -> dict[str, float]:
        # written so that NaN exceeds every limit
        broken = {name: limit for name, limit in self.ceilings.items() if not measured[name] <= limit}
        if self.agreement is not None and not measured["agreement"] >= self.agreement:
            broken["agreement"] = self.agreement
        return broken

    def _roll_back(self, editor: Editor, violations: str) -> None:
        """Roll the batch back; with `split`, keep the parts that exceed no limit."""
        model, stages, whole = editor.language_model, editor.stages, editor.step
        stages.roll_back(model, editor.register, self._good)
        kept: list[EditStep] = []
        reasons: list[tuple[EditRequest, str]] = []
        waiting = [whole.requests] if self.action != "split" else _halves(whole.requests)
        while waiting:
            part, why = waiting.pop(0), violations
            if self.action == "split":
                good = stages.mark(model, editor.register)
                step = stages.edit(model, EditBatch(part), editor.register)
                if step.taken_back and len(part) > 1:
                    waiting = _halves(part) + waiting
                    continue
                broken = self._broken(measured := self.measure(editor))
                if not broken:
                    kept.append(step)
                    continue
                stages.roll_back(model, editor.register, good)
                why = ", ".join(f"{name} would be {measured[name]:.3g}" for name in broken)
            if self.action == "split" and len(part) > 1:
                waiting = _halves(part) + waiting
            else:
                reasons += [(request, f"rolled back by the guard: {why}") for request in part]
        editor.step = EditStep.joined(kept, whole, reasons)
        if editor.step.requests:
            editor.step.arrival = arrival(model, editor.step)


def _halves(requests: Sequence[EditRequest]) -> list[tuple[EditRequest, ...]]:
    middle = (len(requests) + 1) // 2
    return [tuple(part) for part in (requests[:middle], requests[middle:]) if part]
