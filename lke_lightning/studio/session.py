"""What the page shows and does, without the page: one model under editing, one thing at a time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lke_lightning.api import EditedModel
from lke_lightning.commands.ask import Answer, answers, nearest
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.progress import Work, reported
from lke_lightning.report.records import History, Series
from lke_lightning.stage_two.register import HOLDS

SCORED = 50
"""The scorecard is of so many edits in the weights, the newest: it is made anew after every change."""
ARROW = "->"
"""What separates a prompt from its answer, in a line of the form."""


class Session:
    """A model that is asked, edited and saved; what it does takes a lock, so that two tabs cannot mix.

    Args:
        model: the model, with the memory of its edits.
        folder: where `save` writes; this process has locked it.
        new_tokens: how long an answer may become.
    """

    def __init__(self, model: EditedModel, folder: Path, new_tokens: int = 40) -> None:
        self.model, self.folder, self.new_tokens = model, folder, new_tokens
        self._lock = threading.Lock()
        self.doing = self._what = ""
        """What is being done, in words; empty: nothing."""
        self.changes = 0
        """How often the model was changed, which is how a tab knows that it is out of date."""
        self.unsaved = 0
        """Changes that are in memory alone."""
        self.notes: list[str] = []
        """What was warned of; who shows it empties it."""
        self.prompt = ""
        self.answers: list[Answer] = []
        """What was said last."""
        self.nearest: EditRequest | None = None
        self.before: dict[str, Any] = {}
        """Scores of the unedited model on the edits in the weights, as in the scorecard; empty: there are none."""
        self.now: dict[str, Any] = {}
        self._score()

    def ask(self, prompt: str) -> None:
        """Ask both models; `answers` grows token by token.

        Raises:
            EditError: there is no prompt, or it does not fit into the model.
        """
        if not prompt.strip():
            raise EditError("there is nothing to ask: type a prompt")
        with self._busy("Asking"):
            held = [self.model.requests[name] for name in self.model.edited]
            self.prompt, self.nearest = prompt.strip(), nearest(prompt, held)
            self.answers = answers(self.model.editor, self.prompt, self.new_tokens, self._hear)

    def edit(self, form: Mapping[str, str]) -> None:
        """Make the edit that was typed into the form; see `fact_of`.

        Raises:
            EditError: it cannot be made; the model is what it was.
        """
        fact = fact_of(form)
        with self._busy("Editing"):
            made = self.model.editor.made
            self.model.edit([fact])
            self._changed()
            if self.model.editor.made == made:
                left_out = [entry for entry in self.model.history() if entry["event"] == "left_out"]
                raise EditError(f"the edit was left out: {left_out[-1]['reason']}")

    def turn(self, name: str) -> None:
        """Undo an edit that is in the weights, or write one again that is not.

        Raises:
            EditError: the method cannot do that exactly, with the reason.
        """
        with self._busy("Undoing" if name in self.model.edited else "Writing again"):
            (self.model.undo if name in self.model.edited else self.model.redo)(name)
            self._changed()

    def save(self) -> None:
        """Write the changes into the run's folder.

        Raises:
            EditError: it cannot be written.
        """
        with self._busy("Saving"):
            self.model.write_into(self.folder)
            self.unsaved = 0
            self.changes += 1

    def facts(self) -> list[dict[str, str]]:
        """Return a row for each edit that was ever made, the newest first."""
        register = self.model.editor.register
        rows = []
        for name, state in reversed(list(zip(register.ids, register.states, strict=True))):
            request, turn = self.model.requests[name], "undo" if state == HOLDS else "redo"
            rows.append({"id": name, "prompt": request.text, "target": request.target, "state": state, "turn": turn})
        return rows

    def room(self) -> Series:
        """Return the fulfilment of each batch, the median of its layers, after how many edits; see the report."""
        return History(list(self.model.history())).curves["arrival"].get("fulfilment (median of layers)", [])

    def show(self, works: Sequence[Work]) -> None:
        """Take what long work says of itself into `doing`."""
        if works:
            self.doing = f"{self._what}: {works[-1]}"

    def _hear(self, answers: list[Answer]) -> None:
        self.answers = answers

    def _changed(self) -> None:
        self.unsaved += 1
        self._what = self.doing = "Scoring"
        self._score()
        self.changes += 1

    def _score(self) -> None:
        held = [self.model.requests[name] for name in self.model.edited][-SCORED:]
        self.before, self.now = {}, {}
        if held:
            with self.model.editor.as_unedited():
                self.before = self.model.score(held)
            self.now = self.model.score(held)

    @contextmanager
    def _busy(self, doing: str) -> Iterator[None]:
        with self._lock:
            self._what = self.doing = doing
            try:
                with warnings.catch_warnings(record=True) as warned, reported(self):
                    yield
            finally:
                self.doing = ""
            self.notes += dict.fromkeys(str(one.message) for one in warned)


def fact_of(form: Mapping[str, str]) -> dict[str, Any]:
    """Turn what was typed into a fact with the fields of `JsonLines`; what is empty is left out.

    Args:
        form: `prompt`, `subject`, `target`, `original`; `paraphrases`, a prompt in each line; `neighborhood`, in each
            line a prompt, perhaps with `->` and its answer, else that is `original`.
    """
    fact: dict[str, Any] = {
        name: form[name].strip() for name in ("prompt", "subject", "target", "original") if form.get(name, "").strip()
    }
    lines = {
        name: [line.strip() for line in form.get(name, "").splitlines() if line.strip()]
        for name in ("paraphrases", "neighborhood")
    }
    probes = [[part.strip() for part in line.split(ARROW, 1)] for line in lines["neighborhood"]]
    fact["paraphrases"] = lines["paraphrases"]
    fact["neighborhood"] = [{"prompt": part[0], "answer": part[1]} if part[1:] else part[0] for part in probes]
    return fact
