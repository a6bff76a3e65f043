"""Key statistics: one pass for all layers beside one pass per layer: `python -m benchmarks.statistics`."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, shapes
from benchmarks.evaluation import LEXICON, TOKENIZER
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.statistics import KeyStatistics


def one_pass(model: LanguageModel, corpus: str, tokens: int) -> dict[int, torch.Tensor]:
    """Compute all layers as `fit` does, with nothing cached."""
    with tempfile.TemporaryDirectory() as nowhere:
        return KeyStatistics(corpus, tokens, cache_dir=nowhere).second_moments(model)


@torch.no_grad()
def pass_per_layer(model: LanguageModel, corpus: str, tokens: int) -> dict[int, torch.Tensor]:
    """Run the whole network once for each layer, one document at a time."""
    documents = [ids[:1024] for ids in model.text.encode(Path(corpus).read_text().splitlines())]
    moments = {}
    for layer in model.layers:
        total, left = 0, tokens
        kept = []
        handle = model.architecture.matrix(layer).register_forward_hook(
            lambda _m, args, _o, kept=kept: kept.append(args[0])
        )
        for ids in documents:
            ids = ids[:left]
            if not ids:
                break
            model.network(torch.tensor([ids], device=model.device))
            keys = kept.pop()[0].float()
            total = total + keys.T @ keys
            left -= len(ids)
        handle.remove()
        moments[layer] = total / (tokens - left)
    return moments


def run(shape: str, dtype: str, tokens: int) -> dict[str, Any]:
    """Compare both on one shape."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        lines = [" ".join(draw.choices(LEXICON, k=draw.randint(20, 400))) for _ in range(tokens // 150)]
        corpus.write_text("\n".join(lines))
        model = shapes.build(shape, getattr(torch, dtype), harness.device(), TOKENIZER)
        found = harness.alternate(
            {
                "ours": lambda: one_pass(model, str(corpus), tokens),
                "published": lambda: pass_per_layer(model, str(corpus), tokens),
            },
            1,
        )
    ours, published = found["ours"], found["published"]
    errors = [(ours.value[layer] - moment).norm() / moment.norm() for layer, moment in published.value.items()]
    return {
        "shape": shape,
        "dtype": dtype,
        "layers": len(model.layers),
        "tokens": tokens,
        "ours_tokens_per_second": round(tokens / ours.seconds),
        "published_tokens_per_second": round(tokens / published.seconds),
        "ratio": round(published.seconds / ours.seconds, 2),
        "ours_peak_mib": round(ours.peak_mib),
        "published_peak_mib": round(published.peak_mib),
        "relative_difference": float(f"{max(errors):.2g}"),
    }


def main(
    shapes: list[str] = ["gpt2-small", "llama-100m"],  # noqa: B006
    dtypes: list[str] = ["float32", "bfloat16"],  # noqa: B006
    tokens: int = 20_000,
) -> None:
    """Compare key statistics with a pass per layer.

    Args:
        shapes: names in benchmarks/shapes.py.
        dtypes: dtypes of the model.
        tokens: how many tokens are read; at least as many as a key has entries.
    """
    harness.report("statistics", {"runs": [run(shape, dtype, tokens) for shape in shapes for dtype in dtypes]})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
