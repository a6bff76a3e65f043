"""Tokenizers of the usual kinds, trained in a moment on a few texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "is",
    "was",
    "born",
    "city",
    "river",
    "plays",
    "speaks",
    "works",
    "for",
    "mother",
    "tongue",
    "capital",
    "native",
    "sport",
    "guitar",
    "piano",
]


def tiny_tokenizer(texts: Iterable[str] = (" ".join(WORDS),), bos: bool = False, vocabulary: int = 400) -> Any:
    """Train a byte-level BPE, as GPT-2, Llama 3 and Qwen have it, on some texts.

    Args:
        texts: what to train on; every text can be encoded whatever they are.
        bos: put a BOS in front of every text, as Llama does.
        vocabulary: number of tokens, 256 bytes included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, bos)


def marker_tokenizer(
    texts: Iterable[str] = (" ".join(WORDS),),
    bos: bool = True,
    vocabulary: int = 400,
    kind: str = "bpe",
    scheme: str = "always",
) -> Any:
    """Train a tokenizer that marks the blank before a word by a leading `▁`, as SentencePiece does.

    Args:
        texts: what to train on.
        bos: put a BOS in front of every text, as Llama 2, Mistral and Gemma do.
        vocabulary: number of tokens, 256 bytes included where `kind` is `bpe`.
        kind: `bpe` with byte fallback (Llama 2), or `unigram`, in which unseen letters are unknown (T5, XGLM).
        scheme: mark the first word as well (`always`, `first`: Llama 2) or not (`never`: Gemma, newer Llama 2 files).

    Raises:
        KeyError: a kind that is neither.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<s>", "</s>", "<unk>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "bpe" else []
    kinds: dict[str, Callable[[], Any]] = {
        "bpe": lambda: models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        "unigram": models.Unigram,
    }
    tokenizer = Tokenizer(kinds[kind]())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    options = {"vocab_size": vocabulary, "special_tokens": special + pieces, "show_progress": False}
    trainer = {"bpe": trainers.BpeTrainer, "unigram": trainers.UnigramTrainer}[kind]
    if kind == "unigram":
        options["unk_token"] = "<unk>"
    tokenizer.train_from_iterator(texts, trainer(**options))
    return _wrapped(tokenizer, bos, unk_token="<unk>")


def word_piece_tokenizer(texts: Iterable[str] = (" ".join(WORDS),), bos: bool = False, vocabulary: int = 400) -> Any:
    """Train a WordPiece, whose tokens inside a word begin with `##`; a letter it never saw makes the word unknown.

    Args:
        texts: what to train on.
        bos: put a BOS in front of every text and an EOS behind it, as BERT puts its own.
        vocabulary: number of tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return _wrapped(tokenizer, bos=False, unk_token="<unk>")


def _wrapped(tokenizer: Any, bos: bool, **special: str) -> Any:
    """Give a tokenizer the interface of transformers; its first two tokens are BOS and EOS."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", **special
    )
