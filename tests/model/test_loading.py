"""Loading, describing and hashing models; models in half precision and partly quantised."""

import subprocess
import sys

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.model.language_model import LanguageModel, content_hash, load
from lke_lightning.testing import tiny_network, tiny_tokenizer

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A model of about 100 MB in several files."""
    folder = tmp_path_factory.mktemp("sharded")
    network = tiny_network("llama", hidden_size=512, inner=2048, layers=6, head_dim=128).float()
    network.save_pretrained(folder, max_shard_size="20MB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def test_a_sharded_folder_loads_whole(sharded):
    network, tokenizer = load(str(sharded))
    model = LanguageModel(network, tokenizer, [1])
    expected = tiny_network("llama", hidden_size=512, inner=2048, layers=6, head_dim=128).float()
    assert model.base_hash == content_hash(expected)


def test_loading_and_hashing_keep_no_second_copy(sharded):
    script = f"""
import resource, torch, transformers, lke_lightning.model.language_model as lm
from transformers import AutoModelForCausalLM, AutoTokenizer
from lke_lightning.testing import tiny_network
tiny_network("llama")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
network, _ = lm.load({str(sharded)!r})
lm.content_hash(network)
print(peak() - before, sum(w.numel() * w.element_size() for w in network.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    assert size > 90 * MEGABYTE
    assert grown < 1.6 * size


def test_nothing_to_load_is_said_with_its_name(tmp_path):
    with pytest.raises(EditError, match=r"neither a folder with a model.*config\.json"):
        load(str(tmp_path))


def test_code_of_a_checkpoint_does_not_run_unasked(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "strange", '
        '"auto_map": {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}}'
    )
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "strange.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(EditError, match="trust_remote_code"):
        load(str(tmp_path))


def test_one_line_says_what_is_edited():
    model = LanguageModel(tiny_network("llama").to(torch.bfloat16), tiny_tokenizer(), [0, 2])
    line = model.describe()
    assert "\n" not in line
    for part in (
        "LlamaForCausalLM in bfloat16",
        "layers 0, 2",
        "mlp.down_proj (32 x 64)",
        "4,096 of",
        "change in float32",
    ):
        assert part in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_many_tiny_edits_in_half_precision_keep_their_sum(family, dtype):
    model = LanguageModel(tiny_network(family).to(dtype), tiny_tokenizer(), [1])
    weight, tiny = model.weight(1), 1e-5
    before = weight.live().clone()
    naive = weight.matrix.weight.clone()
    for _ in range(500):
        weight.add(torch.full_like(weight.delta, tiny))
        naive += tiny
    torch.testing.assert_close(weight.live() - before, torch.full_like(before, 500 * tiny), rtol=1e-3, atol=1e-6)
    assert weight.matrix.weight.dtype == dtype
    exact = before.T if weight.matrix.weight.shape != before.shape else before
    error = lambda values: (values.float() - exact - 500 * tiny).abs().mean()  # noqa: E731
    assert error(weight.matrix.weight) < error(naive) / 5, "adding in place loses most of the sum"


def test_a_base_in_8_bits_with_edited_matrices_in_float32():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    network = tiny_network("llama").float()
    kept = "model.layers.1.mlp.down_proj"
    quantization.quantize_(
        network,
        quantization.Int8WeightOnlyConfig(),
        lambda module, name: isinstance(module, torch.nn.Linear) and name not in (kept, "lm_head"),
    )
    model = LanguageModel(network, tiny_tokenizer(), [1])
    ids = torch.tensor([[5, 6, 7]])
    before = network(ids).logits
    model.weight(1).add(torch.randn_like(model.weight(1).delta))
    assert not torch.allclose(network(ids).logits, before)
    model.weight(1).revert()
    assert torch.equal(network(ids).logits, before)
    with pytest.raises(EditError, match="quantised"):
        LanguageModel(network, tiny_tokenizer(), [2])


def test_a_model_that_sees_ahead_is_refused_and_its_causal_form_is_not():
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    for is_decoder in (False, True):
        config = AutoConfig.for_model("bert", vocab_size=400, is_decoder=is_decoder, **sizes)
        network = AutoModelForCausalLM.from_config(config)
        if is_decoder:
            LanguageModel(network, tiny_tokenizer(), [1], "output.dense")
        else:
            with pytest.raises(EditError, match="is an encoder"):
                LanguageModel(network, tiny_tokenizer(), [1], "output.dense")


def test_weights_that_are_tied_are_not_missing(tmp_path):
    tiny_network("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    network, _ = load(str(tmp_path))
    assert network.lm_head.weight is network.model.embed_tokens.weight


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value):
    network = tiny_network("gpt2")
    network.transformer.wpe.weight.data[3, 3] = value
    with pytest.raises(EditError, match=r"transformer\.wpe\.weight .*NaN"):
        LanguageModel(network, tiny_tokenizer(), [1])


def test_texts_beyond_the_context_are_refused():
    text = LanguageModel(tiny_network("llama", max_position_embeddings=20), tiny_tokenizer(), [1]).text
    assert text.longest == 20
    [(prompt, target)] = text.continuations([("a" * 19, "b")])
    assert len(prompt + target[:-1]) <= 20
    with pytest.raises(EditError, match="context holds 20"):
        text.continuations([("zq" * 30, "b")])
    with pytest.raises(EditError, match="context holds 20"):
        text.rows([("zq" * 30, "zq")])
