"""Ordinary text: documents from files, from the hub, of the demo world, or sampled from a model."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from lke_lightning.demo.world import make_world
from lke_lightning.distributed import Team
from lke_lightning.edits import EditError
from lke_lightning.model.language_model import DEMO, LanguageModel

KINDS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
"""The reader of `datasets` for each suffix of a text file; `.gz` may follow any."""
COLUMN = "text"
"""Where the document is in a record of any of them."""

HUB_SECONDS = 5.0
"""How long the hub may take to answer whether it is there."""

MODEL = "model"
"""The name of text that the model itself writes."""
OPENINGS = ("The", "A", "In", "It", "When", "I", "You", "He", "She", "We", "They", "This", "There", "For", "If", "On")
"""What that text begins with."""
ROWS, LENGTH, TOP_K = 64, 128, 50
"""Texts that are sampled together, tokens of each, and how many of the most probable tokens are sampled from."""


class TextCorpus:
    """Documents in a fixed order; files are looked into at once, the hub when documents are read.

    Args:
        names: text files (.txt: a document per line; .jsonl, .json, .parquet, .csv: the column `text`; each may be
            compressed, .gz), hub names with their configuration such as `wikimedia/wikipedia:20231101.en`, or `demo`
            for the text of the demo world, or `model` for text that the model writes.
        option: what an error message calls them.

    Raises:
        EditError: there is no name, or a file is not there or holds no text.
    """

    def __init__(self, names: Sequence[str], option: str) -> None:
        if not names:
            raise EditError(f"{option} names no text: give files, a hub name, or {DEMO!r}")
        self.names, self.option = list(names), option
        check_files([name for name in self.names if _is_file(name)], option)

    def documents(self, model: LanguageModel | None = None) -> Iterator[str]:
        """Yield the documents; blank ones are skipped.

        Args:
            model: writes the text of `model`, which has no end; without one there is no such text.

        Raises:
            EditError: a file cannot be read as text, or the hub does not have it or cannot be reached.
        """
        for name in self.names:
            if name == DEMO:
                yield from make_world().corpus()
            elif name == MODEL and model is not None:
                yield from sampled(model)
            elif _is_file(name):
                yield from read_documents([name], self.option)
            else:
                path, _, configuration = name.partition(":")
                _check_reachable(path, f"{name!r} ({self.option})", writes=model is not None)
                what = f"{name!r} ({self.option}) is neither a text file nor a hub dataset that can be reached"
                yield from _texts(f"{name!r} ({self.option})", what, path, name=configuration or None)

    def identity(self) -> str:
        """Tell this text from other text: by its content where it is on this machine, else by its name."""
        return ",".join(map(_identity, self.names))


@torch.no_grad()
def sampled(model: LanguageModel, seed: int = 0) -> Iterator[str]:
    """Yield texts without end that a model writes, by top-k sampling; the same seed and model give the same.

    Args:
        model: the language model, as it is.
        seed: of the sampling.
    """
    from transformers import GenerationConfig

    first = len(model.text.prefix) + 1
    openings = torch.tensor([ids[:first] for ids in model.text.encode(OPENINGS)], device=model.device)
    ids = openings.repeat(ROWS // len(OPENINGS), 1)
    new = min(LENGTH, model.context_length or LENGTH) - first
    # settings of their own, because a model's may sharpen or penalise; no text ends early
    settings = GenerationConfig(do_sample=True, top_k=TOP_K, max_new_tokens=new, min_new_tokens=new)
    settings.pad_token_id = model.text.padding
    for number in count(seed):
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(number)
            found = model.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        texts = model.text.tokenizer.batch_decode(found, skip_special_tokens=True)
        yield from Team.of(model.network).first(texts)


def check_files(files: Sequence[str], option: str) -> None:
    """Look whether text files can be read, as far as the first document of each.

    Raises:
        EditError: one is not there, is no text, or holds no document; the message names it and the option.
    """
    for name in files:
        if not Path(name).is_file():
            raise EditError(f"no text file {name!r} ({option})")
        if _suffix(name) not in KINDS:
            raise EditError(f"{name!r} ({option}) is no text file that can be read: there are {', '.join(KINDS)}")
        if next(read_documents([name], option), None) is None:
            raise EditError(f"the text file {name!r} ({option}) holds no text: every document in it is blank")


def read_documents(files: Sequence[str], option: str) -> Iterator[str]:
    """Yield the documents of text files, of the kinds that `TextCorpus` knows; blank ones are skipped.

    Args:
        files: their paths.
        option: what an error message calls them.

    Raises:
        EditError: one cannot be read as text; the message names it, the option and the reason.
    """
    for name in files:
        if not Path(name).stat().st_size:
            raise EditError(f"the text file {name!r} ({option}) is empty")
        what = f"the text file {name!r} ({option}) cannot be read"
        # the reader takes a pattern, in which brackets in a name would mean something
        yield from _texts(f"{name!r} ({option})", what, KINDS[_suffix(name)], data_files=glob.escape(name))


def _texts(text: str, cannot: str, *source: str, **options: Any) -> Iterator[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # which log what they raise as well
    try:
        for number, record in enumerate(load_dataset(*source, split="train", streaming=True, **options), 1):
            if COLUMN not in record:
                raise EditError(f"{text} has no column {COLUMN!r}, only {', '.join(map(repr, record))}")
            document = record[COLUMN]
            if not isinstance(document, str | None):
                raise EditError(f"record {number} of {text} has {document!r} as its {COLUMN!r}: it must be a string")
            if document and document.strip():
                yield document
    except EditError:
        raise
    except UnicodeDecodeError as error:
        raise EditError(f"{cannot}: it is not UTF-8 ({error.reason} {error.object[error.start]:#x})") from error
    except (DatasetGenerationError, OSError, RuntimeError, ValueError, EOFError, StopIteration) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EditError(f"{cannot}: {reason}") from error


def _check_reachable(path: str, text: str, writes: bool) -> None:
    """Ask the hub for a data set, once: `datasets` tries for half a minute before it says that there is no network.

    Raises:
        EditError: there is no answer. An answer that is a refusal is left to `datasets`, which explains it.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline_mode() or Path(path).exists():  # a copy in the cache and a folder are read without the network
        return
    try:
        HfApi().dataset_info(path, timeout=HUB_SECONDS)
    except (HfHubHTTPError, ValueError):
        return
    except Exception as error:  # of the HTTP library, which differs between versions of the hub's
        own = f", {MODEL!r} for text that the model writes" if writes else ""
        raise EditError(
            f"{text} is no file, and the hub cannot be reached: give files of your own text{own}, {DEMO!r} for the "
            "demo world's, or set HF_HUB_OFFLINE=1 if a copy is in the cache"
        ) from error


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix


def _is_file(name: str) -> bool:
    """Tell files, also missing ones, from hub names."""
    return name not in (DEMO, MODEL) and (_suffix(name) in KINDS or Path(name).is_file())


def _identity(name: str) -> str:
    if name == DEMO:
        return "demo:" + hashlib.sha256("\n".join(make_world().corpus()).encode()).hexdigest()[:16]
    if name == MODEL:
        return f"{MODEL}:{ROWS}x{LENGTH}:{TOP_K}"
    if not _is_file(name):
        return name
    with Path(name).open("rb") as file:
        return f"{Path(name).name}:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
