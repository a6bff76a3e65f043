"""Text that no edit is about: files with a document per line, cut into windows that a model can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lke_lightning.edits import EditError
from lke_lightning.model.language_model import LanguageModel


def check_files(files: Sequence[str], option: str) -> None:
    """Look, before any work, whether text files can be read, as far as the first document of each.

    Args:
        files: their paths.
        option: what an error message calls them, such as `drift.text`.

    Raises:
        EditError: one is not there, cannot be read, is not UTF-8, or holds no text.
    """
    for name in files:
        if not Path(name).is_file():
            raise EditError(f"no text file {name!r} ({option})")
        if next(read_documents([name], option), None) is None:
            raise EditError(f"the text file {name!r} ({option}) holds no text: a document per line is needed")


def read_documents(files: Sequence[str], option: str) -> Iterator[str]:
    """Yield the documents of text files, one per line; blank lines are skipped.

    Raises:
        EditError: a file cannot be read, or is not UTF-8.
    """
    for name in files:
        try:
            with Path(name).open(encoding="utf-8") as lines:
                yield from (line.strip() for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise EditError(f"the text file {name!r} ({option}) is not UTF-8: save it in that encoding") from error
        except OSError as error:
            raise EditError(f"the text file {name!r} ({option}) cannot be read: {error.strerror}") from error


def windows(model: LanguageModel, texts: Iterable[str], tokens: int, length: int) -> Iterator[tuple[int, ...]]:
    """Yield documents cut into windows, each behind the tokenizer's leading special tokens.

    Args:
        model: the language model, for its tokenizer and its context length, beyond which no window goes.
        texts: documents.
        tokens: reading stops after so many tokens of text.
        length: tokens of a window, at most.
    """
    prefix = model.text.prefix
    size = max(1, min(length, model.context_length or length) - len(prefix))
    for text in texts:
        if tokens <= 0:
            return
        ids = model.text.encode([text])[0][len(prefix) :][:tokens]
        tokens -= len(ids)
        yield from (prefix + ids[i : i + size] for i in range(0, len(ids), size))
