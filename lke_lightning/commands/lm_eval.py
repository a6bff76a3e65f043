"""The command line of `lm-eval`, on the edited model of a run."""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec

import torch

from lke_lightning import export
from lke_lightning.edits import EditError


def lm_eval(run: str, arguments: list[str] | None = None, trust: list[str] | None = None) -> None:
    """Run `lm-eval` on the edited model of a run, with the method's readout and what stands beside the network.

    Args:
        run: the folder of a run, or one of its checkpoints.
        arguments: those of `lm-eval run`, after `--`, but for `--model` and `--model_args`.
        trust: paths of classes outside of this package that the run's readout may be made of.

    Raises:
        EditError: `lm-eval` is not installed, the run cannot be opened, or it puts facts before its prompts, which
            the harness's likelihoods would not have.
    """
    if find_spec("lm_eval") is None:
        raise EditError("the command needs lm-eval: pip install 'lke-lightning[eval]'")
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM

    editor = export.load(run, tuple(trust or ()))
    model = editor.language_model
    if model.text.preface is not None or model.answering is not None:
        raise EditError(f"{editor.method} tells facts in the prompt: lm-eval cannot ask it; use fit's own scorecard")

    @register_model("lke")
    class EditedModel(HFLM):
        """The network in memory; its tokenizer is a copy, because the harness sets a padding token."""

        def __init__(self, batch_size: int = 1, device: str = "cuda", max_batch_size: int | None = None) -> None:
            editor.to(device if torch.cuda.is_available() else "cpu")  # the harness names a GPU by default
            tokenizer = copy.deepcopy(model.text.tokenizer)
            super().__init__(model.network, tokenizer=tokenizer, batch_size=batch_size, max_batch_size=max_batch_size)

    given, sys.argv = sys.argv, ["lm_eval", "run", "--model", "lke", *(arguments or [])]
    try:
        with editor.as_read():
            cli_evaluate()
    finally:
        sys.argv = given
