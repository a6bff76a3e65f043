"""Published hyperparameters: their table, and the configuration for a method, a model and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lke_lightning.configuration import configs, find, read
from lke_lightning.edits import EditError
from lke_lightning.results import write
from lke_lightning.sweeps import grid

TABLE = "published.yaml"


@dataclass(frozen=True)
class Published:
    """A method on a model with hyperparameters from a table."""

    header: list[str]
    """The sources, as lines of comment."""
    config: dict[str, Any]
    """The sections of a YAML file."""

    @classmethod
    def compose(cls, method: str, model: str, data: str | None = None, table: str = TABLE) -> Published:
        """Put the files of method, model and data together and fill in what the table has for them.

        Args:
            method: a name below `configs/method`.
            model: a name in the table; where it is one below `configs/model` too, that file counts.
            data: a name below `configs/data`; `None`: the first that the table has for the two, if any.
            table: see `configs/published.yaml`.

        Raises:
            EditError: the table lacks the combination, or names a part that the method does not have.
        """
        rows = read(find(table))
        entries = _known("method", method, rows["methods"], table)
        entry = _known("model", model, _nested(entries), f"{table}, {method},")
        data = data or next(iter(_nested(entry)), None)
        own = _inherited(entries, entry, _known("data", data, entry, f"{table}, {method} on {model},") if data else {})
        config: dict[str, Any] = {}
        for folder, name in (("method", method), ("model", model), ("data", data)):
            path = configs() / folder / f"{name}.yaml"
            _merge(config, read(path) if path.is_file() else {})
        foreign = [name for name in _settings(own) if name.rpartition(".")[0] not in grid.owners(config)]
        if foreign:
            raise EditError(f"{table} has {foreign[0]!r} for {method} on {model}, a method without such a part")
        known = _inherited(rows.get("all") or {}, rows["models"].get(model) or {}, own)
        if "layers" in known:
            _merge(config, {"model": {"layers": known["layers"]}})
        lines = [known[name] for name in ("source", "note") if name in known]
        if "edits" in known:
            lines.append(f"Published after {known['edits']:,} edits in float32; for as many add --data.limit.")
        return cls(lines, grid.configured(config, _settings(known)))

    def text(self, title: str) -> str:
        """Return the YAML file."""
        header = "".join(f"# {line}\n" for line in (title, *self.header))
        return header + yaml.safe_dump(self.config, sort_keys=False, default_flow_style=None, width=100)


def published(method: str, model: str, data: str | None = None, output: str | None = None, table: str = TABLE) -> None:
    """Print a YAML file with the published hyperparameters of a method on a model, for `fit -c`.

    Args:
        method: a name below `configs/method`, such as encore.
        model: a name below `configs/model`, such as llama3-8b.
        data: counterfact or zsre; default: the first that the table has.
        output: write the file there instead.
        table: a table of your own.

    Raises:
        EditError: the table has no such combination; the message lists those that it has.
    """
    words = " ".join(filter(None, (method, model, data)))
    text = Published.compose(method, model, data, table).text(f"python -m lke_lightning published {words}")
    if output is None:
        print(text, end="")
    else:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write(Path(output), text)


def combinations(table: str = TABLE) -> Iterator[tuple[str, str, str | None]]:
    """Yield method, model and data of all that a table has."""
    for method, entries in read(find(table))["methods"].items():
        for model, entry in _nested(entries).items():
            yield from ((method, model, data) for data in _nested(entry) or [None])


def _known(what: str, name: str, entries: Mapping[str, Any], place: str) -> dict[str, Any]:
    if not isinstance(entries.get(name), dict):
        raise EditError(f"{place} has no {what} {name!r}: it has {', '.join(_nested(entries)) or 'none'}")
    return entries[name]


def _nested(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if isinstance(value, dict)}


def _inherited(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """Return what applies after all levels: later levels override earlier ones."""
    return {name: value for level in levels for name, value in level.items() if not isinstance(value, dict)}


def _settings(known: Mapping[str, Any]) -> grid.Settings:
    return {name: value for name, value in known.items() if "." in name}


def _merge(config: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(config.get(name), dict):
            _merge(config[name], value)
        else:
            config[name] = value
