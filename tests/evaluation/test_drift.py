"""Size, spectrum, kept keys and the residual stream, against naive float64 computations."""

import json

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.evaluation.drift import LARGEST, contributions, key_drift, matrix_norms, spectrum
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(4)] + ["the river"]

ADDED = {
    "llama": ("self_attn", "mlp"),
    "gpt2": ("attn", "mlp"),
    "gptj": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "opt": ("self_attn", "fc2"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
"""By family, the modules whose outputs a block adds to the residual stream, as its own forward says."""


def naive(model, family, length):
    """Hook what each family adds, window by window and token by token."""
    attention, mlp = ADDED[family]
    rows = []
    for text in TEXTS:
        prefix = list(model.text.prefix)
        ids = model.text.tokenizer(text, add_special_tokens=False)["input_ids"]
        while ids:
            window, ids = prefix + ids[: length - len(prefix)], ids[length - len(prefix) :]
            added, handles = [], []

            def keep(_, args, output, kept=added):
                kept.append((output[0] if isinstance(output, tuple) else output).squeeze(0))

            def begin(_, args, kwargs, kept=added):
                kept.append((args[0] if args else kwargs["hidden_states"]).squeeze(0))

            blocks = model.architecture.blocks
            handles.append(blocks[0].register_forward_pre_hook(begin, with_kwargs=True))
            for block in blocks:
                handles += [block.get_submodule(name).register_forward_hook(keep) for name in (attention, mlp)]
            model.network(input_ids=torch.tensor([window]))
            for handle in handles:
                handle.remove()
            added = torch.stack(added)
            final = added.sum(0)
            for position in range(1, len(window)):
                parts = added[:, position]
                norms = parts.norm(dim=1)
                along = parts @ final[position] / final[position].norm() ** 2
                rows.append(torch.stack([norms, norms / norms.sum(), along]))
    return torch.stack(rows).mean(0), len(rows)


@pytest.mark.parametrize("family", ADDED)
@pytest.mark.parametrize("bos", [False, True])
def test_contributions_against_what_each_family_adds(family, bos):
    model = LanguageModel(tiny_network(family, layers=3), tiny_tokenizer(bos=bos), [1])
    model.weight(1).add(torch.randn(model.weight(1).delta.shape, generator=torch.Generator().manual_seed(0)))
    (norm, share, projection), count = naive(model, family, 9)
    for max_tokens in (1, 10_000):
        found = contributions(model, TEXTS, 10_000, 9, max_tokens)
        assert found.submodules[:3] == ["embedding", "attention 0", "mlp 0"]
        assert found.tokens == count
        for ours, theirs in ((found.norm, norm), (found.share, share), (found.projection, projection)):
            torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs)
    assert sum(found.share) == pytest.approx(1)
    assert sum(found.projection) == pytest.approx(1)


def test_contributions_leave_the_network_as_it_was():
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [1])
    before = model.network(input_ids=torch.tensor([[5, 6, 7]])).logits
    contributions(model, TEXTS)
    assert torch.equal(before, model.network(input_ids=torch.tensor([[5, 6, 7]])).logits)


def test_text_without_a_token_to_count_is_refused():
    with pytest.raises(EditError, match=r"drift\.text"):
        contributions(LanguageModel(tiny_network("llama"), tiny_tokenizer(), [1]), [])


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (400, 300)])
def test_spectrum_against_a_singular_value_decomposition(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, values = spectrum(matrix), torch.linalg.svdvals(matrix)
    torch.testing.assert_close(
        torch.tensor(found["singular_values"], dtype=torch.float64), values[:LARGEST], rtol=1e-5, atol=0
    )
    assert found["frobenius"] == pytest.approx(values.square().sum().sqrt().item())
    shares = values / values.sum()
    assert found["effective_rank"] == pytest.approx((-(shares * shares.log()).sum()).exp().item())


def test_spectrum_of_low_ranks():
    assert spectrum(torch.zeros(3, 4))["effective_rank"] == 0
    outer = torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 6))
    assert spectrum(outer)["effective_rank"] == pytest.approx(1)
    assert spectrum(torch.eye(7))["effective_rank"] == pytest.approx(7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_key_drift_is_the_change_of_answers_to_the_keys(family):
    """With C0 the mean of k k', the traces are means over the keys themselves."""
    model = LanguageModel(tiny_network(family), tiny_tokenizer(), [1])
    weight = model.weight(1)
    base = weight.live()
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(weight.delta.shape, dtype=torch.float64, generator=generator)
    keys = torch.randn(50, change.shape[1], dtype=torch.float64, generator=generator)
    weight.add(change)
    squares = [sum((matrix @ key).square().sum() for key in keys) for matrix in (change, base)]
    assert key_drift(weight, keys.T @ keys / 50) == pytest.approx((squares[0] / squares[1]).sqrt().item())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_matrix_norms_are_those_of_every_block(family):
    model = LanguageModel(tiny_network(family), tiny_tokenizer(), [1])
    model.weight(1).add(torch.ones_like(model.weight(1).delta))
    weights = dict(model.network.named_parameters())
    expected = [
        value.square().sum().sqrt().item()
        for name, value in weights.items()
        if name.endswith(f"{model.architecture.matrix_name}.weight")
    ]
    assert matrix_norms(model) == pytest.approx(expected)
    assert json.dumps(matrix_norms(model))
