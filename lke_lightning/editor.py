"""The LightningModule: loads the model, carries what the two stages hand to each other, saves the change."""

from __future__ import annotations

import inspect
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lke_lightning import checkpoints
from lke_lightning.configuration import OUTRANKED
from lke_lightning.distributed import Team
from lke_lightning.edits import EditBatch, EditError
from lke_lightning.model.beside import Beside
from lke_lightning.model.language_model import DEMO, LanguageModel, load
from lke_lightning.parts import described, remade
from lke_lightning.shapes import fits, lacking, types_of
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.transforms import ReadoutTransform
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.step import EditStep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME_RESULTS = frozenset(
    {
        "stage_one.max_tokens",
        "stage_one.check_every",
        "stage_one.init_args.max_tokens",
        "stage_two.keep_on_host",
        "stage_two.norm_limit",
        "stage_two.init_args.max_tokens",
        "stage_two.init_args.norm_limit",
        "stage_two.statistics.init_args.cache_dir",
        "stage_two.init_args.statistics.init_args.cache_dir",
    }
)
"""Settings that a run may be continued with another value of."""

DEFAULTS = {
    f"{stage}.{name}": parameter.default
    for stage, part in (("stage_one", TargetOptimization), ("stage_two", WeightUpdate))
    for name, parameter in inspect.signature(part).parameters.items()
}
"""What a setting of the stages is that an earlier version did not have, and that its checkpoints therefore lack."""


