"""The stream of edits: an ordered list of requests, cut into batches, never shuffled unless asked."""

from __future__ import annotations

import hashlib
import itertools
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
    """Indices of consecutive edits, `batch_size` at a time, the last batch possibly shorter."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __len__(self) -> int:
        """Count the batches."""
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches in order."""
        for start in range(0, self.count, self.batch_size):
            yield list(range(start, min(start + self.batch_size, self.count)))


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

    @property
    def name(self) -> str:
        """What the scorecard calls the data."""
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
            requests = list(itertools.islice(self.read(), self.limit))
        else:
            requests = list(self.read())
            random.Random(self.shuffle_seed).shuffle(requests)
            requests = requests[: self.limit]
        if not requests:
            raise EditError(f"{self.name} has no edits")
        twice = [name for name, count in Counter(request.id for request in requests).items() if count > 1]
        if twice:
            raise EditError(f"{self.name} has several records with the id {twice[0]!r}: ids must differ")
        self.requests = requests

    def consumed(self, batches: int) -> dict[str, Any]:
        """Return what identifies the first batches of the stream, for a checkpoint."""
        return {"batch_size": self.batch_size, "digests": _digests(self.requests[: batches * self.batch_size])}

    def check_continues(self, saved: dict[str, Any]) -> None:
        """Check that this stream begins with the batches that an interrupted run has edited.

        What comes after them may differ: records may have been mended or added since.

        Raises:
            EditError: it does not; the message names the first difference.
        """
        if saved["batch_size"] != self.batch_size:
            raise EditError(
                f"the checkpoint's batches have {saved['batch_size']} edits, data.batch_size is {self.batch_size}"
            )
        done = saved["digests"]
        if len(self.requests) < len(done):
            raise EditError(
                f"the checkpoint has read {len(done)} requests of its stream, {self.name} has {len(self.requests)}"
            )
        differs = (_digests(self.requests[: len(done)]) != done).nonzero()
        if len(differs):
            number = int(differs[0])
            raise EditError(
                f"request {number + 1} of {self.name}, {self.requests[number].id!r} ({self.requests[number].text!r}), "
                "is not the one that the checkpoint's run has edited in its place: continue with the same data in the "
                "same order"
            )

    def train_dataloader(self) -> StatefulDataLoader:
        """Return the batches to edit; its position is kept in checkpoints."""
        return StatefulDataLoader(
            self.requests, batch_sampler=EditBatches(len(self.requests), self.batch_size), collate_fn=_collate
        )

    def val_dataloader(self) -> DataLoader:
        """Return all requests, a batch at a time."""
        return DataLoader(
            self.requests, batch_sampler=EditBatches(len(self.requests), self.batch_size), collate_fn=EditBatch
        )


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


def _collate(requests: list[EditRequest]) -> EditBatch:
    batch = EditBatch.of(requests)
    for request in batch.superseded:
        rank_zero_info(f"Edit {request.id} is left out: a later edit of its batch states the same fact {request.fact}")
    return batch


def _digests(requests: Sequence[EditRequest]) -> Tensor:
    """Hash what an edit depends on, (requests,) int64."""
    parts = ((request.id, request.prompt, request.subject, request.target, request.weight) for request in requests)
    digests = [hashlib.blake2b(repr(part).encode(), digest_size=8).digest() for part in parts]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)
