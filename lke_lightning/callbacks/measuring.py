"""Scores a model at one moment by the protocols that are switched on, and times them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lke_lightning.data.corpus import TextCorpus, check_files, read_documents
from lke_lightning.distributed import Team
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.evaluation.generated import answer, protocol, write_about
from lke_lightning.evaluation.judge import Judge
from lke_lightning.evaluation.long_answers import write_answers
from lke_lightning.evaluation.perplexity import perplexity
from lke_lightning.evaluation.teacher_forced import Scores, score
from lke_lightning.evaluation.unedited import UneditedScores
from lke_lightning.metrics import MeaningSimilarity, TextSimilarity

PROTOCOL = "teacher-forced"


class Measurement:
    """Scores the model of an editor, with the readout of its method.

    Args:
        max_tokens: how many tokens are run at once.
        text: text files for perplexity.
        text_tokens: how many tokens of them are read.
        generated: also let the model generate its answers.
        generated_tokens: maximum length of such an answer.
        fluency: also let the model continue texts.
        judge: judges the generated answers; `None`: no judge.
        one_in: score only the first of every so many edits of the stream.
        generated_one_in: generate answers only for the first of every so many of these.
        long_answers: also let the model write long answers, and compare their words with the targets'.
        embedding: an encoder that compares their meaning; `None`: no such comparison.

    Raises:
        EditError: a text file cannot be read, a number is too small, or options contradict each other.
    """

    def __init__(
        self,
        max_tokens: int,
        text: list[str] | None,
        text_tokens: int,
        generated: bool,
        generated_tokens: int,
        fluency: bool,
        judge: Judge | None,
        one_in: int,
        generated_one_in: int,
        long_answers: bool,
        embedding: str | None,
    ) -> None:
        check_number("scorecard.max_tokens", max_tokens, at_least=1)
        check_number("scorecard.generated_tokens", generated_tokens, at_least=1)
        check_number("scorecard.one_in", one_in, at_least=1)
        check_number("scorecard.generated_one_in", generated_one_in, at_least=1)
        check_files(text or [], "scorecard.text")
        check_number("scorecard.text_tokens", text_tokens, at_least=1)
        if judge is not None and not generated:
            raise EditError("a judge judges generated answers: set scorecard.generated, or leave scorecard.judge out")
        if judge is not None:
            judge.check_settings()
        if embedding is not None and not long_answers:
            raise EditError("scorecard.embedding compares long answers: set scorecard.long_answers, or leave it out")
        self.max_tokens, self.text, self.text_tokens = max_tokens, text, text_tokens
        self.generated, self.generated_tokens, self.fluency, self.judge = generated, generated_tokens, fluency, judge
        self.one_in, self.generated_one_in = one_in, generated_one_in
        self._scored: set[str] = set()
        self._answered: set[str] = set()
        self._similarity: TextSimilarity | None = None
        self.long_answers, self.embedding = long_answers, embedding
        self._meaning: MeaningSimilarity | None = None

    @property
    def with_texts(self) -> bool:
        """Whether there is something that is measured before and at the end alone."""
        return self.fluency or self.long_answers

    def prepare(self, requests: Sequence[EditRequest]) -> None:
        """Check that everything can be measured, before any work; choose the edits that are scored; fit TF-IDF weights.

        Args:
            requests: all of the run, in order; words that are rare in their reference texts weigh most in consistency.

        Raises:
            EditError: no record has a prompt for fluency, scikit-learn or the encoder is missing, or the judge does not
                answer.
        """
        if self.judge is not None:
            self.judge.check()
        chosen = [request.id for request in requests[:: self.one_in]]
        self._scored, self._answered = set(chosen), set(chosen[:: self.generated_one_in])
        if self.embedding is not None:
            self._meaning = MeaningSimilarity(self.embedding)
        if self.fluency:
            if not any(request.generation for request in requests):
                raise EditError("no record has prompts to continue (generation_prompts): leave scorecard.fluency out")
            references = list(dict.fromkeys(text for request in requests for text in request.references))
            self._similarity = TextSimilarity(references) if references else None

    def score(
        self,
        editor: Editor,
        requests: Sequence[EditRequest],
        with_texts: bool,
        known: UneditedScores | None = None,
    ) -> tuple[dict[str, Scores], dict[str, str]]:
        """Score requests, those of them that are chosen.

        Args:
            editor: holds the model; the seconds are noted there.
            requests: edits of the run, already made or not.
            with_texts: measure fluency, consistency and long answers, if they are switched on.
            known: the model is unedited, and this may know what it scores and answers, unless there is a judge.

        Returns:
            By id the scores, and, if answers are generated now, the text generated after the edited prompt.
        """
        team = Team.of(editor.language_model.network)
        chosen = [request for request in requests if request.id in self._scored]
        share = team.share(chosen)  # every edit's own scores are gathered: nothing is averaged before
        found, outputs = self._score(editor, share, with_texts, known) if share else ({}, {})
        gathered = team.gather([(request.id, found[request.id], outputs.get(request.id)) for request in share])
        texts = {name: text for name, _, text in gathered if text is not None}
        return {name: scores for name, scores, _ in gathered}, texts

    def _score(
        self, editor: Editor, requests: Sequence[EditRequest], with_texts: bool, known: UneditedScores | None
    ) -> tuple[dict[str, Scores], dict[str, str]]:
        model, outputs = editor.language_model, {}
        with _reading(editor, "evaluation"):
            if known is None:
                scored = score(model, requests, self.max_tokens)
            else:
                scored = known.recall(PROTOCOL, requests, lambda asked: score(model, asked, self.max_tokens))
        found = {request.id: scores for request, scores in zip(requests, scored, strict=True)}
        asked = [request for request in requests if self.generated and request.id in self._answered]
        if asked:

            def generate(some: Sequence[EditRequest]) -> list[Scores]:
                answers = answer(model, some, self.generated_tokens, self.max_tokens, self.judge)
                outputs.update({request.id: found.text for request, found in zip(some, answers, strict=True)})
                return [found.scores for found in answers]

            with _reading(editor, "generation"):
                if known is None or self.judge is not None:
                    answered = generate(asked)
                else:
                    answered = known.recall(protocol(model, self.generated_tokens), asked, generate)
            for request, scores in zip(asked, answered, strict=True):
                found[request.id] |= scores
        if self.long_answers and with_texts:
            with _reading(editor, "long answers"):
                texts = write_answers(model, requests, self._meaning, self.max_tokens)
            for request, scores in zip(requests, texts, strict=True):
                found[request.id] |= scores
        if self.fluency and with_texts:
            with _reading(editor, "fluency"):
                texts = write_about(model, requests, self._similarity, self.max_tokens)
            for request, scores in zip(requests, texts, strict=True):
                found[request.id] |= scores
        return found, outputs

    def perplexity(self, editor: Editor, known: UneditedScores | None = None) -> float:
        """Measure perplexity on the text files; `known`: the model is unedited, and this may know it."""
        files = self.text or []

        def measure() -> float:
            documents = read_documents(files, "scorecard.text")
            return round(perplexity(editor.language_model, documents, self.text_tokens, max_tokens=self.max_tokens), 4)

        with _reading(editor, "evaluation"):
            if known is None:
                return measure()
            text = {"perplexity": TextCorpus(files, "scorecard.text").identity(), "tokens": str(self.text_tokens)}
            return known.number(text, measure)


@contextmanager
def _reading(editor: Editor, activity: str) -> Iterator[None]:
    with editor.working(activity), editor.as_read():
        yield
