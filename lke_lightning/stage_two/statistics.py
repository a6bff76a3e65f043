"""Second moments of keys on ordinary text: what the unedited model relies on, and edits should leave alone.

C0 = E[k k'] over tokens, uncentred, for every edited layer in one pass (ROME, MEMIT: `layer_stats`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from platformdirs import user_cache_dir
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lke_lightning.demo.world import make_world
from lke_lightning.distributed import Team
from lke_lightning.edits import EditError
from lke_lightning.model.language_model import DEMO, LanguageModel, resolve
from lke_lightning.model.tokens import Row

TEXT_SUFFIXES = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


class Statistics(ABC):
    """A source of second moments."""

    @abstractmethod
    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Return C0 (d_key, d_key) for every edited layer; called while the model is unedited."""

    def eigen(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Return eigenvalues, ascending, and eigenvectors, as columns, of a second moment."""
        return torch.linalg.eigh(moment)


class StoredStatistics(Statistics):
    """Second moments from a safetensors file that holds one (d_key, d_key) tensor per matrix, by its module name.

    Args:
        path: the file. It is trusted to belong to the model: names and sizes are checked, contents cannot be.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Read one tensor per edited layer.

        Raises:
            EditError: the file, a matrix in it, or its size is not there as needed.
        """
        names = {module: name for name, module in model.network.named_modules()}
        if not Path(self.path).is_file():
            raise EditError(f"no statistics file {self.path!r}")
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
        return found


class KeyStatistics(Statistics):
    """Second moments computed by streaming over text, and cached.

    The cache key covers the weights and their dtype, the tokenizer, the layer, the text and the number of tokens.

    Args:
        corpus: text files (.txt: a document per line; .jsonl, .json, .parquet, .csv: the column `text`), one hub
            name with its configuration such as `wikimedia/wikipedia:20231101.en`, or `demo` for the text of the demo
            world.
        tokens: how many tokens to read, `None` for 100 for each entry of a key; about 10 suffice (FastMEMIT).
        length: documents are cut after this many tokens.
        batch_tokens: how many tokens are run at once.
        cache_dir: where results are kept; default: the user's cache folder, or `LKE_CACHE`.
    """

    def __init__(
        self,
        corpus: str | list[str] = DEMO,
        tokens: int | None = None,
        length: int = 512,
        batch_tokens: int = 8192,
        cache_dir: str | None = None,
    ) -> None:
        self.corpus = [corpus] if isinstance(corpus, str) else list(corpus)
        self.tokens, self.length, self.batch_tokens = tokens, length, batch_tokens
        self.cache_dir = Path(cache_dir or os.environ.get("LKE_CACHE") or user_cache_dir("lke_lightning"))

    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Load from the cache, or compute and store; processes divide the text, and the first one reads and writes.

        Raises:
            EditError: the text cannot be read or has too few tokens, or a cached file is not what its name says.
        """
        if DEMO in self.corpus and getattr(model.network.config, "name_or_path", "") != resolve(DEMO):
            rank_zero_warn(
                "Key statistics are computed on the text of the demo world, which says little about this model: "
                "give ordinary text (stage_two.statistics.corpus)"
            )
        tokens = self.tokens or 100 * max(weight.delta.shape[1] for weight in model.edited.values())
        keys = {layer: self.key(model, layer, tokens) for layer in model.layers}
        team = Team.of(model.network)
        missing = team.first([layer for layer in model.layers if not self._file(keys[layer]).is_file()])
        if missing:
            for layer, moment in self._compute(model, missing, tokens).items():
                if team.is_first:
                    _write({"second_moment": moment}, self._file(keys[layer]), keys[layer])
        found = {}
        for layer, key in keys.items():
            d_key = model.weight(layer).delta.shape[1]
            moment = self._load(key) if team.is_first else torch.empty(d_key, d_key)
            found[layer] = team.first_tensor(moment.to(model.device))
        return found

    def eigen(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Decompose a second moment once: the cache keeps what was found, by the content of the matrix."""
        content = _hash(moment.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        file, team = self.cache_dir / "eigen" / f"{content}.safetensors", Team.of()
        if not team.is_first:
            values, vectors = torch.empty_like(moment[0]), torch.empty_like(moment)
        else:
            if not file.is_file():
                values, vectors = torch.linalg.eigh(moment)
                _write({"values": values, "vectors": vectors}, file)
            with safe_open(file, "pt", device=str(moment.device)) as stored:
                values, vectors = stored.get_tensor("values"), stored.get_tensor("vectors")
        return team.first_tensor(values), team.first_tensor(vectors)

    def key(self, model: LanguageModel, layer: int, tokens: int) -> dict[str, str]:
        """Return what identifies the statistics of a layer in the cache."""
        return {
            "model": model.base_hash,
            "tokenizer": _hash(json.dumps(sorted(model.text.tokenizer.get_vocab().items())).encode()),
            "matrix": f"{layer}.{model.architecture.matrix_name}",
            "corpus": ",".join(_corpus_identity(name) for name in self.corpus),
            "tokens": str(tokens),
            "length": str(self.length),
        }

    def _file(self, key: dict[str, str]) -> Path:
        return self.cache_dir / "statistics" / f"{_hash(json.dumps(key, sort_keys=True).encode())}.safetensors"

    def _load(self, key: dict[str, str]) -> Tensor:
        file = self._file(key)
        with safe_open(file, "pt") as stored:
            wrong = [name for name in key if (stored.metadata() or {}).get(name) != key[name]]
            if wrong:
                raise EditError(f"the statistics in {file} belong to another {', '.join(wrong)}: delete that file")
            return stored.get_tensor("second_moment")

    def _compute(self, model: LanguageModel, layers: Sequence[int], tokens: int) -> dict[int, Tensor]:
        matrices = [model.architecture.matrix(layer) for layer in layers]
        d_keys = [model.weight(layer).delta.shape[1] for layer in layers]
        sums = [torch.zeros(d, d, dtype=torch.float64, device=model.device) for d in d_keys]
        seen = 0
        team = Team.of(model.network)
        batches = team.share(self._batches(model, tokens))
        what = f"Key statistics of layers {list(layers)}"
        for rows in track(batches, what, transient=True, disable=not team.is_first):
            batch = model.text.pad(rows, model.device)
            real = batch.mask.bool()
            for total, (keys, _) in zip(sums, model.observe(batch, matrices, stop=layers[-1] + 1), strict=True):
                flat = keys[real].to(model.wide_dtype)  # products in the wide dtype, their sum over batches in float64
                total += flat.T @ flat
            seen += int(real.sum())
        sums, seen = [team.sum(total) for total in sums], int(team.sum(torch.tensor(seen, device=model.device)))
        if seen < max(d_keys):
            raise EditError(
                f"the corpus {self.corpus} has {seen} tokens, fewer than the {max(d_keys)} entries of a key: "
                "give more text"
            )
        return {layer: (total / seen).float() for layer, total in zip(layers, sums, strict=True)}

    def _batches(self, model: LanguageModel, tokens: int) -> list[list[Row]]:
        """Read documents up to the number of tokens, then group them by length so that little is padding."""
        rows: list[Row] = []
        left = tokens
        for document in self.documents():
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

    def documents(self) -> Iterator[str]:
        """Yield the documents of the corpus, in order."""
        from datasets import load_dataset

        for name in self.corpus:
            if name == DEMO:
                yield from make_world().corpus()
                continue
            suffix = Path(name).suffix
            if suffix in TEXT_SUFFIXES:
                source = load_dataset(TEXT_SUFFIXES[suffix], data_files=name, split="train", streaming=True)
            else:
                path, _, configuration = name.partition(":")
                source = load_dataset(path, configuration or None, split="train", streaming=True)
            yield from (record["text"] for record in source if record["text"].strip())


def _corpus_identity(name: str) -> str:
    """Identify a corpus by its content where it is a file or ours, else by its name."""
    if name == DEMO:
        return "demo:" + _hash("\n".join(make_world().corpus()).encode())
    path = Path(name)
    if path.suffix not in TEXT_SUFFIXES:
        return name
    if not path.is_file():
        raise EditError(f"no corpus file {name!r} (stage_two.statistics.corpus)")
    return f"{path.name}:{_hash(path.read_bytes())}"


def _write(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    os.close(handle)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, unfinished, metadata=metadata)
    os.replace(unfinished, file)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
