"""What the model says before and after it was edited, side by side."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lke_lightning.editor import Editor
from lke_lightning.edits import EditRequest, check_number
from lke_lightning.evaluation.generated import respond


class Speaking(Callback):
    """Lets the unedited and the edited model continue some prompts, and prints both.

    Of some edits, spread over the stream, the first paraphrase is asked and the first neighbour, whose answer should
    stay; an edit without paraphrases is asked as it was made.

    Args:
        edits: how many edits are asked about.
        new_tokens: how long an answer may become.

    Raises:
        EditError: one of them is below 1.
    """

    def __init__(self, edits: int = 5, new_tokens: int = 12) -> None:
        check_number("Speaking.edits", edits, at_least=1)
        check_number("Speaking.new_tokens", new_tokens, at_least=1)
        self.edits, self.new_tokens = edits, new_tokens
        self.before: dict[str, str] = {}
        """What the unedited model said, by prompt."""
        self.after: dict[str, str] = {}

    def prompts(self, requests: list[EditRequest]) -> list[str]:
        """Return what is asked."""
        some = requests[:: max(1, len(requests) // self.edits)][: self.edits]
        asked = [(request.paraphrases or (request.text,))[0] for request in some]
        beside = [request.neighborhood[0].prompt for request in some if request.neighborhood]
        return list(dict.fromkeys([*asked, *beside]))

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Ask the unedited model."""
        prompts = self.prompts(trainer.datamodule.requests)
        with pl_module.as_unedited():
            self.before = self._answers(pl_module, prompts)

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Ask the edited model, and print the table."""
        with pl_module.as_read():
            self.after = self._answers(pl_module, list(self.before))
        if trainer.is_global_zero:
            table = Table(title="What the model says", show_lines=True)
            for column in ("", "before", "after"):
                table.add_column(column)
            for prompt, before in self.before.items():
                table.add_row(escape(prompt), escape(before), escape(self.after[prompt]))
            Console().print(table)

    def _answers(self, editor: Editor, prompts: list[str]) -> dict[str, str]:
        with editor.working("evaluation"):
            said = respond(editor.language_model, prompts, self.new_tokens)
        return {prompt: text.strip() for prompt, text in zip(prompts, said, strict=True)}
