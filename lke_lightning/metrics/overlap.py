"""How much of a long answer is there: words in common with a reference, and likeness of meaning by a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.edits import EditError

OVERLAPS = ("bleu", "rouge_l", "rouge_l_recall")


def overlap(text: str, reference: str) -> tuple[float, float, float]:
    """Compare a generated text with a reference, each measure from 0 to 1.

    Returns:
        Sentence BLEU of up to four words, add-one smoothed (Lin and Och 2004), words as blanks divide them; ROUGE-L's
        F1 and recall (Lin 2004), words lower-cased. All by torchmetrics. The code of AnyEdit (arXiv 2502.05628) takes
        BLEU over letters, which is far higher, and ROUGE's recall alone.

    Example:
        >>> [round(value, 3) for value in overlap("the cat sat on the mat", "the cat sat on a mat")]
        [0.595, 0.833, 0.833]
    """
    from torchmetrics.functional.text import bleu_score
    from torchmetrics.functional.text.rouge import rouge_score

    found = rouge_score(text, reference, rouge_keys=("rougeL",))
    bleu = bleu_score([text], [[reference]], smooth=True)
    return bleu.item(), found["rougeL_fmeasure"].item(), found["rougeL_recall"].item()


class MeaningSimilarity:
    """Cosine of sentence embeddings: the mean of an encoder's last hidden states over a text's tokens.

    That is what `all-MiniLM-L6-v2`, the model of AnyEdit's figures, was trained for; others may pool otherwise.

    Args:
        pretrained: a folder or a hub name of an encoder.

    Raises:
        EditError: it cannot be loaded.
    """

    def __init__(self, pretrained: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(pretrained)
            self._model = AutoModel.from_pretrained(pretrained).eval()
        except Exception as error:  # a dozen kinds of transformers, safetensors and the hub's client
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise EditError(f"cannot load a sentence-embedding model from {pretrained!r}: {reason}") from error

    @torch.no_grad()
    def __call__(self, text: str, reference: str) -> float:
        """Compare two texts, from -1 to 1; each is cut to what the encoder holds."""
        one, other = self.embed([text, reference])
        return torch.cosine_similarity(one, other, dim=0).item()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, (texts, hidden size); each is cut to what the encoder holds."""
        longest = getattr(self._model.config, "max_position_embeddings", 512)
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        hidden, mask = self._model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(2)
        return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
