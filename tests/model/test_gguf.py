"""Models in GGUF files: read as they were written, edited and exported like any, and nothing in them runs."""

import sys

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lke_lightning.api import resume
from lke_lightning.cli import main
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.model import gguf
from lke_lightning.model.language_model import LanguageModel, content_hash, load
from lke_lightning.testing import tiny_network, tiny_tokenizer

quants = pytest.importorskip("gguf.quants", reason="gguf is not installed")
from tests.gguf_files import write_gguf  # noqa: E402 - it needs the package

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_network("llama"), tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_is_the_network_and_the_tokenizer_that_were_written(file, dtype):
    network, tokenizer = load(str(file), dtype)
    written, known = tiny_network("llama").float().to(getattr(torch, dtype)), tiny_tokenizer()
    assert content_hash(network) == content_hash(written)
    if dtype == "float32":
        assert torch.equal(network(IDS).logits, written(IDS).logits)
    texts = ["the city of", " born in\nthe river", "</s>the"]
    assert tokenizer(texts)["input_ids"] == known(texts)["input_ids"]
    if Version(transformers.__version__) >= Version("5.23"):  # what the extra `gguf` asks for
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"


def test_an_edited_model_remembers_the_file_and_not_its_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    editor = Editor.around(*load(file.name), [0, 1])
    assert editor.pretrained == str(file.resolve())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_blocks_are_dequantised(tmp_path, kind):
    network, _ = load(str(write_gguf(tmp_path / "tiny.gguf", tiny_network("llama"), tiny_tokenizer(), kind)))
    matrix = tiny_network("llama").model.layers[1].mlp.down_proj.weight
    stored = getattr(quants.GGMLQuantizationType, kind)
    expected = quants.dequantize(quants.quantize(matrix.detach().float().numpy(), stored), stored)
    found = network.model.layers[1].mlp.down_proj.weight
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.detach().numpy(), expected)
    assert 0 < (found - matrix).abs().max() < 0.1


def test_a_folder_with_one_such_file_is_that_file(file, tmp_path):
    assert gguf.located(str(file.parent)) == (str(file.parent), {"gguf_file": "tiny.gguf"})
    assert content_hash(load(str(file.parent))[0]) == content_hash(load(str(file))[0])
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.gguf").touch()
    assert gguf.located(str(tmp_path)) == (str(tmp_path), {}), "a folder with a configuration is a folder"


@pytest.mark.parametrize(
    ("files", "file"),
    [(["README.md", "a.gguf"], "a.gguf"), (["config.json", "a.gguf"], None), (["config.json"], None), ([], None)],
)
def test_a_hub_name_with_one_such_file_is_that_file(files, file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _: files)
    assert gguf.located("owner/nosuch") == ("owner/nosuch", {"gguf_file": file} if file else {})


def test_a_file_of_a_hub_repository_can_be_named():
    assert gguf.located("owner/name/model-q4.gguf") == ("owner/name", {"gguf_file": "model-q4.gguf"})


@pytest.mark.parametrize("package", gguf.PACKAGES)
def test_without_the_extra_it_is_named(file, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EditError, match=rf"{package} .*pip install 'lke-lightning\[gguf\]'"):
        load(str(file))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
def test_a_run_goes_on_and_is_exported_like_any(file, small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "run"
    arguments = [*small_run, "--trainer.default_root_dir", str(root), "--model.pretrained", str(file)]
    main([*arguments, "--data.limit", "4"])
    main([*arguments, "--data.limit", "8", "--ckpt_path", "last"])
    edited = resume(root)
    assert len(edited.edited) == 8
    for output, form in (("merged", "merged"), ("delta.safetensors", "delta"), ("adapter", "lora")):
        main(["export", str(root), "--output", str(tmp_path / output), "--format", form])
    network = edited.editor.language_model.network
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert content_hash(merged) == content_hash(network)
    assert not torch.allclose(merged(IDS).logits, load(str(file))[0](IDS).logits)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "merged")("the city")["input_ids"]
        == tiny_tokenizer()("the city")["input_ids"]
    )
    base, delta = load(str(file))[0], load_file(tmp_path / "delta.safetensors")
    for name, change in delta.items():
        base.get_parameter(name).data += change
    torch.testing.assert_close(base(IDS).logits, network(IDS).logits)
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(load(str(file))[0], tmp_path / "adapter")
    torch.testing.assert_close(adapted(IDS).logits, network(IDS).logits, rtol=1e-2, atol=1e-2)


def test_a_template_in_a_file_reaches_nothing_outside_of_itself(tmp_path):
    mark = tmp_path / "ran"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = f"{{{{ cycler.__init__.__globals__.os.mkdir('{mark}') }}}}"
    file = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama"), tokenizer)
    network, loaded = load(str(file))
    assert loaded.chat_template == tokenizer.chat_template
    with pytest.raises(Exception, match="__init__"):
        LanguageModel(network, loaded, [1], chat=True).text.encode(["hello"])
    assert not mark.exists()
