"""The edits of a run, in order, and which of them are active: the single source of truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from lke_lightning.edits import EditError, EditRequest

Fact = tuple[str, str]

State = Literal["in the weights", "replaced", "undone"]
HOLDS: State = "in the weights"
REPLACED: State = "replaced"
UNDONE: State = "undone"


class Register:
    """All edits of a run; an edit's number is its place in that order. Its rows in a solver's memory are its units.

    An edit is active (in the weights), replaced by a later edit of the same fact, or undone. At most one edit of a fact
    is active.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.facts: list[Fact] = []
        self.replaces: list[int | None] = []
        """For each edit, the number of the one that it replaced."""
        self.groups: list[int] = []
        """For each edit, the number of the first one that it shares its target with; its own where it shares none."""
        self.units: list[int] = []
        """For each edit, how many rows it has; those of an edit come after those of the edits before it."""
        self.states: list[State] = []
        self._holding: dict[Fact, int] = {}

    def __len__(self) -> int:
        """Count all edits, including inactive ones."""
        return len(self.ids)

    @property
    def holding(self) -> list[int]:
        """Numbers of the edits that are in the weights, in the order in which they were made."""
        return sorted(self._holding.values())

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists."""
        facts = [list(fact) for fact in self.facts]
        return {
            "ids": self.ids, "facts": facts, "replaces": self.replaces, "groups": self.groups, "states": self.states,
            "units": self.units,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned.

        Raises:
            EditError: its lists do not belong together.
        """
        count = len(state["ids"])
        state = {"units": [1] * count, **state}  # not in checkpoints of earlier versions
        numbers = [number for part in ("replaces", "groups") for number in state[part] if number is not None]
        if (
            any(len(part) != count for part in state.values())
            or any(len(fact) != 2 for fact in state["facts"])
            or not {*state["states"]} <= {HOLDS, REPLACED, UNDONE}
            or not all(0 <= number < count for number in numbers)
            or not all(units > 0 for units in state["units"])
        ):
            raise EditError(
                "the register of edits in the checkpoint contradicts itself: it was changed by another program; use "
                "another one"
            )
        self.ids, self.replaces, self.states = list(state["ids"]), list(state["replaces"]), list(state["states"])
        self.groups, self.units = list(state["groups"]), list(state["units"])
        self.facts = [(subject, relation) for subject, relation in state["facts"]]
        self._holding = {fact: i for i, fact in enumerate(self.facts) if self.states[i] == HOLDS}

    def number_of(self, fact: Fact) -> int | None:
        """Return the number of the active edit of a fact."""
        return self._holding.get(fact)

    def numbers_of(self, requests: Sequence[EditRequest]) -> list[int]:
        """Return the numbers of the active edits whose facts requests state anew."""
        found = (self.number_of(request.fact) for request in requests)
        return [number for number in found if number is not None]

    def replaced_by(self, number: int) -> int | None:
        """Return the number of the edit whose place an edit took, unless that one was undone since."""
        older = self.replaces[number]
        return older if older is not None and self.states[older] == REPLACED else None

    def rows(self, numbers: Sequence[int]) -> list[int]:
        """Return the rows of some edits in a solver's memory."""
        ends = list(itertools.accumulate(self.units))
        return [row for number in numbers for row in range(ends[number] - self.units[number], ends[number])]

    def enter(self, requests: Sequence[EditRequest], groups: Sequence[int], units: Sequence[int] | None = None) -> None:
        """Append edits; each replaces the active one of its fact.

        Args:
            requests: the edits.
            groups: which target each of them has.
            units: how many rows; `None`: one.
        """
        first: dict[int, int] = {}
        self.units += [1] * len(requests) if units is None else units
        for request, group in zip(requests, groups, strict=True):
            self.groups.append(first.setdefault(group, len(self.ids)))
            older = self._holding.get(request.fact)
            if older is not None:
                self.states[older] = REPLACED
            self._holding[request.fact] = len(self.ids)
            self.ids.append(request.id)
            self.facts.append(request.fact)
            self.replaces.append(older)
            self.states.append(HOLDS)

    def shorten(self, count: int) -> None:
        """Forget all edits from number `count` on, as if they had never been made."""
        for number in reversed(range(count, len(self.ids))):
            if self.states[number] == HOLDS:
                self.deactivate([number], UNDONE)
                older = self.replaces[number]
                if older is not None:
                    self.activate([older])
        for part in (self.ids, self.facts, self.replaces, self.groups, self.units, self.states):
            del part[count:]

    def deactivate(self, numbers: Sequence[int], state: State) -> None:
        """Deactivate active edits."""
        for number in numbers:
            self.states[number] = state
            del self._holding[self.facts[number]]

    def activate(self, numbers: Sequence[int]) -> None:
        """Activate edits; no other edit of their facts may be active."""
        for number in numbers:
            self.states[number] = HOLDS
            self._holding[self.facts[number]] = number

    def _check_whole(self, numbers: Sequence[int], state: State, event: str) -> None:
        """Raise `EditError` where edits that share a target would part: it states all of their facts."""
        asked, of_group = set(numbers), {self.groups[number]: number for number in numbers}
        left: dict[int, list[str]] = {}
        for other, group in enumerate(self.groups):
            if group in of_group and self.states[other] == state and other not in asked:
                left.setdefault(group, []).append(self.ids[other])
        for group, names in left.items():
            raise EditError(
                f"edit {self.ids[of_group[group]]} shares its target with {', '.join(names)} (one subject, one batch): "
                f"{event} them together"
            )

    def to_undo(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of active edits.

        Raises:
            EditError: one was never made, is inactive, or shares its target with one that is not to be undone.
        """
        numbers = [self._latest(name) for name in ids]
        for name, number in zip(ids, numbers, strict=True):
            if self.states[number] != HOLDS:
                now = self._holding.get(self.facts[number])
                why = "it was undone before" if now is None else f"edit {self.ids[now]} states the same fact instead"
                raise EditError(f"edit {name} is not in the weights: {why}")
        self._check_whole(numbers, HOLDS, "undo")
        return numbers

    def to_redo(self, ids: Sequence[str]) -> list[int]:
        """Return the numbers of inactive edits.

        Raises:
            EditError: one was never made, is active, or shares its target with one that stays undone; or two of them
                state the same fact.
        """
        numbers = [self._latest(name) for name in ids]
        for name, number in zip(ids, numbers, strict=True):
            if self.states[number] == HOLDS:
                raise EditError(f"edit {name} is in the weights already")
        if len({self.facts[number] for number in numbers}) < len(numbers):
            raise EditError("two of these edits state the same fact: redo one of them")
        self._check_whole(numbers, UNDONE, "redo")
        return numbers

    def _latest(self, name: str) -> int:
        numbers = [number for number, known in enumerate(self.ids) if known == name]
        if not numbers:
            raise EditError(f"this run made no edit with the id {name!r}; `log` lists those it made")
        return numbers[-1]
