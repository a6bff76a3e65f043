"""Take edits of a run back, exactly, or write them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lke_lightning import checkpoints
from lke_lightning.composition import compose
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.ledger import Ledger, locked
from lke_lightning.results import replace


def undo(run: str, edit: list[str], pretrained: str | None = None) -> None:
    """Take edits back, as if they had never been made; the run can be continued afterwards.

    The newest checkpoint is replaced by one whose weights are the least-squares solution without these edits. Where one
    of them had replaced an earlier edit of the same fact, that one holds again.

    Args:
        run: the run's folder.
        edit: ids of the edits.
        pretrained: where the unedited model is now, if it has moved.

    Raises:
        EditError: an edit is not in the weights, or the run's method has no exact undo; nothing is changed then.
    """
    _change(run, edit, "undo", pretrained)


def redo(run: str, edit: list[str], pretrained: str | None = None) -> None:
    """Write edits again that were undone, or replaced by a later edit of the same fact, which they replace now.

    Args:
        run: the run's folder.
        edit: ids of the edits.
        pretrained: where the unedited model is now, if it has moved.

    Raises:
        EditError: an edit is in the weights, or the run's method has no exact undo; nothing is changed then.
    """
    _change(run, edit, "redo", pretrained)


def _change(run: str, ids: Sequence[str], event: str, pretrained: str | None) -> None:
    ids = list(dict.fromkeys(ids))
    if not ids:
        raise EditError(f"nothing to {event}: name edits with --edit; `log` lists them")
    path = checkpoints.find(run)
    root = path.parents[1]
    with locked(root):
        checkpoint = checkpoints.read(path)
        ledger = Ledger(root)
        ledger.cut(checkpoint["callbacks"]["Recorder"]["size"])
        stage_two = compose(checkpoint["editing"]["configuration"]).two
        stage_two.load_state_dict(checkpoint["callbacks"]["WeightUpdate"])
        # before the model is loaded, which may take minutes
        stage_two.check_exact_undo()
        check = stage_two.register.to_undo if event == "undo" else stage_two.register.to_redo
        check(ids)
        moved = {} if pretrained is None else {"pretrained": pretrained}
        editor = Editor.load_from_checkpoint(path, map_location="cpu", weights_only=True, **moved)
        stage_two.prepare(editor.language_model)
        requests = _requests(ledger, ids)
        before = score(editor.language_model, requests)
        others = getattr(stage_two, event)(editor.language_model, ids)
        after = score(editor.language_model, requests)

        standing = editor.standing
        for request in requests:
            standing.pop(request.fact, None)
            holds = request.id if event == "redo" else others[request.id]
            if holds is not None:
                standing[request.fact] = holds
        ledger.append({"event": event, "id": name, "other": other} for name, other in others.items())
        checkpoint["editing"]["standing"] = [[*fact, name] for fact, name in standing.items()]
        checkpoint["state_dict"] |= {
            name: value for name, value in editor.state_dict().items() if name in checkpoint["state_dict"]
        }
        checkpoint["callbacks"]["WeightUpdate"] = stage_two.state_dict()
        checkpoint["callbacks"]["Recorder"] = {"size": ledger.size}
        replace(path, lambda file: torch.save(checkpoint, file))
    _print(requests, before, after, others, event)
    Console().print(f"Checkpoint  {path}", soft_wrap=True)


def _requests(ledger: Ledger, ids: Sequence[str]) -> list[EditRequest]:
    entries = {entry["id"]: entry for entry in ledger.read() if entry["event"] == "edit"}
    names = ("id", "prompt", "subject", "target", "original", "relation", "weight")
    return [EditRequest(**{name: entries[one][name] for name in names}) for one in ids]


def _print(
    requests: Sequence[EditRequest],
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    others: dict[str, str | None],
    event: str,
) -> None:
    table = Table(title=f"{len(requests)} edits: {event}", caption="probability of the edit's target, teacher-forced")
    for name in ("id", "prompt", "target", "before", "now", "held now" if event == "undo" else "replaced"):
        table.add_column(name, justify="right" if name in ("before", "now") else "left")
    for request, was, now in zip(requests, before, after, strict=True):
        chances = [f"{scores['efficacy'][0, 0].neg().exp().item():.3f}" for scores in (was, now)]
        table.add_row(request.id, request.text, request.target, *chances, others[request.id] or "")
    Console().print(table)
