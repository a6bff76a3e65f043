"""Undo edits of a run, exactly, or write them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lke_lightning import checkpoints
from lke_lightning.api import resume
from lke_lightning.edits import EditError, EditRequest, printable
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.ledger import locked
from lke_lightning.run_folder import Run


def undo(
    run: str,
    edit: list[str],
    pretrained: str | None = None,
    trust: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Undo edits, as if they had never been made; the run can be continued afterwards.

    The newest checkpoint is replaced by one whose weights are the least-squares solution without these edits. Where one
    of them had replaced an earlier edit of the same fact, that one holds again.

    Args:
        run: the run's folder.
        edit: ids of the edits.
        pretrained: where the unedited model is now, if it has moved.
        trust: paths of classes outside of this package that the run's stages may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: an edit is not in the weights, or the run's method has no exact undo; nothing is changed then.
    """
    _change(run, edit, "undo", pretrained, trust or (), trust_remote_code)


def redo(
    run: str,
    edit: list[str],
    pretrained: str | None = None,
    trust: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write edits again that were undone, or replaced by a later edit of the same fact, which they replace now.

    Args:
        run: the run's folder.
        edit: ids of the edits.
        pretrained: where the unedited model is now, if it has moved.
        trust: paths of classes outside of this package that the run's stages may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: an edit is in the weights, or the run's method has no exact undo; nothing is changed then.
    """
    _change(run, edit, "redo", pretrained, trust or (), trust_remote_code)


def _change(
    run: str, ids: Sequence[str], event: str, pretrained: str | None, trust: Sequence[str], trust_remote_code: bool
) -> None:
    ids = list(dict.fromkeys(ids))
    if not ids:
        raise EditError(f"nothing to {event}: name edits with --edit; `log` lists them")
    root = checkpoints.find(run).parents[1]
    with locked(root):
        saved = Run.read(run)
        saved.check_newest()
        # before the model is loaded, which may take minutes
        saved.stages(trust).two.check_exact_undo()
        register = saved.register()
        (register.to_undo if event == "undo" else register.to_redo)(ids)
        known = {request.id: request for request in saved.requests()}
        gone = [name for name in ids if name not in known]
        if gone:
            raise EditError(f"the ledger in {root} does not tell of edit {gone[0]}: put an intact copy of it back")
        requests = [known[name] for name in ids]
        model = resume(saved, pretrained=pretrained, trust=trust, trust_remote_code=trust_remote_code)
        with model.editor.as_read():
            before = score(model.editor.language_model, requests)
        others = getattr(model, event)(*ids)
        with model.editor.as_read():
            after = score(model.editor.language_model, requests)
        path = model.write_into(root)
    _print(requests, before, after, others, event)
    Console().print(f"Checkpoint  {path}", soft_wrap=True)


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
        cells = (request.id, request.text, request.target, *chances, others[request.id] or "")
        table.add_row(*(escape(printable(cell)) for cell in cells))
    Console().print(table)