class Editor(lightning.LightningModule):
    """A language model under lifelong editing; one edit batch is one training step.

    The way of a batch, in the order of Lightning's hooks:

    1. `on_train_batch_start`: stage one (`StageOne`) finds what the layers are asked and begins `step`.
    2. `training_step` returns the loss of these targets.
    3. `on_before_optimizer_step`: stage two (`WeightUpdate`) writes them into the weights and into `register`.
    4. The optimizer moves the clock, the module's one parameter, which makes Lightning count, log and save by batches.
    5. `on_train_batch_end`: the guard may roll the batch back; what is left is scored, recorded and saved.

    Args:
        pretrained: a folder, a hub name, a GGUF file in either, or `demo`.
        dtype: dtype in which the network is loaded and runs; the change is kept in float32 or better.
        layers: layers whose MLP output matrix is edited, ascending; the last is where targets live. `None`: those
            that the model's own configuration names as `edit_layers`.
        matrix: path of that matrix inside a block, for architectures that are not recognised.
        trust_remote_code: run code that comes with the model; never taken from a checkpoint.
        chat: ask every prompt, in edits and in evaluation, as a user's message through the tokenizer's chat template.
        system: system prompt of that chat.
        method: name of the method, for the scorecard; it decides nothing.
    """

    language_model: LanguageModel
    stages: Stages = None  # type: ignore[assignment]  # whatever asks it what they do is part of a run
    """The stages that edit; there are none in a model that is only scored or exported."""
    step: EditStep
    """The present batch."""

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
        self.save_hyperparameters(ignore=["trust_remote_code"])
        if Path(pretrained).exists():  # so that a checkpoint finds its model from any working directory
            pretrained = self.hparams.pretrained = str(Path(pretrained).resolve())
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise EditError(f"model.dtype {dtype!r} is unknown: use float32, bfloat16, float16 or float64")
        self.pretrained, self.dtype_name, self.layers, self.matrix = pretrained, dtype, layers, matrix
        self.trust_remote_code, self.chat, self.system, self.method = trust_remote_code, chat, system, method
        self.readout: ReadoutTransform | None = None
        self.clock = nn.Parameter(torch.zeros(()))
        self.register = Register()
        """The edits made so far, and which of them hold."""
        self.events: list[dict[str, Any]] = []
        """What the ledger should tell beside the edits; the recorder empties it."""
        self.configuration: dict[str, Any] = {}
        """The sections `stage_one` and `stage_two` that the run was started with, where there is a command line."""
        self._random: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        """Wall time by activity, from `working`."""

    @property
    def edited(self) -> list[str]:
        """Ids of the edits that are in the weights, in order."""
        return [self.register.ids[number] for number in self.register.holding]

    @property
    def made(self) -> int:
        """How many edits were written so far, also those that do not hold any more."""
        return len(self.register)

    @classmethod
    def around(
        cls,
        network: PreTrainedModel,
        tokenizer: Any,
        layers: list[int] | None,
        stages: Stages | None = None,
        **options: Any,
    ) -> Editor:
        """Make an editor of a model that is already loaded; it is edited in place."""
        name = getattr(network.config, "name_or_path", "") or type(network).__name__
        editor = cls(name, str(network.dtype).removeprefix("torch."), layers, **options)
        if stages is not None:
            editor.stages = stages
        editor._take(network, tokenizer)
        return editor

    def configure_model(self) -> None:
        """Load the model, once.

        Raises:
            EditError: it cannot be loaded, or cannot be edited, or other processes have loaded another one.
        """
        is_new = not hasattr(self, "language_model")
        if is_new:
            self._take(*load(self.pretrained, self.dtype_name, self.trust_remote_code))
        if self._trainer is not None:
            if is_new:
                rank_zero_info(self.language_model.describe())
            Team.of().check_same(self.language_model.base_hash, "model, by its content hash")

    def _take(self, network: PreTrainedModel, tokenizer: Any) -> None:
        layers = self.layers or getattr(network.config, "edit_layers", None) or []
        if self.stages is not None:
            used = self.stages.two.placement.among(layers)
            if used != layers:  # so that what reads a checkpoint need not know the method
                layers = self.layers = self.hparams.layers = used
        self.language_model = LanguageModel(network, tokenizer, layers, self.matrix, self.chat, self.system)

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the targets that stage one found."""
        step = self.step
        if step.requests:
            steps = torch.tensor(step.targets.steps, dtype=torch.float32)
            self.log("stage_one/loss", step.loss, batch_size=len(step))
            self.log("stage_one/median_steps", steps.median(), batch_size=len(step), prog_bar=True)
        return self.clock * 0 + step.loss

    def on_train_batch_end(self, outputs: Any, batch: EditBatch, batch_idx: int) -> None:
        """Log how much of the batch arrived, how the edited matrices grow, and how much room they had for it."""
        arrived = self.step.arrival
        if arrived is not None:
            if arrived.written is not None:
                self.log("arrival/written", statistics.median(arrived.written), batch_size=len(self.step))
            self.log("arrival/first_choice", statistics.fmean(arrived.first_choice), batch_size=len(self.step))
        for layer in self.language_model.layers:
            before, now = self.language_model.weight(layer).norms()
            self.log(f"norm_growth/layer_{layer}", now / before, batch_size=max(1, len(self.step)))
        if self.stages.two.repeat is not None:
            self.log("rounds", float(self.step.rounds), batch_size=max(1, len(self.step)))
        for layer, share in self.step.shares.items():
            self.log(f"fulfilment/layer_{layer}", share, batch_size=len(self.step))

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

    def carry_out(self, stages: Stages) -> None:
        """Write the present batch into the weights, and find further targets for it where its method wants them."""

        def again(model: LanguageModel, step: EditStep) -> bool:
            with self.working("stage_one"):
                return stages.again(model, step)

        with self.working("stage_two"):
            stages.two.carry_out(self.language_model, self.step, self.register, again)

    @contextmanager
    def working(self, activity: str) -> Iterator[None]:
        """Run a block in the trainer's precision, and add its wall time to `seconds`, less what a block in it adds."""
        precision = self._trainer.precision_plugin.forward_context() if self._trainer else nullcontext()
        start, counted = time.perf_counter(), sum(self.seconds.values())
        try:
            with precision:
                yield
        finally:
            if self.language_model.device.type == "cuda":
                torch.cuda.synchronize(self.language_model.device)
            spent = time.perf_counter() - start - (sum(self.seconds.values()) - counted)
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent

    @contextmanager
    def as_read(self) -> Iterator[None]:
        """Let the language model be what is scored and exported: with the method's readout, if it has one."""
        with ExitStack() as stack:
            if self.readout is not None:
                for layer in self.language_model.layers:
                    stack.enter_context(self.language_model.weight(layer).read_as(self.readout))
            yield

    def revert(self) -> None:
        """Give the model its unedited weights back, bit for bit, and empty what stands beside them."""
        for weight in self.language_model.edited.values():
            weight.revert()
        for module in self.language_model.beside.values():
            module.clear()

    @contextmanager
    def as_unedited(self) -> Iterator[None]:
        """Let the language model be what it was before the first edit."""
        with self.language_model.unedited():
            yield

    def setup(self, stage: str) -> None:
        """Find the two stages among the trainer's callbacks, before the model is loaded.

        Raises:
            EditError: they are not there, or evaluations are further apart than the stream is long.
        """
        self.stages = Stages.among(self.trainer.callbacks)
        interval, is_fit = self.trainer.val_check_interval, stage == "fit"
        if is_fit and isinstance(interval, int) and self.trainer.check_val_every_n_epoch is not None:
            batches = len(self.trainer.datamodule.batches)
            if interval > batches:
                raise EditError(
                    f"trainer.val_check_interval is {interval} batches, the stream has {batches}: leave it out, the "
                    "scorecard scores at the end"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the change, not the language model; record which model, method and stream it belongs to."""
        checkpoint["state_dict"], checkpoint["editing"] = self.saved()
        checkpoint["editing"]["stream"] = self.trainer.datamodule.consumed(self.trainer.global_step)

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint holds of the weights, their change alone, and of the run, except its stream."""
        weights = {name: value for name, value in self.state_dict().items() if ".network." not in f".{name}"}
        return weights, {
            "format": checkpoints.FORMAT,
            "base_hash": self.language_model.base_hash,
            "layers": list(self.language_model.layers),
            "chat": {"chat": self.chat, "system": self.system},
            "beside": {name: described(module) for name, module in self.language_model.beside.items()},
            "register": self.register.state_dict(),
            "seconds": dict(self.seconds),
            "configuration": self.configuration,
            "readout": self.readout and type(self.readout).__name__,
            "random": {"torch": torch.get_rng_state(), "python": _plain(random.getstate())},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model, and to this method and stream where a run continues.

        Raises:
            EditError: it does not, with the difference.
        """
        self.configure_model()
        with checkpoints.understood("the state of the run"):
            self._check_model(checkpoint["editing"])
            if self._trainer is not None and self.trainer.state.fn == "fit":
                self._check_run(checkpoint)
            checkpoint["loops"] = checkpoint["loops"] or None  # Lightning looks into them if there are any
            self.register.load_state_dict(checkpoint["editing"]["register"])
            for name, description in checkpoint["editing"].get("beside", {}).items():
                if name not in self.language_model.beside:
                    self.language_model.attach(name, remade(description, Beside))
        self.seconds, self._random = dict(checkpoint["editing"]["seconds"]), checkpoint["editing"]["random"]

    def _check_model(self, saved: Mapping[str, Any]) -> None:
        model = self.language_model
        if saved["base_hash"] != model.base_hash:
            raise EditError(
                f"the checkpoint edits another base model (content hash {saved['base_hash']}, {self.pretrained!r} has "
                f"{model.base_hash}): load it with the model and dtype of its run"
            )
        if saved["layers"] != model.layers:
            raise EditError(f"the checkpoint edits layers {saved['layers']}, this model is set to {model.layers}")
        chat = {"chat": self.chat, "system": self.system}
        if saved["chat"] != chat:
            raise EditError(f"the checkpoint asks its prompts with {saved['chat']}, this model is set to {chat}")

    def _check_run(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is one of this run, and let a finished run whose stream has grown go on."""
        if not checkpoint["loops"]:
            raise EditError("this run was edited from Python: go on with lke_lightning.resume(folder).edit(facts)")
        states = {callback.state_key: callback.state_dict() for callback in self.trainer.callbacks}
        known = {name: state for name, state in states.items() if name in checkpoint["callbacks"]}
        present = {"callbacks": known, "loops": {"fit_loop": self.trainer.fit_loop.state_dict()}}
        missing = lacking(checkpoint, types_of(present))
        if missing:
            raise EditError(f"the checkpoint lacks {missing}, or holds something else there: use another one")
        stream = checkpoint["editing"]["stream"]
        check_same_method(*map(self._sited, (checkpoint["editing"]["configuration"], self.configuration)))
        self.trainer.datamodule.check_continues(stream)
        if len(stream["digests"]) < len(self.trainer.datamodule.requests):
            # a finished run whose stream has grown is in the middle of its one epoch again
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts in (progress["current"], progress["total"]):
                counts.update(processed=0, completed=0)

    def _sited(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in the site that follows from the model where a configuration of the stages names none."""
        one = configuration.get("stage_one", {})
        sited = {"stage_one": {**one, "site": one.get("site") or self.language_model.site}}
        return {**configuration, **sited} if configuration else configuration

    @classmethod
    def restored(cls, checkpoint: Mapping[str, Any], **present: Any) -> Editor:
        """Load the model of a checkpoint, on the CPU, as the checkpoint left it.

        Args:
            checkpoint: what `checkpoints.read` returned.
            present: arguments that are taken from here and not from the checkpoint. `trust_remote_code` always is.

        Raises:
            EditError: the checkpoint does not fit this version or this model.
        """
        saved = {name: value for name, value in checkpoint["hyper_parameters"].items() if not name.startswith("_")}
        hints = get_type_hints(cls.__init__)
        wrong = [name for name, value in saved.items() if name not in hints or not fits(value, hints[name])]
        if wrong:
            raise EditError(f"the checkpoint sets {wrong} of the model as this version cannot: use another checkpoint")
        editor = cls(**{**saved, "trust_remote_code": False, **present})
        editor.configuration = dict(checkpoint["editing"]["configuration"])
        editor.on_load_checkpoint(dict(checkpoint))
        editor.load_state_dict(checkpoint["state_dict"])
        return editor

    def on_train_start(self) -> None:
        """Go on with the random numbers of the interrupted run."""
        if self._random:
            with checkpoints.understood("the state of the random numbers"):
                torch.set_rng_state(self._random["torch"])
                version, state, gauss = self._random["python"]
                random.setstate((version, tuple(state), gauss))
            self._random = {}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the change; nothing but the language model itself may be missing.

        Raises:
            EditError: a delta is missing or unknown, or has another shape, or what stands beside is of other edits.
        """
        with checkpoints.understood("the change of the weights"):
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in result.missing_keys if ".network." not in f".{name}"]
        if missing or result.unexpected_keys:
            raise EditError(f"the checkpoint lacks {missing} and has unknown {result.unexpected_keys}")
        for name, module in self.language_model.beside.items():
            if not module.is_of(self.register.units):
                raise EditError(f"{name!r} in the checkpoint is not of its edits: use another one")
        return result


def check_same_method(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Compare the configurations of two stages; without a command line there is none, and nothing is compared.

    Raises:
        EditError: they differ in something that results depend on; each difference is named.
    """
    if not (saved and present):
        return
    was, now = dict(_leaves(saved)), dict(_leaves(present))
    differ = (key for key in {**was, **now} if was.get(key, DEFAULTS.get(key)) != now.get(key, DEFAULTS.get(key)))
    keys = [key for key in differ if key not in SAME_RESULTS]
    if keys:
        lines = [f"  {key}: {was.get(key, 'not set')} in the checkpoint, {now.get(key, 'not set')} now" for key in keys]
        raise EditError("the checkpoint was made by another method:\n" + "\n".join(lines))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        idle = {name for given, names in OUTRANKED.items() if tree.get(given) is not None for name in names}
        for name, part in tree.items():
            if name not in idle:
                yield from _leaves(part, f"{path}.{name}" if path else name)
    elif isinstance(tree, list) and any(isinstance(part, Mapping) for part in tree):
        for number, part in enumerate(tree):
            yield from _leaves(part, f"{path}.{number}")
    else:
        yield path, tree


def _plain(state: Any) -> Any:
    """Turn tuples into lists: checkpoints hold tensors and plain types only."""
    return [_plain(part) for part in state] if isinstance(state, (tuple, list)) else state
