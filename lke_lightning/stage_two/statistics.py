"""Second moments of keys on ordinary text, on which edits should leave the outputs unchanged.

C0 = E[k k'] over tokens, uncentred, for every edited layer in one pass (ROME, MEMIT: `layer_stats`).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lke_lightning.cache import TensorCache, digest
from lke_lightning.data.corpus import MODEL, TextCorpus
from lke_lightning.distributed import Team
from lke_lightning.edits import EditError
from lke_lightning.model.backward import Curvature, curvature
from lke_lightning.model.language_model import DEMO, LanguageModel, resolve
from lke_lightning.model.tokens import Row
from lke_lightning.progress import track, work

FLOATS = ("F64", "F32", "BF16", "F16")
"""What safetensors calls the dtypes that a second moment may have."""
SYMMETRY = 1e-4
"""Tolerance of symmetry, as a share of the largest entry: sums in float32 come nearer."""


OPTION = "stage_two.statistics.corpus"
READ, WRITTEN = 100, 10
"""Tokens for each entry of a key: of text that is there, and of text that the model has to write, which is slow."""


class Statistics(ABC):
    """A source of second moments."""

    @abstractmethod
    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Return C0 (d_key, d_key) for every edited layer, of the model as it was before any edit.

        A source that runs the model does so inside of `model.unedited()`.
        """

    def curvatures(self, model: LanguageModel) -> tuple[dict[int, Curvature], int]:
        """Return the curvature of every edited layer on the text, summed over tokens, and over how many of them.

        Raises:
            EditError: the source knows the keys alone.
        """
        raise EditError(f"{type(self).__name__} knows keys and no gradients: set stage_two.statistics to KeyStatistics")

    def eigen(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Return eigenvalues, ascending, and eigenvectors, as columns, of a second moment."""
        return torch.linalg.eigh(moment)


class NoStatistics(Statistics):
    """Nothing is known of ordinary text: all second moments are zero, for methods that hold only the weights still."""

    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Return zeros, without running the model."""
        sizes = {layer: model.weight(layer).delta.shape[1] for layer in model.layers}
        return {layer: torch.zeros(size, size, device=model.device) for layer, size in sizes.items()}


class StoredStatistics(Statistics):
    """Second moments from a safetensors file that holds one (d_key, d_key) tensor per matrix, by its module name.

    Args:
        path: the file. It must belong to the model: only the form of its matrices can be checked, not their origin.

    Raises:
        EditError: the file is missing, is not a safetensors file, or holds something other than second moments.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_file():
            raise EditError(f"no statistics file {path!r} (stage_two.statistics.path)")
        try:
            with safe_open(path, "pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                kinds = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
        except (SafetensorError, OSError) as error:
            raise EditError(
                f"{path!r} (stage_two.statistics.path) is truncated or not a safetensors file: {error}"
            ) from error
        if not kinds:
            raise EditError(f"{path!r} (stage_two.statistics.path) holds no tensor")
        for name, (dtype, shape) in kinds.items():
            if dtype not in FLOATS or len(shape) != 2 or shape[0] != shape[1]:
                raise EditError(
                    f"{name!r} in {path!r} is {dtype} of shape {tuple(shape)}: a second moment is a square matrix of "
                    "floating-point numbers"
                )

    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Read one tensor per edited layer.

        Raises:
            EditError: a matrix is missing, has another size, or is not a second moment.
        """
        names = {module: name for name, module in model.network.named_modules()}
        found = {}
        with safe_open(self.path, "pt", device=str(model.device)) as file:
            for layer in model.layers:
                name, d_key = names[model.architecture.matrix(layer)], model.weight(layer).delta.shape[1]
                if name not in file.keys():  # noqa: SIM118 - a safetensors file is not a dict
                    raise EditError(f"{self.path!r} has no statistics of {name!r}, only of {sorted(file.keys())}")
                found[layer] = file.get_tensor(name)
                if found[layer].shape != (d_key, d_key):
                    shape = tuple(found[layer].shape)
                    raise EditError(f"statistics of {name!r} are {shape}, this model's keys need {(d_key, d_key)}")
                wrong = what_is_wrong(found[layer])
                if wrong:
                    raise EditError(f"{name!r} in {self.path!r} is not a second moment: {wrong}")
        return found


class KeyStatistics(Statistics):
    """Second moments computed by streaming over text, and cached.

    The cache key covers the weights and their dtype, the tokenizer, the layer, the text and the number of tokens.

    Args:
        corpus: text files (.txt: a document per line; .jsonl, .json, .parquet, .csv: the column `text`; also
            compressed, .gz), hub names with their configuration such as `wikimedia/wikipedia:20231101.en`, or `demo`
            for the text of the demo world, or `model` for text that the unedited model writes. `None`: `demo` for the
            demo model, `model` for any other.
        tokens: how many tokens to read, `None`: 100 per entry of a key, or 10 where the model has to write them, which
            nearly suffice (FastMEMIT).
        length: documents are cut after this many tokens.
        batch_tokens: how many tokens are run at once.
        cache_dir: where results are kept; default: the user's cache folder, or `LKE_CACHE`.

    Raises:
        EditError: a number is below 1, a text file cannot be read, or the cache folder is invalid.
    """

    def __init__(
        self,
        corpus: str | list[str] | None = None,
        tokens: int | None = None,
        length: int = 512,
        batch_tokens: int = 8192,
        cache_dir: str | None = None,
    ) -> None:
        for name, value in (("tokens", tokens), ("length", length), ("batch_tokens", batch_tokens)):
            if value is not None and value < 1:
                raise EditError(f"stage_two.statistics.{name} is {value}: it must be at least 1")
        self.tokens, self.length, self.batch_tokens = tokens, length, batch_tokens
        self.cache = TensorCache(cache_dir, "stage_two.statistics.cache_dir")
        self.names = [corpus] if isinstance(corpus, str) else corpus
        self._corpus = None if self.names is None else TextCorpus(self.names, OPTION)

    def corpus(self, model: LanguageModel) -> TextCorpus:
        """Return the text for a model."""
        return self._corpus or own_text(model, OPTION)

    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Load from the cache, or compute and store; processes divide the text, and the first one reads and writes.

        Raises:
            EditError: the text cannot be read or has too few tokens, or the model's keys are not finite.
        """
        if DEMO in (self.names or []) and not _is_demo(model):
            rank_zero_warn(
                "Key statistics are computed on the text of the demo world, which represents this model poorly: "
                "give ordinary text (stage_two.statistics.corpus)"
            )
        tokens = self.wanted(model)
        team, found = Team.of(model.network), {}
        keys = self.keys(model, tokens) if team.is_first else {}
        for layer, key in keys.items():
            cached = self.cache.get("statistics", key)
            if cached is not None:
                found[layer] = cached["second_moment"].to(model.device)
        missing = team.first([layer for layer in model.layers if layer not in found])
        if missing:
            computed = self._compute(model, missing, tokens)
            for layer in missing if team.is_first else ():
                self.cache.put("statistics", keys[layer], {"second_moment": computed[layer]})
            found |= computed
        for layer in model.layers:
            d_key = model.weight(layer).delta.shape[1]
            own = found[layer] if layer in found else torch.empty(d_key, d_key, device=model.device)
            found[layer] = team.first_tensor(own)
        return {layer: found[layer] for layer in model.layers}

    def curvatures(self, model: LanguageModel) -> tuple[dict[int, Curvature], int]:
        """Load from the cache, or run the same text forward and backward and store; processes divide it.

        Raises:
            EditError: the text cannot be read, or gradients are not finite.
        """
        tokens, team = self.wanted(model), Team.of(model.network)
        keys = self.keys(model, tokens) if team.is_first else {}
        stored: dict[int, Any] = {layer: self.cache.get("curvature", key) for layer, key in keys.items()}
        if team.first(any(part is None for part in stored.values()) if stored else None):
            mine = [row for rows in team.share(self._batches(model, tokens)) for row in rows]
            with model.unedited():
                sums, count = curvature(model, mine)
            count = int(team.sum(torch.tensor(count, device=model.device)))
            found = {layer: Curvature(team.sum(own.keys), team.sum(own.gradients)) for layer, own in sums.items()}
            for layer, own in found.items() if team.is_first else ():
                parts = {"keys": own.keys, "gradients": own.gradients, "tokens": torch.tensor(count)}
                self.cache.put("curvature", keys[layer], parts)
        else:
            count = team.first(int(stored[model.layers[0]]["tokens"]) if stored else None)
            found = {}
            for layer in model.layers:
                made = [torch.empty(d, d, dtype=torch.float64) for d in reversed(model.weight(layer).delta.shape)]
                known = [stored[layer][name] for name in ("keys", "gradients")] if stored else made
                found[layer] = Curvature(*(team.first_tensor(part.to(model.device)) for part in known))
        if not all(own.gradients.isfinite().all() for own in found.values()):
            raise EditError("the gradients on ordinary text are not finite: check that the model is complete")
        return found, count

    def wanted(self, model: LanguageModel) -> int:
        """Return the number of tokens to read for a model."""
        per_entry = WRITTEN if MODEL in self.corpus(model).names else READ
        return self.tokens or per_entry * max(weight.delta.shape[1] for weight in model.edited.values())

    def is_cached(self, model: LanguageModel, kind: str = "statistics") -> bool:
        """Tell whether the cache has the statistics, or the `curvature`, of all edited layers."""
        return all(self.cache.file(kind, key).is_file() for key in self.keys(model, self.wanted(model)).values())

    def eigen(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Decompose a second moment once; results are cached by the content of the matrix."""
        team = Team.of()
        if not team.is_first:
            values, vectors = torch.empty_like(moment[0]), torch.empty_like(moment)
        else:
            key = {"content": digest({"second_moment": moment})}
            cached = self.cache.get("eigen", key)
            if cached is None:
                with work(f"Decomposing key statistics, {len(moment)} x {len(moment)}", 1):
                    values, vectors = torch.linalg.eigh(moment)
                self.cache.put("eigen", key, {"values": values, "vectors": vectors})
            else:
                values, vectors = cached["values"].to(moment.device), cached["vectors"].to(moment.device)
        # the decomposition's own layout in memory would let later products round otherwise than after a reload
        return team.first_tensor(values), team.first_tensor(vectors.contiguous())

    def keys(self, model: LanguageModel, tokens: int) -> dict[int, dict[str, str]]:
        """Return the cache keys of the statistics of each layer."""
        vocabulary = json.dumps(sorted(model.text.tokenizer.get_vocab().items()))
        common = {
            "model": model.base_hash,
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:16],
            "corpus": self.corpus(model).identity(),
            "tokens": str(tokens),
            "length": str(self.length),
        }
        return {layer: {**common, "matrix": f"{layer}.{model.architecture.matrix_name}"} for layer in model.layers}

    def _compute(self, model: LanguageModel, layers: Sequence[int], tokens: int) -> dict[int, Tensor]:
        matrices = [model.architecture.matrix(layer) for layer in layers]
        d_keys = [model.weight(layer).delta.shape[1] for layer in layers]
        sums = [torch.zeros(d, d, dtype=torch.float64, device=model.device) for d in d_keys]
        seen = 0
        team = Team.of(model.network)
        what = f"Key statistics of layers {list(layers)}"
        with model.unedited():  # they are cached under the hash of the unedited weights
            batches = team.share(self._batches(model, tokens))
            for rows in track(batches, what):
                batch = model.text.pad(rows, model.device)
                real = batch.mask.bool()
                for total, (keys, _) in zip(sums, model.observe(batch, matrices, stop=layers[-1] + 1), strict=True):
                    flat = keys[real].to(model.wide_dtype)  # products in the wide dtype, their sum in float64
                    total += flat.T @ flat
                seen += int(real.sum())
        sums, seen = [team.sum(total) for total in sums], int(team.sum(torch.tensor(seen, device=model.device)))
        if seen < max(d_keys):
            raise EditError(
                f"{OPTION} {self.corpus(model).names} gives {seen} tokens, fewer than the {max(d_keys)} entries "
                "of a key: give more text, or a larger stage_two.statistics.tokens"
            )
        found = {layer: (total / seen).float() for layer, total in zip(layers, sums, strict=True)}
        for layer, moment in found.items():
            wrong = what_is_wrong(moment)
            if wrong:
                raise EditError(
                    f"the key statistics of layer {layer} cannot be used: {wrong}; check that the model is complete"
                )
        return found

    def _batches(self, model: LanguageModel, tokens: int) -> list[list[Row]]:
        """Read documents up to the number of tokens, then group them by length to minimize padding."""
        rows: list[Row] = []
        left = tokens
        for document in self.corpus(model).documents(model):
            ids = model.text.encode([document])[0][: min(self.length, left)]
            if ids:
                rows.append(Row(ids, len(ids) - 1))
                left -= len(ids)
            if left <= 0:
                break
        batches: list[list[Row]] = []
        for row in sorted(rows, key=lambda row: len(row.ids)):
            if not batches or (len(batches[-1]) + 1) * len(row.ids) > self.batch_tokens:
                batches.append([])
            batches[-1].append(row)
        return batches


def own_text(model: LanguageModel, option: str) -> TextCorpus:
    """Return the text for a model where none is named: the demo world's, or what the model writes."""
    return TextCorpus([DEMO if _is_demo(model) else MODEL], option)


def _is_demo(model: LanguageModel) -> bool:
    """Tell whether a model is the one that comes with the package, by where it was loaded from."""
    return Path(getattr(model.network.config, "name_or_path", "")).resolve() == Path(resolve(DEMO)).resolve()


def what_is_wrong(moment: Tensor) -> str | None:
    """Return why a square matrix cannot be a second moment; `None`: it can be one."""
    if not moment.isfinite().all():
        return "it has entries that are not finite"
    if moment.diagonal().min() < 0:
        return "its diagonal, a mean of squares, has an entry below 0"
    if (moment - moment.T).abs().max() > SYMMETRY * moment.abs().max():
        return "it is not symmetric"
    return None
