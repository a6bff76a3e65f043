"""Text that no edit is about: files with a document per line, cut into windows that a model can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lke_lightning.edits import EditError
from lke_lightning.model.language_model import LanguageModel


def check_documents(files: Sequence[str] | None, tokens: int, option: str) -> None:
    """Check, before any work, that text files can be read.

    Only their beginnings are looked at; what is wrong further on is said by `read_documents`.

    Args:
        files: text files; `None`: no text is wanted.
        tokens: how many tokens of them are to be read.
        option: the option that names the files, such as `drift.text`; that with `_tokens` behind it says how many.

    Raises:
        EditError: a file is not there, cannot be read, is not UTF-8 or holds no text; no token is to be read.
    """
    if tokens < 1:
        raise EditError(f"{option}_tokens is {tokens}: at least 1 token of text must be read")
    for name in files or ():
        if not Path(name).is_file():
            raise EditError(f"no text file {name!r} ({option})")
        if next(read_documents([name]), None) is None:
            raise EditError(f"the text file {name!r} ({option}) has no text: it needs a document per line")


def read_documents(files: Sequence[str]) -> Iterator[str]:
    """Yield the documents of text files, one per line; blank lines are skipped.

    Raises:
        EditError: a file cannot be read, or is not UTF-8.
    """
    for name in files:
        try:
            with Path(name).open(encoding="utf-8") as lines:
                yield from (line.strip() for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise EditError(f"the text file {name!r} is not UTF-8: save it in that encoding") from error
        except OSError as error:
            raise EditError(f"the text file {name!r} cannot be read: {error.strerror}") from error


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
