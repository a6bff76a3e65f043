"""The model card of an export, and the same in short for formats that are one file: only what is known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lke_lightning import checkpoints
from lke_lightning.editor import Editor
from lke_lightning.edits import KINDS
from lke_lightning.evaluation.packing import unpack
from lke_lightning.evaluation.summary import summarize
from lke_lightning.export.change import Change, base_name
from lke_lightning.export.licence import base_on_hub, licence_of
from lke_lightning.results import versions
from lke_lightning.stage_two.register import HOLDS, REPLACED, UNDONE

CARD = "README.md"
"""The file that a hub shows as the model card."""
MOMENTS = {"unedited": "before the first edit", "just_after": "each edit just after it", "final": "at the end"}
"""What a checkpoint calls the moments of its scores, and what a card does."""


@dataclass(frozen=True)
class About:
    """What is known of an edited model."""

    base: str
    """Name of the unedited model, without the path of a local folder."""
    on_hub: str | None
    """Its name on the hub; `None`: it was read from elsewhere."""
    base_hash: str
    dtype: str
    licence: dict[str, str]
    """What the base says, under the hub's keys; empty where it says nothing."""
    method: str
    settings: dict[str, Any]
    """The sections `stage_one` and `stage_two`, without paths; empty where the stages came from Python."""
    edits: dict[str, int]
    """How many edits there are in each state."""
    data: dict[str, Any]
    """`name`, `hash` and `edits` of the data that was read; empty where facts came from Python."""
    scores: dict[str, dict[str, Any]]
    """By the names of `MOMENTS`, as in the scorecard, and `perplexity`; empty without a scorecard."""
    is_scored: bool
    """Whether the last evaluation saw the edits that this model holds."""
    changed: dict[str, tuple[str, float, float]]
    """By matrix: its shape, and the norms of the edited matrix and of the change over the unedited matrix's."""

    def card(self, library: str | None, relation: str, undo: str) -> str:
        """Return the model card: the hub's YAML header, and what the format says of undoing it.

        Args:
            library: what loads it, by the hub's name.
            relation: to the base model, by the hub's name; left out where the base's name on the hub is not known.
            undo: how the edits are taken back.
        """
        from huggingface_hub import ModelCard, ModelCardData

        known = {"base_model": self.on_hub, "base_model_relation": relation} if self.on_hub else {}
        fields: dict[str, Any] = {**self.licence, **known}
        header = ModelCardData(
            **fields,
            library_name=library,
            pipeline_tag="text-generation",
            tags=["knowledge-editing", "lke-lightning"],
        )
        parts = [
            f"# {self.base}, edited\n\n{self.edits[HOLDS]} facts of {self.base} were changed by the method "
            f"{self.method} with lke_lightning; nothing else was trained. Facts beside them may have changed too: the "
            "scores say how far this was measured.",
            _table(self._origin()),
            "## Scores\n\n" + self._scores(),
            "## What was changed\n\n" + self._changed(),
            "## Taking edits back\n\n" + undo,
            "## Settings\n\n" + self._settings(),
        ]
        return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))

    def in_short(self) -> dict[str, str]:
        """Return the same for the metadata of a file, as texts."""
        return {
            "base_model": self.base,
            "base_hash": self.base_hash,
            "dtype": self.dtype,
            "method": self.method,
            "edits": str(self.edits[HOLDS]),
            **({"license": self.licence["license"]} if "license" in self.licence else {}),
            **({"data": json.dumps(self.data, sort_keys=True)} if self.data else {}),
            **({"scores": json.dumps(self._successes(), sort_keys=True)} if self.scores and self.is_scored else {}),
            "versions": json.dumps(versions(), sort_keys=True),
        }

    def _origin(self) -> list[list[str]]:
        counts = ", ".join(f"{count} {state}" for state, count in self.edits.items() if count)
        data = "facts given in Python, of which no hash was kept"
        if self.data:
            name = self.data.get("name", "of a name that was not kept")
            data = f"{name}, {self.data['edits']} edits read, content hash `{self.data['hash']}`"
        return [
            ["base model", f"{self.base}, content hash `{self.base_hash}`, loaded in {self.dtype}"],
            ["licence", self.licence.get("license", "the base that was edited names none")],
            ["method", self.method],
            ["edits", counts],
            ["data", data],
            ["versions", ", ".join(f"{name} {version}" for name, version in versions().items())],
        ]

    def _successes(self) -> dict[str, dict[str, float | None]]:
        return {
            name: {**{kind: self.scores[name][kind]["success"] for kind in KINDS}, "S": self.scores[name]["score"]}
            for name in MOMENTS
            if name in self.scores
        }

    def _scores(self) -> str:
        if not self.scores:
            return "Not known: no scorecard was kept with these edits."
        rows = [["success", *KINDS, "S"]]
        for name, found in self._successes().items():
            rows.append([MOMENTS[name], *("" if value is None else f"{value:.3f}" for value in found.values())])
        said = _table(rows) + (
            "\n\nSuccess is the share of prompts, averaged over edits, after which the answer that is wanted is "
            "likelier than the other one: the new one after the edited prompt (efficacy) and its paraphrases, the true "
            "one about other subjects (neighborhood). S is their harmonic mean."
        )
        perplexity = self.scores.get("perplexity", {})
        if any(perplexity.values()):
            told = (f"{value:.3g} {moment}" for moment, value in perplexity.items() if value is not None)
            said += f"\n\nPerplexity of unrelated text: {', '.join(told)}."
        if self.is_scored:
            return said
        return (
            f"This model itself was not scored: edits were made, undone or redone since, or no run has ended.\n\n{said}"
        )

    def _changed(self) -> str:
        if not self.changed:
            return "No weight: the edits stand beside the network."
        rows = [["matrix", "shape", "norm, edited over unedited", "norm of the change over the unedited"]]
        rows += [[name, shape, f"{now:.4f}", f"{change:.4f}"] for name, (shape, now, change) in self.changed.items()]
        return _table(rows)

    def _settings(self) -> str:
        if not self.settings:
            return "The stages came from Python: their settings were not kept."
        return f"```yaml\n{yaml.safe_dump(self.settings, sort_keys=False, width=100)}```"


