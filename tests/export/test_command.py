"""Edits taken away: what is written gives the edited model again, and says truly how near it comes."""

import hashlib
import json
import re
import resource
import runpy
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lke_lightning.cli import main
from lke_lightning.composition import compose
from lke_lightning.edits import EditError
from lke_lightning.export import changes, export, load, write_delta, write_lora
from lke_lightning.low_rank import approximate, errors
from lke_lightning.stage_two.transforms import SpectralCap
from lke_lightning.testing import tiny_network
from tests.export.edited import base, edited, fresh, logits, save

ROOT = Path(__file__).parents[2]
# peft asks the network by a name that transformers has announced to remove.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
CAP = {"class_path": "lke_lightning.stage_two.transforms.SpectralCap", "init_args": {"base": 1.2}}


def page_function():
    """The function that docs/export.md prints, made from the page alone."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), flags=re.DOTALL)
    [source] = [block for block in blocks if "def apply_delta" in block]
    names = {}
    exec(source, names)
    return names["apply_delta"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pretrained(family, tmp_path_factory):
    return base(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def checkpoint(pretrained, tmp_path_factory):
    return save(edited(pretrained), tmp_path_factory.mktemp("checkpoints") / "batch-00000001.ckpt")


def test_a_delta_is_applied_and_taken_back_by_the_function_of_the_docs(pretrained, checkpoint, tmp_path):
    main(["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "x.safetensors"), "--format", "delta"])
    network = fresh(pretrained)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    kept = page_function()(network, tmp_path / "x.safetensors")
    there = load(checkpoint).language_model.network
    assert torch.equal(logits(network), logits(there))
    assert not torch.equal(logits(network), logits(fresh(pretrained)))
    for name, weight in there.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight)
    network.load_state_dict(kept, strict=False)
    for name, weight in before.items():
        assert torch.equal(network.state_dict()[name], weight)


def test_a_delta_holds_the_changes_alone_and_says_what_they_are_of(pretrained, checkpoint, tmp_path):
    editor = load(checkpoint)
    write_delta(editor, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        about, names = file.metadata(), set(file.keys())
    parameters = dict(editor.language_model.network.named_parameters())
    assert len(names) == 3
    assert {name: parameters[name].shape for name in names} == {
        name: tensor.shape for name, tensor in load_file(tmp_path / "x.safetensors").items()
    }
    assert (about["format"], about["version"]) == ("lke_lightning.delta", "1")
    assert about["base_model"] == Path(pretrained).name
    assert about["base_hash"] == editor.language_model.base_hash
    assert (about["method"], about["edits"], about["dtype"]) == ("ENCORE", "7", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_delta_of_a_half_precision_model_is_float32_and_gives_the_same_bits(family, dtype, tmp_path):
    pretrained = base(tmp_path / "model", family, dtype=dtype)
    editor = edited(pretrained, str(dtype).removeprefix("torch."), size=1e-3)
    write_delta(editor, tmp_path / "x.safetensors")
    stored = load_file(tmp_path / "x.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    for name, change in changes(editor).items():
        assert torch.equal(stored[name], change.stored())
    network = fresh(pretrained, dtype)
    page_function()(network, tmp_path / "x.safetensors")
    for name, weight in editor.language_model.network.state_dict().items():
        assert network.state_dict()[name].dtype == dtype
        assert torch.equal(network.state_dict()[name], weight)
    wide = fresh(pretrained, torch.float32)  # the base in another dtype is still the base
    page_function()(wide, tmp_path / "x.safetensors")
    for name, change in changes(editor).items():
        assert torch.equal(wide.state_dict()[name], change.base + change.stored())


def test_the_function_of_the_docs_refuses_what_is_not_the_base(family, pretrained, checkpoint, tmp_path):
    apply_delta = page_function()
    write_delta(load(checkpoint), tmp_path / "x.safetensors")
    network = fresh(pretrained)
    apply_delta(network, tmp_path / "x.safetensors")
    others = {
        "edited already": network,
        "another model": fresh(base(tmp_path / "other", family, seed=1)),
        "has no": tiny_network("gptj"),
        r"of shape \(": tiny_network(family, hidden_size=64),
    }
    for message, other in others.items():
        before = {name: weight.clone() for name, weight in other.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            apply_delta(other, tmp_path / "x.safetensors")
        for name, weight in before.items():
            assert torch.equal(other.state_dict()[name], weight)


@pytest.mark.parametrize("spoiled", ["a number", "the metadata"])
def test_a_damaged_delta_is_refused_by_the_function_of_the_docs(spoiled, pretrained, checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    write_delta(load(checkpoint), path)
    data = bytearray(path.read_bytes())
    data[-1 if spoiled == "a number" else data.index(b"ENCORE")] ^= 1
    path.write_bytes(data)
    network = fresh(pretrained)
    with pytest.raises(ValueError, match=r"x.safetensors is damaged: its checksum is wrong"):
        page_function()(network, path)
    for name, weight in fresh(pretrained).state_dict().items():
        assert torch.equal(network.state_dict()[name], weight)


def test_a_delta_from_before_there_were_checksums_is_applied(pretrained, checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    write_delta(load(checkpoint), path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    del about["checksum"]
    save_file(load_file(path), path, about)
    network = fresh(pretrained)
    page_function()(network, path)
    assert torch.equal(logits(network), logits(load(checkpoint).language_model.network))


def test_the_stated_error_of_a_low_rank_is_true(pretrained, tmp_path, capsys):
    editor = edited(pretrained, noise=0.01)
    checkpoint = save(editor, tmp_path / "x.ckpt")
    main(["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "x"), "--format", "delta", "--rank", "3"])
    printed = capsys.readouterr().out
    stored = load_file(tmp_path / "x")
    with safe_open(tmp_path / "x", "pt") as file:
        stated = json.loads(file.metadata()["relative_error"])
    assert set(stored) == {f"{name}.{part}" for name in stated for part in ("up", "down")}
    for name, change in changes(editor).items():
        product = stored[f"{name}.up"].double() @ stored[f"{name}.down"].double()
        missing = (product - change.stored()).norm() / change.stored().double().norm()
        assert stated[name] == pytest.approx(missing.item(), rel=1e-6)
        assert 0.001 < stated[name] < 0.5
        assert f"{name}  rank 3  relative error {stated[name]:.2e}" in printed
    network = fresh(pretrained)
    page_function()(network, tmp_path / "x")
    distance = (logits(network) - logits(editor.language_model.network)).norm()
    assert 0 < distance < 0.2 * (logits(fresh(pretrained)) - logits(editor.language_model.network)).norm()


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_errors_are_those_of_the_best_approximation(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    expected = errors(torch.linalg.svdvals(matrix))
    assert expected[0] == 1
    assert expected[-1] == 0
    for rank in (1, 3, 4):
        assert approximate("m", matrix, rank).error == pytest.approx(expected[rank].item(), rel=1e-9)
    low = approximate("m", matrix, tolerance=0.6)
    assert low.error <= 0.6 < expected[low.rank - 1]
    assert approximate("m", torch.zeros(shape)).error == 0


def test_peft_loads_a_lora_adapter_as_the_edited_model(pretrained, checkpoint, tmp_path, capsys):
    out = tmp_path / "adapter"
    main(["export", "--ckpt_path", checkpoint, "--output", str(out), "--format", "lora"])
    assert capsys.readouterr().out.count("  rank 3  ") == 3
    adapted = peft.PeftModel.from_pretrained(fresh(pretrained), out)
    expected = logits(load(checkpoint).language_model.network)
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-5)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), logits(fresh(pretrained)))
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == files
    found = peft.AutoPeftModelForCausalLM.from_pretrained(out)  # by the name of its base model
    torch.testing.assert_close(logits(found), expected, rtol=1e-4, atol=1e-5)


def test_matrices_of_different_ranks_share_the_largest(pretrained, tmp_path):
    editor = edited(pretrained)
    editor.language_model.weight(3).add(0.05 * torch.randn(32, 4) @ torch.randn(4, 64))
    low = write_lora(editor, tmp_path / "adapter")
    assert [part.rank for part in low.values()] == [7, 7, 7]  # llama.cpp knows no pattern of ranks
    adapted = peft.PeftModel.from_pretrained(fresh(pretrained), tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), logits(editor.language_model.network), rtol=1e-4, atol=1e-5)


def test_an_adapter_of_a_bfloat16_model_is_near_the_edited_model(family, tmp_path):
    pretrained = base(tmp_path / "model", family, dtype=torch.bfloat16)
    editor = edited(pretrained, "bfloat16")
    write_lora(editor, tmp_path / "adapter")
    assert {t.dtype for t in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()} == {torch.float32}
    adapted = peft.PeftModel.from_pretrained(fresh(pretrained, torch.bfloat16), tmp_path / "adapter")
    expected, unedited = (logits(n).float() for n in (editor.language_model.network, fresh(pretrained, torch.bfloat16)))
    assert (logits(adapted).float() - expected).norm() < 0.05 * (unedited - expected).norm()


def test_an_adapter_as_large_as_the_change_is_refused_with_the_error_of_lower_ranks(pretrained, tmp_path):
    editor = edited(pretrained, noise=0.05)
    with pytest.raises(EditError, match="--format delta") as caught:
        write_lora(editor, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    stated = {int(rank): float(error) for rank, error in re.findall(r"rank (\d+) has ([\d.]+\d)", str(caught.value))}
    assert set(stated) == {8, 21}  # 21 (32 + 64) < 32 * 64 <= 22 (32 + 64)
    first, change = next(iter(changes(editor).items()))
    assert first in str(caught.value)
    for rank, error in stated.items():
        assert error == pytest.approx(approximate("m", change.total, rank).error, rel=0.05)
    assert write_lora(editor, tmp_path / "adapter", tolerance=stated[8] * 1.1)[first].rank <= 8


@pytest.mark.parametrize("format", ["merged", "delta", "lora"])
def test_what_is_read_is_exported(format, pretrained, tmp_path):
    editor = edited(pretrained, size=2.0)
    plain, capped = save(editor, tmp_path / "plain.ckpt"), save(editor, tmp_path / "capped.ckpt", CAP)
    whole, out = logits(editor.language_model.network), tmp_path / "out"
    editor.readout = compose({"stage_two": {"readout": CAP}})[0].two.readout
    assert isinstance(editor.readout, SpectralCap)
    with editor.as_read():
        read = logits(editor.language_model.network)
    assert (read - whole).norm() > 0.1 * whole.norm()
    for checkpoint, expected in ((plain, whole), (capped, read)):
        target = out / Path(checkpoint).stem
        export(checkpoint, str(target), format)
        if format == "merged":
            network = fresh(target)
        elif format == "delta":
            network = fresh(pretrained)
            page_function()(network, target)
        else:
            network = peft.PeftModel.from_pretrained(fresh(pretrained), target)
        torch.testing.assert_close(logits(network), expected, rtol=1e-3, atol=1e-3)


def test_a_low_rank_delta_of_a_readout_approximates_what_is_read(pretrained, tmp_path):
    editor = load(save(edited(pretrained, size=2.0), tmp_path / "x.ckpt", CAP))
    total = {name: weight.delta.clone() for name, weight in editor.language_model.edited.items()}
    low = write_delta(editor, tmp_path / "x", rank=3)
    for (name, change), whole in zip(changes(editor).items(), total.values(), strict=True):
        torch.testing.assert_close(low[name].up @ low[name].down, change.stored(), rtol=1e-3, atol=1e-3)
        assert change.total.norm() < 0.9 * whole.norm()
    for name, weight in editor.language_model.edited.items():  # the change itself stays
        assert torch.equal(weight.delta, total[name])


def test_a_runs_folder_stands_for_its_newest_checkpoint(pretrained, tmp_path):
    editor = edited(pretrained)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save(editor, tmp_path / "run" / "checkpoints" / "batch-00000001.ckpt")
    editor.language_model.weight(0).add(torch.ones(32, 64))
    save(editor, tmp_path / "run" / "checkpoints" / "batch-00000002.ckpt")
    export(str(tmp_path / "run"), str(tmp_path / "x"), "delta")
    first = load_file(tmp_path / "x")[next(iter(changes(editor)))]
    assert torch.equal(first, changes(editor)[next(iter(changes(editor)))].stored())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "zip"], "unknown --format 'zip': there are merged, delta, lora, module, gguf"),
        (["--format", "delta", "--rank", "0"], "--rank is 0: it must be at least 1"),
        (["--rank", "4"], "--rank is for --format delta and lora"),
        (["--format", "delta", "--tolerance", "0.1"], "--tolerance chooses"),
        (["--format", "lora", "--tolerance", "0.1", "--rank", "2"], "--tolerance chooses"),
        (["--format", "lora", "--tolerance", "2"], "above 0 and below 1"),
        (["--format", "delta", "--rank", "22"], "leave --rank out"),
        (["--format", "lora", "--rank", "22"], "use --format delta"),
        (["--dtype", "f16"], "--dtype is 'f16': it is for --format gguf"),
        (["--format", "gguf"], "is no GGUF file: use --format merged"),
        (["--ckpt_path", "nowhere.ckpt"], "neither a checkpoint nor the folder of a run"),
    ],
)
def test_wrong_input_writes_nothing(options, message, checkpoint, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main(["export", "--ckpt_path", checkpoint, "--output", str(tmp_path / "out"), *options])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["merged", "delta", "lora"])
def test_nothing_is_overwritten(format, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(EditError, match="exists and"):
        export(checkpoint, str(out), format)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EditError, match="exists and"):
        export(checkpoint, str(tmp_path / "file"), format)
    assert (tmp_path / "file").read_text() == (out / "mine.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def small_disk():
    """No file can become larger than a few KiB; errors come from Python, Rust and C++ alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format", ["merged", "delta", "lora"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(format, checkpoint, tmp_path, small_disk):
    with pytest.raises(EditError, match=rf"cannot write .*{tmp_path.name}/out \("):
        export(checkpoint, str(tmp_path / "out"), format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["merged", "delta", "lora"])
