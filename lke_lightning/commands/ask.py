"""Ask the unedited and the edited model the same, side by side."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lke_lightning import export
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.evaluation.generated import first_choice, respond
from lke_lightning.run_folder import Run

LIKELY = 3
"""So many of the most probable first tokens are shown."""


@dataclass
class Answer:
    """What one of the models says."""

    title: str
    text: str = ""
    first: list[tuple[str, float]] = field(default_factory=list)
    """The most probable first tokens, with their probabilities."""

    @property
    def sure(self) -> str:
        """How sure it is of the first token, in words."""
        return "   ".join(f"{token!r} {probability:.2f}" for token, probability in self.first)

    def shown(self) -> Text:
        """Return what it says, and below it how sure it is of the first token."""
        return Text.assemble(self.text.strip() or "...", "\n", (self.sure, "dim"))


def ask(
    run: str | None = None,
    prompts: list[str] | None = None,
    pretrained: str | None = None,
    chat: bool = False,
    new_tokens: int = 40,
    device: str = "cpu",
    trust: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Let the unedited and the edited model of a run answer, side by side.

    Without prompts it asks for them, line by line, until the input ends; arrow keys bring back earlier ones.

    Args:
        run: the folder of a run, or one of its checkpoints.
        prompts: what is asked, each alone.
        pretrained: ask a model that no run has edited: a folder, a hub name, a GGUF file or `demo`; all words are
            prompts then.
        chat: ask that model through its chat template; a run knows how its model is asked.
        new_tokens: how long an answer may become.
        device: where the model runs, such as `cuda`.
        trust: paths of classes outside of this package that the run's readout may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is neither a run nor a model, it cannot be opened, or a prompt does not fit into it.
    """
    check_number("--new_tokens", new_tokens, at_least=1)
    asked = list(prompts or [])
    if pretrained is not None:
        # an editor has layers to edit, and nothing is edited
        editor, edits = Editor(pretrained, layers=[0], chat=chat, trust_remote_code=trust_remote_code), []
        editor.configure_model()
        asked = [*([run] if run is not None else []), *asked]
    elif run is None:
        raise EditError("name the folder of a run, or a model with --pretrained")
    else:
        opened = Run.read(run)
        editor = export.load(opened.path, tuple(trust or ()), trust_remote_code)
        holding = set(editor.edited)
        edits = [request for request in opened.requests() if request.id in holding]
    editor.language_model.to(device)
    for prompt in asked or _lines():
        try:
            _answer(editor, prompt, new_tokens, edits)
        except EditError as error:
            if asked:
                raise
            print(f"error: {error}", file=sys.stderr)


def nearest(prompt: str, edits: Sequence[EditRequest]) -> EditRequest | None:
    """Return the edit whose subject a prompt names, of several the one that is worded most like it; perhaps none.

    Of edits in the same words it is the newest. An edit without a subject is named by its whole prompt.
    """
    named = [request for request in edits if (request.subject or request.text).casefold() in prompt.casefold()]
    longest = max((len(request.subject or request.text) for request in named), default=0)
    most = [request for request in named if len(request.subject or request.text) == longest]
    return max(reversed(most), key=lambda one: difflib.SequenceMatcher(None, one.text, prompt).ratio(), default=None)


def _lines() -> Iterator[str]:
    """Yield what the user types; where lines can be edited, earlier ones come back with the arrow keys."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it is what gives `input` a history
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def answers(
    editor: Editor, prompt: str, new_tokens: int, show: Callable[[list[Answer]], None] = lambda _: None
) -> list[Answer]:
    """Let the unedited and the edited model answer, one after the other; where nothing is edited there is one.

    Args:
        editor: holds the model.
        prompt: what is asked.
        new_tokens: how long an answer may become.
        show: is called with the answers after each token.

    Raises:
        EditError: the prompt does not fit into the model.
    """
    moments: list[tuple[Answer, Callable[[], AbstractContextManager[None]]]]
    if editor.made:
        moments = [(Answer("unedited"), editor.as_unedited), (Answer("edited"), editor.as_read)]
    else:
        moments = [(Answer(editor.pretrained), nullcontext)]
    found = [answer for answer, _ in moments]
    for answer, moment in moments:
        _fill(editor, answer, moment(), prompt, new_tokens, lambda: show(found))
    return found


def _answer(editor: Editor, prompt: str, new_tokens: int, edits: Sequence[EditRequest]) -> None:
    """Print the answers, token by token on a terminal."""
    console = Console()

    def table(answers: list[Answer]) -> Table:
        found = Table(title=Text(prompt, style="bold"), title_justify="left", expand=True)
        for answer in answers:
            found.add_column(answer.title, ratio=1)
        found.add_row(*(answer.shown() for answer in answers))
        return found

    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else nullcontext() as live:

        def show(now: list[Answer]) -> None:
            if live:
                live.update(table(now), refresh=True)

        said = answers(editor, prompt, new_tokens, show)
    console.print(table(said))
    edit = nearest(prompt, edits)
    if edit is not None:
        console.print(Text(f"Edit {edit.id}: {edit.text} -> {edit.target.strip()}", style="dim"))


def _fill(
    editor: Editor,
    answer: Answer,
    moment: AbstractContextManager[None],
    prompt: str,
    new_tokens: int,
    show: Callable[[], None],
) -> None:
    """Let the model answer under a moment, and show the answer as it grows."""
    model, tokens = editor.language_model, list[int]()

    def choose(logits: Tensor, numbers: Tensor, step: int) -> Tensor:
        chosen = first_choice(logits, numbers, step)
        if not tokens:
            best = logits[0].softmax(0).topk(min(LIKELY, logits.shape[1]))
            words = [model.text.tokenizer.decode([token]) for token in best.indices.tolist()]
            answer.first = list(zip(words, best.values.tolist(), strict=True))
        tokens.append(int(chosen))
        answer.text = model.text.tokenizer.decode(tokens)
        show()
        return chosen

    with moment:
        answer.text = respond(model, [prompt], new_tokens, choose=choose)[0]
