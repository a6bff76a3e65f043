"""The structure of a causal language model: its blocks, the edited matrix, the hidden size.

Found by structure and by the names that transformers gives, never by the name of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lke_lightning.edits import EditError
from lke_lightning.model.refusals import check_block, check_kind, check_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    Matrix = nn.Linear | Conv1D
    """What holds an edited weight."""

OUTPUT_MATRICES = (
    "mlp.down_proj", "mlp.c_proj", "mlp.fc_out", "mlp.dense_4h_to_h", "mlp.fc2", "fc2", "ffn.down_proj"
)  # fmt: skip
"""Names, inside a block, of the matrix that leads from the MLP's inner width back to the hidden size."""

ATTENTION_MATRICES = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj",
    "attn.attention.out_proj", "attention.dense", "self_attention.dense",
)  # fmt: skip
"""Names, inside a block, of the matrix that leads from the attention's heads back to the hidden size."""


def is_transposed(matrix: nn.Module) -> bool:
    """Tell whether a matrix stores its weight as (d_key, d_out), as GPT-2's Conv1D does.

    Decided by the class: the shape of a square matrix is ambiguous.
    """
    return type(matrix).__name__ == "Conv1D"


def matrix_shape(matrix: Matrix) -> tuple[int, int]:
    """Return (d_out, d_key)."""
    rows, columns = matrix.weight.shape
    return (columns, rows) if is_transposed(matrix) else (rows, columns)


@dataclass(frozen=True)
class Architecture:
    """The places in one network that stages read and write."""

    blocks: nn.ModuleList
    matrix_name: str
    """Path of the edited matrix inside a block."""
    hidden_size: int
    context: int | None = None
    """Tokens that a text may have, by the configuration."""

    @classmethod
    def of(cls, network: PreTrainedModel, matrix: str | None = None) -> Architecture:
        """Find the places in a transformers causal language model.

        Args:
            network: what `AutoModelForCausalLM` returns.
            matrix: path of the MLP output matrix inside a block, for models that are not recognised.

        Raises:
            EditError: the model cannot be edited, with the reason (see `refusals`); it has no decoder blocks, or its
                MLP output matrix is ambiguous.
        """
        check_kind(network)
        config = network.config.get_text_config()
        blocks = _find_blocks(network, config.num_hidden_layers)
        context = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT's name
        return cls(blocks, _find_matrix(blocks, config.hidden_size, matrix), config.hidden_size, context)

    def matrix(self, layer: int) -> Matrix:
        """Return the MLP output matrix of a layer."""
        found: Any = self.blocks[layer].get_submodule(self.matrix_name)
        return found

    def attention_matrix(self, layer: int) -> Matrix:
        """Return the attention's output matrix of a layer.

        Raises:
            EditError: the block has none by a known name.
        """
        parts = dict(self.blocks[layer].named_modules())
        known = [parts[name] for name in ATTENTION_MATRICES if name in parts]
        if not known:
            raise EditError(
                f"layer {layer} has no attention output matrix by a known name ({', '.join(ATTENTION_MATRICES)}): "
                "leave stage_one.beside out"
            )
        return known[0]

    def check_layers(self, layers: list[int]) -> None:
        """Raise `EditError` unless `layers` are distinct, ascending and exist."""
        count = len(self.blocks)
        if not layers:
            raise EditError(
                f"no layers to edit: give --model.layers, for {count} layers for example '{layers_by_depth(count)}' "
                "(proposed from the depth; published settings are in configs/published.yaml)"
            )
        if sorted(set(layers)) != list(layers):
            raise EditError(f"layers {layers} must be distinct and ascending")
        if layers[0] < 0 or layers[-1] >= count:
            raise EditError(f"layers {layers} do not exist: the model has layers 0 to {count - 1}")

    def check_matrices(self, layers: list[int]) -> None:
        """Raise `EditError` unless the matrix of each of `layers` is there and can take a change."""
        for layer in layers:
            check_block(self.blocks[layer], f"layer {layer}")
            try:
                check_matrix(self.matrix(layer), f"the matrix {self.matrix_name} of layer {layer}")
            except AttributeError as error:
                raise EditError(f"layer {layer} has no matrix {self.matrix_name!r}, which other layers have") from error


def layers_by_depth(count: int) -> list[int]:
    """Propose layers to edit in a model of `count` layers: up to five, from a fifth of the depth on."""
    first = min(count - 1, max(1, count // 5))
    return list(range(first, min(count, first + max(1, min(5, count // 3)))))


def _find_blocks(network: PreTrainedModel, count: int) -> nn.ModuleList:
    # a model that also sees has blocks of its vision tower beside those of its decoder
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else network
    for _, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise EditError(
        f"no list of {count} decoder blocks in {type(network).__name__}: this architecture is not supported"
    )


def _find_matrix(blocks: nn.ModuleList, hidden_size: int, named: str | None) -> str:
    linears = {
        name: matrix_shape(module)
        for name, module in blocks[0].named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() == 2
    }
    if named is not None:
        if named in linears and linears[named][0] == hidden_size:
            return named
        problem = f"--model.matrix {named!r} is not a matrix with output size {hidden_size} inside a block"
    else:
        known = [name for name in OUTPUT_MATRICES if name in linears]
        widening = [name for name, (d_out, d_key) in linears.items() if d_out == hidden_size and d_key > hidden_size]
        if known or len(widening) == 1:
            return (known or widening)[0]
        check_block(blocks[0], "layer 0")
        problem = "the MLP's output matrix is ambiguous; name it with --model.matrix"
    listing = "\n".join(f"  {name}: {d_key} -> {d_out}" for name, (d_out, d_key) in linears.items())
    raise EditError(f"{problem} (here edits need one that leads to {hidden_size}). Matrices in a block:\n{listing}")
