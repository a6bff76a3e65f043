"""The fields of a record, checked by form; errors name the path of the field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lke_lightning.edits import EditError, check_list, check_text, kind


class Fields:
    """A record, or an object inside one. A null field counts as absent where it is optional.

    Args:
        values: the object.
        path: where it is in its record; empty for the record itself.
        index: the record's position in its file.

    Raises:
        EditError: `values` is not an object; all methods raise it for a field of another form.
    """

    def __init__(self, values: Any, path: str = "", index: int = 0) -> None:
        values = _unpacked(values)
        if not isinstance(values, Mapping):
            raise EditError(f"{f'field {path!r}' if path else 'the record'} is {kind(values)}, not an object")
        self._values, self._path, self.index = values, path, index

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the fields."""
        return iter(self._values)

    def __contains__(self, name: str) -> bool:
        """Tell whether a field is there and not null."""
        return self._values.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        """Return a required field of any form."""
        if name in self:
            return self._values[name]
        if name in self._values:
            raise EditError(f"{self._where(name)} is null")
        raise EditError(f"{self._where(name)} is missing: there are {', '.join(map(str, self)) or 'none'}")

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field of any form, or `default` where it is absent."""
        return self._values[name] if name in self else default

    def text(self, name: str) -> str:
        """Return a text that is not blank."""
        return check_text(self[name], self._where(name))

    def find(self, name: str) -> str | None:
        """Return a text, or `None` where it is absent or blank."""
        value = self.get(name, "")
        return self.text(name) if not isinstance(value, str) or value.strip() else None

    def texts(self, name: str, needed: bool = False) -> tuple[str, ...]:
        """Return a list of texts that are not blank, none where it is absent and not `needed`."""
        return check_list(_unpacked(self[name]), self._where(name), check_text) if needed or name in self else ()

    def part(self, name: str) -> Fields:
        """Return an object."""
        return Fields(self[name], self._below(name), self.index)

    def parts(self, name: str, needed: bool = False) -> tuple[Fields, ...]:
        """Return a list of objects, none where it is absent and not `needed`."""
        return tuple(Fields(entry, path, self.index) for entry, path in self.entries(name, needed))

    def entries(self, name: str, needed: bool = False) -> tuple[tuple[Any, str], ...]:
        """Return the entries of a list, of any form, each with its path; none where it is absent and not `needed`."""
        if not needed and name not in self:
            return ()
        entries = check_list(_unpacked(self[name]), self._where(name), lambda entry, _: entry)
        return tuple((entry, f"{self._below(name)}[{i}]") for i, entry in enumerate(entries))

    def name(self, name: str) -> str:
        """Return an identifier: a text, or a whole number as it is written."""
        value = self[name]
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            number = f"the number {value!r}, which is not whole" if isinstance(value, float) else kind(value)
            raise EditError(f"{self._where(name)} is {number}: write it as a text, in quotes")
        return self.text(name)

    def only(self, names: Sequence[str]) -> Fields:
        """Return these fields, if there are no others than `names`."""
        for other in self:
            if other not in names:
                close = difflib.get_close_matches(str(other), names, 1, 0.5)
                meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
                raise EditError(f"{self._where(str(other))} is unknown: {meant}")
        return self

    def _below(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _where(self, name: str) -> str:
        return f"field {self._below(name)!r}"


def _unpacked(value: Any) -> Any:
    """Return a nested value; hub datasets may hold it as JSON text where its form differs between records."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