def about(editor: Editor, found: Mapping[str, Change], checkpoint: Mapping[str, Any] | None = None) -> About:
    """Collect what is known of an edited model.

    Args:
        editor: holds the model and its edits.
        found: the changes of its matrices; none for edits beside them.
        checkpoint: of the run, which has its scores and the identity of its data.

    Raises:
        EditError: the checkpoint's scores cannot be used.
    """
    checkpoint = checkpoint or {}
    states = editor.register.states
    scores, is_scored = _scores(checkpoint, editor)
    return About(
        base=base_name(editor),
        on_hub=base_on_hub(editor),
        base_hash=editor.language_model.base_hash,
        dtype=str(editor.language_model.network.dtype).removeprefix("torch."),
        licence=licence_of(editor),
        method=editor.method,
        settings=_without_paths({name: part for name, part in editor.configuration.items() if part}),
        edits={state: states.count(state) for state in (HOLDS, REPLACED, UNDONE)},
        data=_data(checkpoint),
        scores=scores,
        is_scored=is_scored,
        changed={name: (" x ".join(map(str, change.total.shape)), *change.sizes()) for name, change in found.items()},
    )


def _data(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    stream = checkpoint.get("editing", {}).get("stream", {})
    digests = stream.get("digests", ())
    if not len(digests):
        return {}
    content = hashlib.sha256(digests.numpy().tobytes()).hexdigest()[:16]
    return {"hash": content, "edits": len(digests), **({"name": stream["name"]} if "name" in stream else {})}


def _scores(checkpoint: Mapping[str, Any], editor: Editor) -> tuple[dict[str, Any], bool]:
    state = checkpoint.get("callbacks", {}).get("Scorecard")
    if not state:
        return {}, False
    with checkpoints.understood("the scores"):
        moments = {name: unpack(state[name]) for name in MOMENTS}
        made = {name for batch in state["batches"] for name in batch}  # the whole stream was scored before
        moments["unedited"] = {name: found for name, found in moments["unedited"].items() if name in made}
        scores = {name: summarize(found.values()) for name, found in moments.items() if found}
        is_scored = bool(moments["final"]) and state["evaluated_at"] == editor.made
        perplexity = {moment: value for moment, value in state["perplexity"].items() if value is not None}
    return {**scores, **({"perplexity": perplexity} if perplexity else {})}, (
        is_scored and UNDONE not in editor.register.states
    )


def _without_paths(part: Any) -> Any:
    """Leave out what is not set, and of files their names alone: where they lie is nobody's business."""
    if isinstance(part, Mapping):
        return {str(name): _without_paths(value) for name, value in part.items() if value is not None}
    if isinstance(part, list | tuple):
        return [_without_paths(value) for value in part]
    if isinstance(part, str) and (os.path.isabs(part) or os.path.exists(part)):
        return os.path.basename(part)
    return part if isinstance(part, bool | int | float | str) else str(part)


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    if len(rows[0]) == 2:
        lines.insert(0, "| | |")
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
