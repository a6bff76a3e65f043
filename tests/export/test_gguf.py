"""An edited model back in a GGUF file: read again it is the edited model, and all else in it is as it was."""

import pytest
import torch

from lke_lightning.cli import main
from lke_lightning.edits import EditError
from lke_lightning.export import load, write_gguf
from lke_lightning.model.language_model import load as load_model
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.export.edited import edited, logits, save

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
from tests.gguf_files import write_gguf as write_file  # noqa: E402 - it needs the package


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    texts = {"general__license": "Apache-2.0", "lke_lightning__edits": "3 earlier ones"}
    return write_file(folder / "tiny.gguf", tiny_network("llama"), tiny_tokenizer(), "Q4_1", **texts)


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    return save(edited(str(source), size=0.02), tmp_path_factory.mktemp("checkpoints") / "batch-00000001.ckpt")


@pytest.mark.parametrize(("dtype", "near"), [("f16", 2e-3), ("q8_0", 6e-2)])
def test_read_again_it_is_the_edited_model(source, checkpoint, dtype, near, tmp_path, capsys):
    output = tmp_path / "edited.gguf"
    main(["export", checkpoint, "--output", str(output), "--format", "gguf", "--dtype", dtype])
    assert capsys.readouterr().out.count(f"  {dtype}  relative error ") == 3
    network, tokenizer = load_model(str(output))
    expected, unedited = logits(load(checkpoint).language_model.network), logits(load_model(str(source))[0])
    assert (logits(network) - expected).norm() < near * (unedited - expected).norm()
    assert tokenizer("the city of")["input_ids"] == tiny_tokenizer()("the city of")["input_ids"]


def test_all_else_in_the_file_is_as_it_was(source, checkpoint, tmp_path):
    write_gguf(load(checkpoint), tmp_path / "edited.gguf")
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "edited.gguf")
    differ = {
        one.name
        for one, other in zip(before.tensors, after.tensors, strict=True)
        if (one.name, one.tensor_type, one.data.tobytes()) != (other.name, other.tensor_type, other.data.tobytes())
    }
    assert differ == {f"blk.{layer}.ffn_down.weight" for layer in (0, 1, 3)}
    for name, field in before.fields.items():
        if not name.startswith(("GGUF.", "lke_lightning.")):
            assert (after.fields[name].types, after.fields[name].contents()) == (field.types, field.contents())
    assert after.fields["lke_lightning.edits"].contents() == "7"
    assert after.fields["lke_lightning.license"].contents() == "apache-2.0"


def test_a_file_that_is_not_the_base_any_more_is_refused(source, checkpoint, tmp_path):
    editor = load(checkpoint)
    other = write_file(tmp_path / "other.gguf", tiny_network("llama", seed=1), tiny_tokenizer())
    editor.pretrained = str(other)
    with pytest.raises(EditError, match=r"blk.0.ffn_down.weight in the GGUF file is not the matrix that was edited"):
        write_gguf(editor, tmp_path / "edited.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


def test_entries_that_half_precision_has_no_room_for_are_refused(source, checkpoint, tmp_path):
    editor = load(checkpoint)
    editor.language_model.weight(1).add(torch.full((32, 64), 1e5))
    with pytest.raises(EditError, match=r"blk.1.ffn_down.weight has entries that f16 has no room for"):
        write_gguf(editor, tmp_path / "edited.gguf")


def test_a_model_that_runs_in_half_precision_is_known_to_be_the_files(source, tmp_path):
    editor = edited(str(source), "bfloat16", size=0.02)
    write_gguf(editor, tmp_path / "edited.gguf")
    expected, unedited = editor.language_model.network, load_model(str(source), "bfloat16")[0]
    written = load_model(str(tmp_path / "edited.gguf"), "bfloat16")[0]
    assert (logits(written) - logits(expected)).norm() < 0.1 * (logits(unedited) - logits(expected)).norm()