def test_nothing_that_lies_beside_the_output_is_touched_or_followed(format, checkpoint, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.tmp").symlink_to(tmp_path / "elsewhere")
    export(checkpoint, str(tmp_path / "out"), format)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out", "out.tmp"]


@pytest.mark.parametrize("format", ["merged", "delta", "lora"])
def test_one_checkpoint_gives_the_same_bytes_each_time(format, checkpoint, tmp_path):
    digests = set()
    for name in ("first", "second", "third"):
        out = tmp_path / name
        export(checkpoint, str(out), format)
        files = sorted(out.rglob("*")) if out.is_dir() else [out]
        digests.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
    assert len(digests) == 1


@pytest.mark.parametrize("format", ["merged", "delta", "lora"])
def test_a_change_that_is_not_finite_is_refused(format, pretrained, tmp_path):
    editor = edited(pretrained)
    editor.language_model.weight(1).delta[0, 0] = torch.nan
    for readout in (None, CAP):
        broken = save(editor, tmp_path / "broken.ckpt", readout)
        with pytest.raises(EditError, match="not finite"):
            export(broken, str(tmp_path / "out"), format)
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_of_a_run_is_refused(checkpoint, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(EditError, match="not a checkpoint of an editing run"):
        export(str(tmp_path / "other.ckpt"), str(tmp_path / "out"))
    whole = Path(checkpoint).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EditError, match="damaged"):
        export(str(tmp_path / "cut.ckpt"), str(tmp_path / "out"), "delta")


def test_a_matrix_that_peft_does_not_know_is_refused(pretrained, tmp_path):
    class Own(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.weight = linear.weight

    editor = edited(pretrained)
    weight = editor.language_model.weight(0)
    weight._matrix = (Own(weight.matrix),)
    with pytest.raises(EditError, match="of a Own, not a linear layer: use --format delta"):
        write_lora(editor, tmp_path / "adapter")


def test_the_page_shows_what_was_measured():
    script = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    page = (ROOT / "docs" / "export.md").read_text()
    for name in ("survival", "control", "ranks"):
        assert all(marker in page for marker in script["markers"](name))
    assert script["rewritten"](page) == page
