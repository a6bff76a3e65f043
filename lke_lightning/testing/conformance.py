"""What a family of models must do to be edited, as tests that a subclass inherits.

Every test compares one way in which this package runs or writes a network with plain full forwards of that network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import SkipTest

import torch
from torch import Tensor, nn

from lke_lightning.edits import EditError
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import Prefixes
from lke_lightning.model.replay import Read, Replay
from lke_lightning.model.targets import Site
from lke_lightning.model.tokens import Row
from lke_lightning.testing.networks import tiny_network
from lke_lightning.testing.tokenizers import tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = (
    Row((5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16), 10),
    Row((5, 6, 7, 8, 9, 10, 11, 12, 13, 40, 41), 9),
    Row((5, 6, 7, 20, 21), 4),
    Row((30, 31, 32), 0),
    Row((5, 6, 7, 20, 22, 23, 24), 3),
)
"""Shared beginnings; slots at the start, in the middle and at the end; up to 12 tokens, longer than a tiny window."""


class FamilyConformance:
    """Tests of one family: subclass it in a test file and set `family`, or override `make_network`.

    Weights are random and in float64. Some families compute their norms in float32 whatever the weights are, which is
    why tolerances are not tighter.
    """

    family: ClassVar[str]
    """`model_type` of transformers."""
    changes: ClassVar[dict[str, Any]] = {}
    """Fields of the configuration to set, such as a sliding window shorter than the longest row (12 tokens)."""
    layers: ClassVar[tuple[int, ...]] = (1, 2)
    """Layers that are edited; the last is the target layer."""
    tolerance: ClassVar[dict[str, Any]] = {"rtol": 1e-4, "atol": 1e-6}

    def make_network(self, **changes: Any) -> PreTrainedModel:
        """Build a network of the family, in float64, with these fields of the configuration changed as well."""
        return tiny_network(self.family, **(self.changes | changes))

    def make_model(self, **changes: Any) -> LanguageModel:
        """Build a model with a tokenizer; tests that only read share one."""
        return LanguageModel(self.make_network(**changes), tiny_tokenizer(), list(self.layers))

    @property
    def model(self) -> LanguageModel:
        """The model that no test writes."""
        return _shared(type(self))  # type: ignore[arg-type]  # a class is hashable

    def test_the_matrix_is_found_and_its_orientation_is_right(self) -> None:
        """The matrix's output is key @ weight.T, with the weight as (d_out, d_key), plus its bias."""
        model = self.model
        for layer in self.layers:
            matrix = model.architecture.matrix(layer)
            d_out, d_key = model.weight(layer).delta.shape
            assert d_out == model.architecture.hidden_size
            with tapped(matrix) as seen:
                plain(model, ROWS[0].ids)
            assert seen["input"].shape[-1] == d_key
            bias = 0 if getattr(matrix, "bias", None) is None else matrix.bias
            torch.testing.assert_close(
                seen["input"] @ model.weight(layer).live().T + bias, seen["output"], **self.tolerance
            )

    def test_an_edit_adds_update_times_key(self) -> None:
        """Writing the live weight changes the matrix's output by key @ update.T."""
        model = self.make_model()
        layer = self.layers[0]
        with tapped(model.architecture.matrix(layer)) as before:
            plain(model, ROWS[0].ids)
        update = torch.randn(model.weight(layer).delta.shape, dtype=torch.float64, generator=seeded())
        model.weight(layer).add(update)
        with tapped(model.architecture.matrix(layer)) as after:
            plain(model, ROWS[0].ids)
        torch.testing.assert_close(after["input"], before["input"])  # nothing before the matrix depends on it
        expected = before["output"] + before["input"] @ update.T
        torch.testing.assert_close(after["output"], expected, **self.tolerance)

    def test_revert_gives_every_bit_back_and_touches_nothing_else(self) -> None:
        """Edits change the edited matrices only, and `revert` undoes them to the bit."""
        model = self.make_model()
        before = {name: weight.clone() for name, weight in model.network.state_dict().items()}
        for layer in self.layers:
            model.weight(layer).add(torch.ones_like(model.weight(layer).delta))
        now = model.network.state_dict()
        assert sum(not torch.equal(now[name], weight) for name, weight in before.items()) == len(self.layers)
        for layer in self.layers:
            model.weight(layer).revert()
        assert all(torch.equal(model.network.state_dict()[name], weight) for name, weight in before.items())

    def test_capture_agrees_with_a_plain_forward(self) -> None:
        """What `observe` reads of padded rows, run to the target layer only, is what plain full forwards show."""
        model = self.model
        target = model.target_layer
        modules = [model.architecture.blocks[target], model.architecture.matrix(target)]
        observed = model.observe(model.text.pad(ROWS), modules, stop=target + 1)
        for module, found in zip(modules, observed, strict=True):
            for number, row in enumerate(ROWS):
                with tapped(module) as seen:
                    plain(model, row.ids)
                for part, value in zip(("input", "output"), found, strict=True):
                    torch.testing.assert_close(value[number, : len(row.ids)], seen[part], **self.tolerance)

    def test_blocks_can_be_run_from_the_middle(self) -> None:
        """Blocks above a layer, given what they receive, say what the whole network says."""
        model, batch = self.model, self.model.text.pad(ROWS)
        start = self.layers[-1]
        [(hidden, _)] = model.observe(batch, [model.architecture.blocks[start]], stop=start + 1)
        reads = torch.arange(len(ROWS)), batch.mask.sum(1) - 1
        found = model.head(model.states(batch, *reads, start, hidden))
        self._compare(found, [plain(model, row.ids)[-1] for row in ROWS])

    def test_the_head_alone_scales_and_caps_as_the_model_does(self) -> None:
        """Logits of any number of read places come from the head with all that the model does after it."""
        model, batch = self.model, self.model.text.pad(ROWS[:1])
        length = len(ROWS[0].ids)
        found = model.logits(batch, torch.zeros(length, dtype=torch.long), torch.arange(length))
        self._compare(found, list(plain(model, ROWS[0].ids)))

    def test_rows_continued_from_cached_prefixes_say_what_whole_rows_say(self) -> None:
        """Positions, windows and biases by distance count the prefix; what one forward wrote does not stay."""
        model = self.model
        split = [(row.ids[: row.slot], row.ids[row.slot :]) for row in ROWS]
        prefixes = Prefixes.run(model, [before for before, _ in split], max_tokens=10)
        batch = prefixes.followed_by(model, [before for before, _ in split], [after for _, after in split])
        numbers = torch.arange(len(split))
        for _ in range(2):
            found = model.logits(batch, numbers, batch.mask.sum(1) - 1)
            self._compare(found, [plain(model, row.ids)[-1] for row in ROWS])

    def test_a_replayed_change_of_the_block_says_what_a_full_forward_says(self) -> None:
        """Injected at the slot of the target block's output."""
        self._check_replay("block")

    def test_a_replayed_change_of_the_matrix_says_what_a_full_forward_says(self) -> None:
        """Injected at the slot of the matrix's output, which in parallel blocks stands beside the attention."""
        self._check_replay("matrix")

    def test_a_replayed_change_of_matrix_and_attention_says_what_a_full_forward_says(self) -> None:
        """Injected at the slot of both outputs at once; skipped where the attention's matrix is not known."""
        try:
            self.model.architecture.attention_matrix(self.model.target_layer)
        except EditError as error:
            raise SkipTest(str(error)) from error
        self._check_replay("matrix", attention=True)

    def _check_replay(self, site: Site, attention: bool = False) -> None:
        model = self.model
        layer = model.target_layer
        modules = [model.architecture.blocks[layer] if site == "block" else model.architecture.matrix(layer)]
        modules += [model.architecture.attention_matrix(layer)] if attention else []
        reads = [Read(i, len(row.ids) - 1) for i, row in enumerate(ROWS)] + [Read(0, ROWS[0].slot)]
        with torch.enable_grad():
            replay = Replay.record(model, ROWS, reads, layer, site, max_tokens=24, attention=attention)
            width = model.architecture.hidden_size * len(modules)
            change = 0.5 * torch.randn(len(ROWS), width, dtype=torch.float64, generator=seeded())
            change.requires_grad_()
            found = replay.logits(change)
            [gradient] = torch.autograd.grad(found.square().sum(), change)
            expected = []
            for read in reads:
                with ExitStack() as stack:
                    for module, part in zip(modules, change[read.row].chunk(len(modules)), strict=True):
                        stack.enter_context(added(module, ROWS[read.row].slot, part))
                    expected.append(plain(model, ROWS[read.row].ids)[read.position])
            [wanted] = torch.autograd.grad(torch.stack(expected).square().sum(), change)
        self._compare(found, expected)
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))

    def test_tied_embeddings_stay_tied_and_untouched(self) -> None:
        """Where the head shares the embeddings, an edit changes neither, and logits still agree."""
        model = self.make_model(tie_word_embeddings=True)
        network = model.network
        embeddings, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
        assert embeddings is head
        before = embeddings.clone()
        model.weight(self.layers[0]).add(torch.ones_like(model.weight(self.layers[0]).delta))
        assert torch.equal(embeddings, before)
        batch = model.text.pad(ROWS)
        found = model.logits(batch, torch.arange(len(ROWS)), batch.mask.sum(1) - 1)
        self._compare(found, [plain(model, row.ids)[-1] for row in ROWS])

    def test_an_edited_model_saves_and_loads_as_a_plain_folder(self, tmp_path: Path) -> None:
        """What is saved after an edit is what was edited."""
        from transformers import AutoModelForCausalLM

        model = self.make_model()
        for layer in self.layers:
            shape = model.weight(layer).delta.shape
            model.weight(layer).add(0.1 * torch.randn(shape, dtype=torch.float64, generator=seeded()))
        model.network.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
        with torch.no_grad():
            found = loaded(torch.tensor([ROWS[0].ids])).logits[0]
        torch.testing.assert_close(found, plain(model, ROWS[0].ids), **self.tolerance)

    def _compare(self, found: Tensor, expected: Sequence[Tensor]) -> None:
        assert max(float(row.detach().std()) for row in expected) > 1e-3, (
            "the network says the same everywhere: it shows nothing"
        )
        torch.testing.assert_close(found, torch.stack(list(expected)), **self.tolerance)


@functools.lru_cache(maxsize=1)
def _shared(case: type[FamilyConformance]) -> LanguageModel:
    return case().make_model()


def seeded() -> torch.Generator:
    """Return a generator that always starts alike."""
    return torch.Generator().manual_seed(0)


def plain(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Run one row through the network as anybody would, without a cache, and return its logits (length, vocabulary)."""
    return model.network(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


@contextmanager
def tapped(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep what a module received and returned last for a single row, (length, size), by a hook of its own."""
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, returned = args[0] if args else kwargs["hidden_states"], _hidden(output)
        seen["input"], seen["output"] = (part.detach().clone().view(-1, part.shape[-1]) for part in (given, returned))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def added(module: nn.Module, position: int, vector: Tensor) -> Iterator[None]:
    """Add a vector (hidden size,) to what a module returns at one position of a single row."""

    def add(_: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        hidden = _hidden(output)
        here = torch.zeros_like(hidden)
        here.view(-1, here.shape[-1])[position] = 1
        hidden = hidden + here * vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
