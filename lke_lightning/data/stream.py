"""The stream of edits: an ordered list of requests, divided into batches, shuffled only on request."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from lke_lightning.edits import EditBatch, EditError, EditRequest


class EditBatches(Sampler[list[int]]):
    """Indices of consecutive edits, batch by batch."""

    def __init__(self, batches: Sequence[range]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches in order."""
        return map(list, self.batches)


class EditStream(LightningDataModule):
    """Requests in the order in which they are edited. Subclasses read one published format each.

    Args:
        batch_size: edits of one training step.
        limit: edit only this many, from the start.
        shuffle_seed: shuffle with this seed before the limit applies; `None` keeps the order of the data.
    """

    def __init__(self, batch_size: int = 100, limit: int | None = None, shuffle_seed: int | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise EditError(f"data.batch_size is {batch_size}: at least one edit is needed in a batch")
        if limit is not None and limit < 1:
            raise EditError(f"data.limit is {limit}: at least one edit is needed, or null for all")
        self.batch_size, self.limit, self.shuffle_seed = batch_size, limit, shuffle_seed
        self.requests: list[EditRequest] = []
        self.edges: list[int] = []
        """Positions in the stream at which a time step ends, for a stream that has such steps."""
        self.ends: list[int] = []
        """Positions in the stream at which earlier parts of the run ended with a short batch."""

    @property
    def name(self) -> str:
        """The name of the data in the scorecard."""
        return type(self).__name__

    @abstractmethod
    def read(self) -> Iterator[EditRequest]:
        """Yield requests in the order of the data, one at a time: a limit stops the reading early."""

    def setup(self, stage: str) -> None:
        """Read and check all requests once.

        Raises:
            EditError: there are none, or two have one id.
        """
        if self.requests:
            return
        if self.shuffle_seed is None:
            stream = self.read()
            requests = list(itertools.islice(stream, self.limit))
            total = "all the" if _goes_on(stream) else None
        else:
            requests = list(self.read())
            random.Random(self.shuffle_seed).shuffle(requests)
            total = f"{len(requests):,}" if len(requests) > (self.limit or math.inf) else None
            requests = requests[: self.limit]
        if total:
            rank_zero_info(f"{len(requests):,} of {total} edits of {self.name}: data.limit excludes the rest")
        if not requests:
            raise EditError(f"{self.name} has no edits")
        twice = [name for name, count in Counter(request.id for request in requests).items() if count > 1]
        if twice:
            raise EditError(f"{self.name} has several records with the id {twice[0]!r}: ids must differ")
        self.requests = requests
        repeated = len(requests) - len({request.fact for request in requests})
        if repeated:
            rank_zero_info(f"{self.name}: {repeated} edits restate a fact: the later edit replaces the earlier one")

    @property
    def batches(self) -> list[range]:
        """The numbers of the requests of each batch; the last one of a step, or before an end, may be short."""
        edges = itertools.pairwise(sorted({0, *self.edges, *self.ends, len(self.requests)}))
        size = self.batch_size
        return [range(i, min(i + size, end)) for begin, end in edges for i in range(begin, end, size)]

    @property
    def steps(self) -> list[list[EditRequest]]:
        """The edits of each time step; none without steps."""
        return [self.requests[begin:end] for begin, end in itertools.pairwise([0, *self.edges])]

    def due(self, batches: int) -> list[EditRequest]:
        """Return the edits to score once so many batches are made, before the end; none without time steps."""
        return []

    def consumed(self, batches: int) -> dict[str, Any]:
        """Return the identity of the first batches of the stream, for a checkpoint."""
        count = self.batches[batches - 1].stop if batches else 0
        digests = _digests(self.requests[:count])
        return {"name": self.name, "batch_size": self.batch_size, "digests": digests, "ends": self.ends}

    def check_continues(self, saved: dict[str, Any]) -> None:
        """Check that this stream begins with the batches that an interrupted run has edited, and continue after them.

        Later requests may differ: records may have been corrected or added since.

        Raises:
            EditError: it does not; the message names the first difference.
        """
        if saved["batch_size"] != self.batch_size:
            raise EditError(
                f"the checkpoint's batches have {saved['batch_size']} edits, but data.batch_size is {self.batch_size}"
            )
        done = saved["digests"]
        if len(self.requests) < len(done):
            raise EditError(
                f"the checkpoint has read {len(done)} requests of its stream, but {self.name} has {len(self.requests)}"
            )
        differs = (_digests(self.requests[: len(done)]) != done).nonzero()
        if len(differs):
            number = int(differs[0])
            raise EditError(
                f"request {number + 1} of {self.name}, {self.requests[number].id!r} ({self.requests[number].text!r}), "
                "differs from the one that the checkpoint's run has edited there: continue with the same data in the "
                "same order"
            )
        self.ends = list(saved["ends"])
        if len(done) not in {0, *(batch.stop for batch in self.batches)}:  # the stream has grown behind a short batch
            self.ends.append(len(done))

    def train_dataloader(self) -> StatefulDataLoader:
        """Return the batches to edit; its position is kept in checkpoints."""
        return StatefulDataLoader(self.requests, batch_sampler=EditBatches(self.batches), collate_fn=EditBatch.of)

    def val_dataloader(self) -> DataLoader:
        """Return all requests, a batch at a time."""
        requests: Any = self.requests  # a list does, though no `Dataset`
        return DataLoader(requests, batch_sampler=EditBatches(self.batches), collate_fn=EditBatch)


class RequestList(EditStream):
    """Requests that are already in memory.

    Args:
        requests: the edits.
        batch_size: edits of one training step.
    """

    def __init__(self, requests: list[EditRequest], batch_size: int = 100) -> None:
        super().__init__(batch_size)
        self.given = list(requests)

    def read(self) -> Iterator[EditRequest]:
        """Yield them."""
        return iter(self.given)


def _goes_on(stream: Iterator[EditRequest]) -> bool:
    try:
        return next(stream, None) is not None
    except EditError:  # what is beyond the limit need not be readable
        return True


def _digests(requests: Sequence[EditRequest]) -> Tensor:
    """Hash what an edit depends on, (requests,) int64."""
    parts = (
        (request.id, request.prompt, request.subject, request.target, request.weight, *request.neighbours)
        for request in requests
    )
    digests = [hashlib.blake2b(repr(part).encode(), digest_size=8).digest() for part in parts]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
