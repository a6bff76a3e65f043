"""What edits cost where the model is used: `python -m benchmarks.inference --runs RUN RUN ...`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from lke_lightning import export
from lke_lightning.editor import Editor
from lke_lightning.evaluation.generated import respond
from lke_lightning.run_folder import Run


def measure(folder: Path, prompts: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Let the edited and the unedited model of a run answer the same prompts, by turns, and weigh what it keeps."""
    opened = Run.read(folder)
    editor = export.load(opened.path)
    editor.language_model.to(harness.device())
    asked = [request.text for request in opened.requests()][:prompts]
    moments = {"unedited": editor.as_unedited, "edited": editor.as_read}
    calls = {name: partial(_answer, editor, moment, asked, new_tokens) for name, moment in moments.items()}
    best = harness.alternate(calls, repeats)
    beside = sum(p.numel() * p.itemsize for m in editor.language_model.beside.values() for p in m.state_dict().values())
    answered = {f"{name}_seconds_per_answer": found.seconds / len(asked) for name, found in best.items()}
    return {
        "method": editor.method,
        "edits": len(editor.edited),
        "editing_seconds_per_edit": (editor.seconds["stage_one"] + editor.seconds["stage_two"]) / max(1, editor.made),
        "checkpoint_bytes_per_edit": opened.path.stat().st_size // max(1, editor.made),
        "bytes_beside_per_edit": beside // max(1, len(editor.edited)),
        **answered,
        "ratio": round(best["edited"].seconds / best["unedited"].seconds, 2),
    }


def _answer(
    editor: Editor, moment: Callable[[], AbstractContextManager[None]], prompts: list[str], new_tokens: int
) -> None:
    """Answer prompts together: by `generate` with its cache, or as a module beside the network answers."""
    model = editor.language_model
    with torch.no_grad(), moment():
        if model.answering is not None:
            respond(model, prompts, new_tokens)
            return
        rows = model.text.prompts(prompts)
        longest, fill = max(map(len, rows)), model.text.padding
        ids = torch.tensor([[fill] * (longest - len(row)) + [*row] for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        model.network.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=fill, **length)


def main(runs: list[str], prompts: int = 20, new_tokens: int = 16, repeats: int = 3) -> None:
    """Measure seconds for each answer, as a ratio to the unedited model's, and bytes for each edit.

    Seconds of editing are those that the run itself has counted, on the machine as it was then.

    Args:
        runs: folders of finished runs, all of one model and the same edits.
        prompts: how many of the edited prompts are answered, together.
        new_tokens: how long every answer becomes.
        repeats: how often, by turns; the fastest counts.
    """
    found = []
    for run in runs:
        found.append(measure(Path(run), prompts, new_tokens, repeats))
        print(found[-1], flush=True)
    harness.report("inference", {"prompts": prompts, "new_tokens": new_tokens, "repeats": repeats, "runs": found})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
