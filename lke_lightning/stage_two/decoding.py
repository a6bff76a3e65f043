"""Editing by decoding: questions are answered by a search over steps of thought that takes edited facts up."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.model.beside import Generate
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.facts import Fact, Facts, Telling, asked, stated
from lke_lightning.stage_two.retrieval import Retriever

STEP_TOKENS = 24
"""How long a step, a name or a yes may become."""

STEP = """\
Question: What is the currency of the country that the Rhine Falls are in?
Step: The Rhine Falls are in Switzerland.
Step: The currency of Switzerland is the franc.
Step: So the answer is the franc.

Question: Who is married to the writer of Dracula?
Step: The writer of Dracula is Bram Stoker.
Step: The spouse of Bram Stoker is Florence Balcombe.
Step: So the answer is Florence Balcombe.

Question: {question}
{steps}Step:"""
"""Asks for the next step."""

ENTITY = """\
Known: Who is married to the writer of Dracula?
Sentence: The writer of Dracula is Bram Stoker.
New name: Bram Stoker

Known: The Rhine Falls are in Switzerland.
Sentence: The currency of Switzerland is the franc.
New name: franc

Known: {before}
Sentence: {step}
New name:"""
"""Asks which entity of a step the text before it lacks."""

CONFLICTS = tuple(
    f"""\
A: The capital of France is Paris.
B: The capital of France is Lyon.
{question} Yes

A: The capital of France is Paris.
B: {{other}}
{question} No

A: {{step}}
B: {{fact}}
{question}""".replace("{other}", other)
    for question, other in (
        ("Do A and B answer one question?", "The river in Lyon is the Rhone."),
        ("Do A and B share a name?", "The river in Lyon is the Rhone."),
        ("Does B name something that A does not?", "Paris is the capital of France."),
    )
)
"""Ask whether a fact contradicts a step; three times yes: it does."""

Search = Generator[list[str], list[str], "str | None"]
"""Yields prompts, takes the lines generated after them, returns the answer; `None`: no fact bears on it."""


@dataclass(frozen=True)
class State:
    """A branch of the search."""

    steps: tuple[str, ...] = ()
    entity: str = ""
    """What the last step has added."""
    last: str = ""
    """What the step before it had added."""
    has_fact: bool = False
    """Whether one of the steps is an edited fact."""


class ThoughtSearch(Facts):
    """DeepEdit (arXiv 2401.10471): depth-first search over generated steps; facts take the place of some.

    From the newest state the network generates a step. The facts most relevant to it, its new entity left out, that
    pass the constraints take its place, the most relevant being followed first; if none does, the step stays:

    - *conciseness*: a step is one sentence, and none is repeated;
    - *coherence*: a fact has the entity of the step before it, and not the one before that; at first, its subject is
      in the question; or
    - *receptiveness*: the network says that the fact contradicts the step;
    - *pertinence*: its relevance is above the threshold.

    A step with the word "answer" ends the search, with the entity reached. All questions are searched together. Where
    no fact was taken up, the network answers as without the search. Nothing is drawn at random.

    Args:
        retriever: see `Facts`.
        top_k: see `Facts`.
        threshold: see `Facts`.
        depth: steps of a branch, at most.
        expansions: states from which a step is generated for a question, at most; each costs up to 2 + 3 `top_k`
            generations.
        facts: see `Facts`.
        holding: see `Facts`.

    Raises:
        EditError: a number is out of its range.
    """

    is_scored: ClassVar[bool] = False

    def __init__(
        self,
        retriever: Retriever,
        top_k: int,
        threshold: float,
        depth: int,
        expansions: int,
        facts: list[Fact] | None = None,
        holding: list[int] | None = None,
    ) -> None:
        super().__init__(retriever, top_k, threshold, facts, holding)
        check_number("stage_two.depth", depth, at_least=1)
        check_number("stage_two.expansions", expansions, at_least=1)
        self.depth, self.expansions = depth, expansions
        self._fits: Callable[[str], bool] = lambda prompt: True

    @property
    def settings(self) -> dict[str, Any]:
        """See `Facts.settings`."""
        return {**super().settings, "depth": self.depth, "expansions": self.expansions}

    def install(self, model: LanguageModel) -> None:
        """Learn how long a prompt may be."""
        text = model.text
        self._fits = lambda prompt: text.fitted([prompt], "") is not None

    def answer(self, prompts: Sequence[str], new_tokens: int, generate: Generate) -> list[str]:
        """Search for the answers of all questions at once; what was generated for one prompt is generated once."""
        searches = {prompt: self.search(prompt) for prompt in prompts if self.is_on and self.holding}
        known: dict[str, str] = {}
        found: dict[str, Any] = {}
        replies: dict[str, Any] = dict.fromkeys(searches)
        while replies:
            wanted: dict[str, list[str]] = {}
            for prompt, reply in replies.items():
                try:
                    wanted[prompt] = searches[prompt].send(reply)
                except StopIteration as end:
                    found[prompt] = end.value
            new = [text for text in dict.fromkeys(itertools.chain(*wanted.values())) if text not in known]
            known |= dict(zip(new, generate(new, STEP_TOKENS), strict=True)) if new else {}
            replies = {prompt: [known[text].strip() for text in texts] for prompt, texts in wanted.items()}
        own = [prompt for prompt in dict.fromkeys(prompts) if found.get(prompt) is None]
        said = dict(zip(own, generate(own, new_tokens), strict=True)) if own else {}
        return [said[prompt] if prompt in said else found[prompt] for prompt in prompts]

    def search(self, question: str) -> Search:
        """Search for the answer to a question."""
        stack, deepest = [State()], State()
        for _ in range(self.expansions):
            while stack and len(stack[-1].steps) >= self.depth:
                stack.pop()
            if not stack:
                break
            state = stack.pop()
            prompt = _step_prompt(question, state.steps)
            if not self._fits(prompt):
                continue
            step = _sentence((yield [prompt])[0])
            if "answer" in step.lower() and state.steps:
                return state.entity if state.has_fact else None
            known = state.steps[-1] if state.steps else question
            entity = _sentence((yield [ENTITY.format(before=known, step=step)])[0]).rstrip(".")
            stub = step.replace(entity, "") if entity else step
            new = [State((*state.steps, step), entity if entity in step else "", state.entity, state.has_fact)]
            taken = yield from self._taken(question, state, step, stub)
            if taken:
                new = [State((*state.steps, stated(fact)), fact["target"], state.entity, True) for fact in taken]
            new = [branch for branch in new if branch.steps[-1] not in state.steps]
            stack += reversed(new)
            deepest = max([deepest, *new], key=lambda branch: (branch.has_fact, len(branch.steps)))
        return deepest.entity if deepest.has_fact else None

    def _taken(self, question: str, state: State, step: str, stub: str) -> Generator[list[str], list[str], list[Fact]]:
        """Return the facts that take a step's place, the most relevant first."""
        facts = [self.facts[number] for number in self.found(stub)]
        doubtful = [fact for fact in facts if not _is_coherent(fact, state, question)]
        said = yield [ask.format(step=step, fact=stated(fact)) for fact in doubtful for ask in CONFLICTS]
        yes = [text.lower().startswith("yes") for text in said]
        agreed = [all(yes[i : i + len(CONFLICTS)]) for i in range(0, len(yes), len(CONFLICTS))]
        refused = [fact for fact, is_conflict in zip(doubtful, agreed, strict=True) if not is_conflict]
        return [fact for fact in facts if fact not in refused]


