"""The LightningModule: loads the model, carries what the two stages hand to each other, saves the change."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lke_lightning.distributed import Team
from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import DEMO, LanguageModel, load
from lke_lightning.model.targets import Targets
from lke_lightning.stage_two.transforms import ReadoutTransform

SAME_RESULTS = frozenset(
    {
        "stage_one.max_tokens",
        "stage_one.check_every",
        "stage_two.keep_on_host",
        "stage_two.statistics.init_args.cache_dir",
    }
)
"""Settings that a run may be continued with another value of."""


class Editor(lightning.LightningModule):
    """A language model under lifelong editing; one edit batch is one training step.

    The stages are callbacks: `TargetOptimization` fills `targets` before the step, `WeightUpdate` writes them into
    the weights after it. The module itself learns nothing; its one parameter, the clock, makes an optimizer step
    happen for every batch, so that Lightning counts, logs and saves by edit batches.

    Args:
        pretrained: a folder, a hub name, or `demo`.
        dtype: dtype in which the network is loaded and runs; the change is kept in float32 or better.
        layers: layers whose MLP output matrix is edited, ascending; the last is where targets live. `None`: those
            that the model's own configuration names as `edit_layers`.
        matrix: path of that matrix inside a block, for architectures that are not recognised.
        trust_remote_code: run code that comes with the checkpoint.
        chat: ask every prompt, in edits and in evaluation, as a user's message through the tokenizer's chat template.
        system: system prompt of that chat.
        method: name of the method, for the scorecard; it decides nothing.
    """

    language_model: LanguageModel
    contexts: list[str]
    """Context templates of the run, from stage one."""
    targets: Targets
    """What stage one found for the present batch."""
    batch: EditBatch
    """The present batch, without what is left out."""

    def __init__(
        self,
        pretrained: str = DEMO,
        dtype: str = "float32",
        layers: list[int] | None = None,
        matrix: str | None = None,
        trust_remote_code: bool = False,
        chat: bool = False,
        system: str | None = None,
        method: str = "ENCORE",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if Path(pretrained).is_dir():  # so that a checkpoint finds its model from any working directory
            pretrained = self.hparams.pretrained = str(Path(pretrained).resolve())
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise EditError(f"model.dtype {dtype!r} is unknown: use float32, bfloat16, float16 or float64")
        self.pretrained, self.dtype_name, self.layers, self.matrix = pretrained, dtype, layers, matrix
        self.trust_remote_code, self.chat, self.system, self.method = trust_remote_code, chat, system, method
        self.readout: ReadoutTransform | None = None
        self.clock = nn.Parameter(torch.zeros(()))
        self.standing: dict[tuple[str, str], str] = {}
        """The facts that were edited, each with the id of the edit that states it today, in order."""
        self.made = 0
        """How many edits were written so far, also those that do not stand any more."""
        self.left_out: list[tuple[EditRequest, str]] = []
        """Requests of the present batch that are not edited, with the reason."""
        self.events: list[dict[str, Any]] = []
        """What else the ledger should tell of the present batch."""
        self.scores: dict[str, dict[str, Tensor]] = {}
        """What the scorecard found for the edits of the present batch, by id and kind."""
        self.configuration: dict[str, Any] = {}
        """The sections `stage_one` and `stage_two` that the run was started with, where there is a command line."""
        self._random: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        """Wall time by activity, from `timed`."""

    @property
    def edited(self) -> list[str]:
        """Ids of the edits that are in the weights, in order."""
        return list(self.standing.values())

    def mark_edited(self, requests: Iterable[EditRequest]) -> None:
        """Note that requests are in the weights; each takes the place of an earlier edit of its fact."""
        for request in requests:
            self.standing.pop(request.fact, None)  # so that the order is that of the edits
            self.standing[request.fact] = request.id
            self.made += 1

    @classmethod
    def around(cls, network: nn.Module, tokenizer: Any, layers: list[int] | None, **options: Any) -> Editor:
        """Make an editor of a model that is already loaded; it is edited in place."""
        name = getattr(network.config, "name_or_path", "") or type(network).__name__
        editor = cls(name, str(network.dtype).removeprefix("torch."), layers, **options)
        editor._take(network, tokenizer)
        return editor

    def configure_model(self) -> None:
        """Load the model, once.

        Raises:
            EditError: it cannot be loaded, or cannot be edited, or other processes have loaded another one.
        """
        if not hasattr(self, "language_model"):
            self._take(*load(self.pretrained, self.dtype_name, self.trust_remote_code))
        if self._trainer is not None:
            rank_zero_info(self.language_model.describe())
            Team.of().check_same(self.language_model.base_hash, "model, by its content hash")

    def _take(self, network: nn.Module, tokenizer: Any) -> None:
        layers = self.layers or getattr(network.config, "edit_layers", None) or []
        self.language_model = LanguageModel(network, tokenizer, layers, self.matrix, self.chat, self.system)

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Log what stage one found; stage two follows, before the clock ticks."""
        if not self.batch.requests:
            return self.clock * 0
        steps = torch.tensor(self.targets.steps, dtype=torch.float32)
        loss = torch.tensor(self.targets.losses).mean()
        self.log("stage_one/loss", loss, batch_size=len(self.batch))
        self.log("stage_one/median_steps", steps.median(), batch_size=len(self.batch), prog_bar=True)
        return self.clock * 0 + loss.to(self.clock.device)

    def on_train_batch_end(self, outputs: Any, batch: EditBatch, batch_idx: int) -> None:
        """Log how the edited matrices grow."""
        for layer in self.language_model.layers:
            before, now = self.language_model.weight(layer).norms()
            self.log(f"norm_growth/layer_{layer}", now / before, batch_size=max(1, len(self.batch)))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the weights change by stage two."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the clock's optimizer."""
        return torch.optim.SGD([self.clock], lr=0.0)

    def validation_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Do nothing: `Scorecard` measures."""

    def test_step(self, batch: EditBatch, batch_idx: int) -> None:
        """Do nothing: `Scorecard` measures."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch alone: it is text."""
        return batch

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the wall time of a block to `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - start

    @contextmanager
    def as_read(self) -> Iterator[None]:
        """Let the language model be what is scored and exported: with the method's readout, if it has one."""
        with ExitStack() as stack:
            if self.readout is not None:
                for layer in self.language_model.layers:
                    stack.enter_context(self.language_model.weight(layer).read_as(self.readout))
            yield

    def revert(self) -> None:
        """Give the model its unedited weights back, bit for bit."""
        for weight in self.language_model.edited.values():
            weight.revert()

    @contextmanager
    def as_unedited(self) -> Iterator[None]:
        """Let the language model be what it was before the first edit."""
        with ExitStack() as stack:
            for layer in self.language_model.layers if self.made else ():
                stack.enter_context(self.language_model.weight(layer).read_as(lambda _, delta: torch.zeros_like(delta)))
            yield

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the change, not the language model; record which model, method and stream it belongs to."""
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if ".network." not in f".{name}"
        }
        checkpoint["editing"] = {
            "base_hash": self.language_model.base_hash,
            "layers": list(self.language_model.layers),
            "asked": {"chat": self.chat, "system": self.system},
            "standing": [[*fact, name] for fact, name in self.standing.items()],
            "made": self.made,
            "seconds": dict(self.seconds),
            "configuration": self.configuration,
            "stream": self.trainer.datamodule.consumed(self.trainer.global_step),
            "random": {"torch": torch.get_rng_state(), "python": _plain(random.getstate())},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model, and to this method and stream where a run continues.

        Raises:
            EditError: it does not, with the difference; or it is no checkpoint of an editing run.
        """
        self.configure_model()
        if "editing" not in checkpoint:
            raise EditError("this is not a checkpoint of an editing run")
        saved, model = checkpoint["editing"], self.language_model
        if saved["base_hash"] != model.base_hash:
            raise EditError(
                f"the checkpoint edits another base model (content hash {saved['base_hash']}, {self.pretrained!r} has "
                f"{model.base_hash}): load it with the model and dtype of its run"
            )
        if saved["layers"] != model.layers:
            raise EditError(f"the checkpoint edits layers {saved['layers']}, this model is set to {model.layers}")
        asked = {"chat": self.chat, "system": self.system}
        if saved["asked"] != asked:
            raise EditError(f"the checkpoint asks its prompts with {saved['asked']}, this model is set to {asked}")
        if self._trainer is not None and self.trainer.state.fn == "fit":
            check_same_method(saved["configuration"], self.configuration)
            self.trainer.datamodule.check_continues(saved["stream"])
            if len(saved["stream"]["digests"]) < len(self.trainer.datamodule.requests):
                # a finished run whose stream has grown is in the middle of its one epoch again
                progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
                for counts in (progress["current"], progress["total"]):
                    counts.update(processed=0, completed=0)
        self.standing = {(subject, relation): name for subject, relation, name in saved["standing"]}
        self.made, self.seconds, self._random = saved["made"], dict(saved["seconds"]), saved["random"]

    def on_train_start(self) -> None:
        """Go on with the random numbers of the interrupted run."""
        if self._random:
            torch.set_rng_state(self._random["torch"])
            version, state, gauss = self._random["python"]
            random.setstate((version, tuple(state), gauss))

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the change; nothing but the language model itself may be missing.

        Raises:
            EditError: a delta is missing or unknown.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in result.missing_keys if ".network." not in f".{name}"]
        if missing or result.unexpected_keys:
            raise EditError(f"the checkpoint lacks {missing} and has unknown {result.unexpected_keys}")
        return result

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the edited model as a plain transformers folder, complete or not at all.

        Raises:
            EditError: the folder exists and is not empty.
        """
        self.configure_model()
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise EditError(f"{folder} exists and is not empty: choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(folder.name + ".tmp")
        with self.as_read():
            self.language_model.network.save_pretrained(unfinished)
        self.language_model.text.tokenizer.save_pretrained(unfinished)
        if folder.exists():
            folder.rmdir()
        return unfinished.rename(folder)


def check_same_method(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Compare the configurations of two stages; without a command line there is none, and nothing is compared.

    Raises:
        EditError: they differ in something that results depend on; each difference is named.
    """
    if not (saved and present):
        return
    was, now = dict(_leaves(saved)), dict(_leaves(present))
    keys = [key for key in {**was, **now} if was.get(key) != now.get(key) and key not in SAME_RESULTS]
    if keys:
        lines = [f"  {key}: {was.get(key, 'not set')} in the checkpoint, {now.get(key, 'not set')} now" for key in keys]
        raise EditError("the checkpoint was made by another method:\n" + "\n".join(lines))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, part in tree.items():
            yield from _leaves(part, f"{path}.{name}" if path else name)
    elif isinstance(tree, list) and any(isinstance(part, Mapping) for part in tree):
        for number, part in enumerate(tree):
            yield from _leaves(part, f"{path}.{number}")
    else:
        yield path, tree


def _plain(state: Any) -> Any:
    """Turn tuples into lists: checkpoints hold tensors and plain types only."""
    return [_plain(part) for part in state] if isinstance(state, (tuple, list)) else state
