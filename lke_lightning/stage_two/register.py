"""Which edits a memory holds, in its order, and which of them count today."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lke_lightning.edits import EditError, EditRequest

Fact = tuple[str, str]


class Register:
    """The edits behind the rows of a solver's memory; a row's number is the edit's number.

    An edit stands (its row counts), or it does not: because a later edit of the same fact replaced it, or because it
    was undone.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.facts: list[Fact] = []
        self.replaces: list[int | None] = []
        """For each edit, the number of the one that it took the place of."""
        self.stands: list[bool] = []
        self._standing: dict[Fact, int] = {}

    def __len__(self) -> int:
        """Count all edits, also those that do not stand."""
        return len(self.ids)

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists."""
        return {
            "ids": self.ids,
            "facts": [list(fact) for fact in self.facts],
            "replaces": self.replaces,
            "stands": self.stands,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned."""
        self.ids, self.replaces = list(state["ids"]), list(state["replaces"])
        self.stands, self.facts = list(state["stands"]), [(subject, relation) for subject, relation in state["facts"]]
        self._standing = {fact: i for i, fact in enumerate(self.facts) if self.stands[i]}

    def standing(self, fact: Fact) -> int | None:
        """Return the number of the edit that states a fact today."""
        return self._standing.get(fact)

    def enter(self, requests: Sequence[EditRequest]) -> None:
        """Add edits behind the others; each takes the place of the one that states its fact."""
        for request in requests:
            older = self._standing.get(request.fact)
            if older is not None:
                self.lay_down([older])
            self._standing[request.fact] = len(self.ids)
            self.ids.append(request.id)
            self.facts.append(request.fact)
            self.replaces.append(older)
            self.stands.append(True)

    def shorten(self, count: int) -> None:
        """Forget all edits from number `count` on, as if they had never been entered."""
        for number in reversed(range(count, len(self.ids))):
            if self.stands[number]:
                self.lay_down([number])
            if self.replaces[number] is not None:
                self.raise_up([self.replaces[number]])
        for part in (self.ids, self.facts, self.replaces, self.stands):
            del part[count:]

    def lay_down(self, numbers: Sequence[int]) -> None:
        """Let edits count no more."""
        for number in numbers:
            self.stands[number] = False
            del self._standing[self.facts[number]]

    def raise_up(self, numbers: Sequence[int]) -> None:
        """Let edits count again."""
        for number in numbers:
            self.stands[number] = True
            self._standing[self.facts[number]] = number

    def to_undo(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of edits that stand.

        Raises:
            EditError: one was never made, or does not stand; the message says why.
        """
        numbers = [self._number(name) for name in ids]
        for name, number in zip(ids, numbers, strict=True):
            if not self.stands[number]:
                now = self._standing.get(self.facts[number])
                why = "it was undone before" if now is None else f"edit {self.ids[now]} states the same fact instead"
                raise EditError(f"edit {name} is not in the weights: {why}")
        return numbers

    def to_redo(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of edits that were made once and do not stand.

        Raises:
            EditError: one was never made, or stands.
        """
        numbers = [self._number(name) for name in ids]
        for name, number in zip(ids, numbers, strict=True):
            if self.stands[number]:
                raise EditError(f"edit {name} is in the weights already")
        return numbers

    def _number(self, name: str) -> int:
        numbers = [number for number, known in enumerate(self.ids) if known == name]
        if not numbers:
            raise EditError(f"this run made no edit with the id {name!r}; `log` lists those it made")
        return numbers[-1]
