"""Readers of published formats and of your own records, one class each, all through `datasets`."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lke_lightning.data.stream import EditStream
from lke_lightning.demo.world import make_world
from lke_lightning.edits import EditError, EditRequest, Probe

Record = dict[str, Any]


class DemoWorld(EditStream):
    """The world that comes with the package: 1,800 invented facts that the demo model knows.

    Args:
        world_seed: seed of the world; the demo model knows world 0.
        batch_size: edits of one training step.
        limit: edit only this many, from the start.
        shuffle_seed: shuffle with this seed first.
    """

    def __init__(
        self,
        world_seed: int = 0,
        batch_size: int = 20,
        limit: int | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, limit, shuffle_seed)
        self.world_seed = world_seed

    def read(self) -> Iterator[EditRequest]:
        """Yield the world's records."""
        return map(counterfact_request, make_world(self.world_seed).records())


class RecordFile(EditStream):
    """Records of one format from a file or a hub dataset; a subclass says how a record becomes a request.

    Args:
        path: the file, or the name of a hub dataset with the same fields.
        batch_size: edits of one training step.
        limit: edit only this many, from the start.
        shuffle_seed: shuffle with this seed first.
    """

    def __init__(
        self, path: str, batch_size: int = 100, limit: int | None = None, shuffle_seed: int | None = None
    ) -> None:
        super().__init__(batch_size, limit, shuffle_seed)
        self.path = path

    def read(self) -> Iterator[EditRequest]:
        """Yield the file's records."""
        return _requests(self.path, self.request)

    @staticmethod
    @abstractmethod
    def request(record: Record) -> EditRequest:
        """Turn a record, with its position under `index`, into a request."""


class CounterFact(RecordFile):
    """`counterfact.json` or `multi_counterfact.json` as published with ROME and MEMIT."""

    @staticmethod
    def request(record: Record) -> EditRequest:
        """Read a record in CounterFact's schema."""
        return counterfact_request(record)


class ZsRE(RecordFile):
    """`zsre_mend_eval.json` as published with MEND: questions with an answer, a rephrasing and an unrelated question.

    As ROME and MEMIT do, the target is the first of `answers`, the prompt is the question with the subject marked,
    and the unrelated question with its reference answer is the neighbourhood. There is no original target, so success
    and magnitude are undefined and accuracy is what counts.
    """

    @staticmethod
    def request(record: Record) -> EditRequest:
        """Read a record in MEND's schema."""
        return EditRequest.about(
            record["src"],
            record["subject"],
            id=str(record["index"]),
            target=record["answers"][0],
            paraphrases=(record["rephrase"],),
            neighborhood=(Probe(record["loc"] + "?", record["loc_ans"]),),
        )


class JsonLines(RecordFile):
    """Your own facts, one JSON object per line.

    Fields: `prompt` and `target`; optional `subject` (spelled in the prompt, or marked there by `{}`; without one the
    edit is made at the prompt's last token), `original` (what the model says today), `paraphrases` (list of prompts),
    `neighborhood` (list of {"prompt", "answer"}, or of prompts whose answer is `original`), `id`, `relation`,
    `weight` (how much the edit counts, 1 if not given).
    """

    @staticmethod
    def request(record: Record) -> EditRequest:
        """Read one of your records."""
        return _own_request(record)


def counterfact_request(record: Record) -> EditRequest:
    """Turn a record in CounterFact's schema into a request."""
    rewrite = record["requested_rewrite"]
    original = rewrite["target_true"]["str"]
    return EditRequest(
        id=str(record["case_id"]),
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        target=rewrite["target_new"]["str"],
        original=original,
        relation=rewrite.get("relation_id"),
        paraphrases=tuple(record.get("paraphrase_prompts") or ()),
        neighborhood=tuple(Probe(prompt, original) for prompt in record.get("neighborhood_prompts") or ()),
        generation=tuple(record.get("generation_prompts") or ()),
        two_hop=tuple(Probe(hop["question"], hop["answer_new"]) for hop in record.get("two_hop") or ()),
    )


def _own_request(record: Record) -> EditRequest:
    original = record.get("original")
    neighborhood = []
    for neighbor in record.get("neighborhood") or ():
        if isinstance(neighbor, str):
            if original is None:
                raise EditError('a neighbourhood prompt needs its answer: give {"prompt", "answer"}, or `original`')
            neighborhood.append(Probe(neighbor, original))
        else:
            neighborhood.append(Probe(neighbor["prompt"], neighbor["answer"]))
    return EditRequest.about(
        record["prompt"],
        record.get("subject"),
        id=str(record["index"] if record.get("id") is None else record["id"]),
        target=record["target"],
        original=original,
        relation=record.get("relation"),
        paraphrases=tuple(record.get("paraphrases") or ()),
        neighborhood=tuple(neighborhood),
        weight=float(record.get("weight", 1)),
    )


def _requests(path: str, convert: Callable[[Record], EditRequest]) -> Iterator[EditRequest]:
    """Read records and convert them; an error names the record."""
    for index, record in enumerate(_records(path)):
        try:
            given = {name: value for name, value in record.items() if value is not None}
            yield convert({"index": index, **given})
        except EditError as error:
            raise EditError(f"{path}, record {index}: {error}") from error
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            missing = f"field {error} is missing" if isinstance(error, KeyError) else f"it has another form ({error})"
            raise EditError(f"{path}, record {index}: {missing}; it has {sorted(record)}") from error


def _records(path: str) -> Iterator[Record]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    is_file = Path(path).suffix in (".json", ".jsonl") or Path(path).exists()
    if is_file and not Path(path).is_file():
        raise EditError(f"no file {path!r} (data.path)")
    try:
        if is_file:
            source = load_dataset("json", data_files=path, split="train", streaming=True)
        else:
            source = load_dataset(path, split="train", streaming=True)
        yield from source
    except EditError:
        raise
    except (DatasetGenerationError, OSError, ValueError, StopIteration) as error:
        if is_file:
            raise EditError(f"{path}: {_what_is_wrong(Path(path)) or error}") from error
        raise EditError(f"{path!r} is neither a file nor a hub dataset that can be reached: {error}") from error


def _what_is_wrong(path: Path) -> str:
    """Find the line at which a JSON or JSON Lines file stops being one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        return "the file is empty"
    if path.suffix == ".json":
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            return f"line {error.lineno}, column {error.colno}: {error.msg}"
        return ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number}: a record must be a JSON object"
        except json.JSONDecodeError as error:
            return f"line {number}: {error.msg}"
    return ""
