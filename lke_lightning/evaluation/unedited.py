"""Scores of the unedited model, kept on disk: every run and every method on a model and data begins with the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lke_lightning.cache import VARIABLE, TensorCache
from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.evaluation.packing import pack, unpack
from lke_lightning.evaluation.teacher_forced import Scores, asked_pairs, questions
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.results import versions

KIND, NAME_BYTES = "unedited", 16


class UneditedScores:
    """What a run finds out about the unedited model, and what earlier runs found.

    It is kept under the content hash, configuration and dtype of the model, its tokenizer, the versions of the
    libraries, the kind of device and the precision; a request under the protocol and the texts and token ids of its
    questions, so that a chat template and a system prompt count. Requests of another run stand in other batches there,
    and their scores may differ from this run's own by rounding.

    Where there are several processes, the first one reads and writes, and all have to come to every method but
    `recall`.

    Args:
        model: the language model.
        precision: of the trainer.
        cache: where it is kept; `None`: nowhere.
    """

    def __init__(self, model: LanguageModel, precision: str, cache: TensorCache | None) -> None:
        self._model, self._cache, self._team = model, cache, Team.of(model.network)
        configuration = model.network.config.to_dict()
        told = {name: value for name, value in configuration.items() if name not in ("_name_or_path", "dtype")}
        self._key = {
            "model": model.base_hash,
            "configuration": _hash(sorted(told.items())),
            "dtype": str(model.network.dtype),
            "tokenizer": _hash(sorted(model.text.tokenizer.get_vocab().items())),
            "device": model.device.type,
            "precision": str(precision),
            "versions": json.dumps(versions(), sort_keys=True),
        }
        self._known: dict[str, Scores] = self._team.first(self._stored() if self._team.is_first else None)
        self._new: dict[str, Scores] = {}
        self._earlier, self._computed = frozenset(self._known), set[str]()

    def recall(
        self, protocol: str, requests: Sequence[EditRequest], run: Callable[[list[EditRequest]], list[Scores]]
    ) -> list[Scores]:
        """Return the scores of requests; `run` finds out those that nobody knows.

        Args:
            protocol: how they are scored, with all settings that matter.
            requests: edits.
            run: scores some of them on the unedited model.
        """
        names = self._names(protocol, requests)
        missing = {name: request for name, request in zip(names, requests, strict=True) if name not in self._known}
        if missing:
            found = dict(zip(missing, run(list(missing.values())), strict=True))
            self._known |= found
            self._new |= found
        self._computed |= {
            request.id for name, request in zip(names, requests, strict=True) if name not in self._earlier
        }
        return [dict(self._known[name]) for name in names]

    def keep(self) -> set[str]:
        """Store what is new, and return the ids of the requests that no earlier run has scored."""
        new = {name: scores for part in self._team.gather([self._new]) for name, scores in part.items()}
        if new and self._team.is_first and self._cache is not None:
            self._cache.put(KIND, self._key, _flat(self._stored() | new))  # others may have stored some meanwhile
        self._new = {}
        return {name for part in self._team.gather([self._computed]) for name in part}

    def number(self, what: Mapping[str, str], measure: Callable[[], float]) -> float:
        """Return a number, such as a perplexity, that `what` identifies; `measure` finds it out."""
        key = {**self._key, **what}
        stored = self._cache.get(KIND, key) if self._cache is not None and self._team.is_first else None
        found = self._team.first(None if stored is None else stored["number"].item())
        if found is None:
            found = measure()
            if self._cache is not None and self._team.is_first:
                self._cache.put(KIND, key, {"number": torch.tensor(found, dtype=torch.float64)})
        return found

    def _stored(self) -> dict[str, Scores]:
        found = None if self._cache is None else self._cache.get(KIND, self._key)
        if not found:
            return {}
        ids = [row.numpy().tobytes().hex() for row in found.pop("ids")]
        kinds: dict[str, dict[str, Tensor]] = {}
        for name, tensor in found.items():
            kind, _, part = name.rpartition(":")
            kinds.setdefault(kind, {})[part] = tensor
        return unpack({"ids": ids, "kinds": kinds})

    def _names(self, protocol: str, requests: Sequence[EditRequest]) -> list[str]:
        """Name requests by all that their scores depend on, beside the model."""
        pairs = [asked_pairs(request) for request in requests]
        ids = iter(self._model.text.continuations([pair for part in pairs for pair in part]))
        return [
            _hash((protocol, questions(request), [next(ids) for _ in part]))
            for request, part in zip(requests, pairs, strict=True)
        ]


def user_cache() -> TensorCache | None:
    """Return the cache of this user; `None`, with a warning, where there can be none."""
    try:
        return TensorCache(None, VARIABLE)
    except EditError as error:
        rank_zero_warn(f"Scores of the unedited model are not kept for the next run: {error}")
        return None


def _flat(scores: Mapping[str, Scores]) -> dict[str, Tensor]:
    packed = pack(scores)
    ids = torch.tensor([list(bytes.fromhex(name)) for name in packed["ids"]], dtype=torch.uint8)
    parts = {f"{kind}:{part}": value for kind, parts in packed["kinds"].items() for part, value in parts.items()}
    return {"ids": ids, **parts}


def _hash(content: object) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=NAME_BYTES).hexdigest()