def _is_coherent(fact: Fact, state: State, question: str) -> bool:
    if not state.steps:
        return fact.get("subject", asked(fact)) in question
    return bool(state.entity) and state.entity in stated(fact) and not (state.last and state.last in stated(fact))


def _step_prompt(question: str, steps: Sequence[str]) -> str:
    return STEP.format(question=question, steps="".join(f"Step: {step}\n" for step in steps))


def _sentence(text: str) -> str:
    """Return the first sentence of a line."""
    return re.split(r"(?<=\.)\s", text.strip())[0]


class Decoding(Telling):
    """Answers questions by `ThoughtSearch`, over the facts of all edits together.

    Likelihoods of given answers say nothing of what it answers: teacher-forced scores are undefined, and null.

    Args:
        retriever: finds facts for a step.
        top_k: how many, at most.
        threshold: relevance, as a share of that of a fact's own prompt, that a fact has to exceed.
        depth: steps of a branch, at most.
        expansions: states that are followed for a question, at most.

    Raises:
        EditError: a number is out of its range.
    """

    def __init__(
        self, retriever: Retriever, top_k: int = 2, threshold: float = 0.0, depth: int = 9, expansions: int = 16
    ) -> None:
        super().__init__()
        self.options = (retriever, top_k, threshold, depth, expansions)
        self.store()

    def store(self) -> ThoughtSearch:
        """Make the module."""
        return ThoughtSearch(*self.options)

    def check_fits(self, model: LanguageModel, facts: Facts, request: EditRequest) -> None:
        """Check that the first two steps of a search fit."""
        prompt = _step_prompt(request.text, [f"{request.text} {request.target}."])
        if model.text.fitted([prompt], "") is None:
            raise EditError(
                f"edit {request.id}: the examples of the search, its prompt and its target do not fit into the "
                f"{model.context_length} tokens of the model's context, of which an eighth is kept for the answer: "
                "shorten it, or take a model with a longer context"
            )
