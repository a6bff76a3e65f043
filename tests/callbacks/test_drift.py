"""What a run writes of its own drift, also when it is interrupted."""

import json

import pytest
import torch

from lke_lightning import checkpoints
from lke_lightning.cli import main
from lke_lightning.editor import Editor


def drifted(small_run, folder, *options):
    main([*small_run, *options, "--trainer.default_root_dir", str(folder)])
    return json.loads((folder / "drift.json").read_text())


@pytest.fixture(scope="module")
def options(small_world):
    return ["--drift.every", "4", "--drift.text", json.dumps([str(small_world / "text.txt")])]


@pytest.fixture(scope="module")
def whole(small_run, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, drifted(small_run, folder, *options, "--checkpoint.keep", "-1")


def test_the_file_tells_of_the_matrices_in_the_checkpoint(whole):
    folder, found = whole
    editor = Editor.load_from_checkpoint(checkpoints.newest(folder), map_location="cpu", weights_only=True)
    model = editor.language_model
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    growth = [entry["norm_growth"] for entry in ledger if entry["event"] == "batch"]
    assert [entry["edits"] for entry in found["norms"]] == [0, 2, 4, 6, 8, 9]
    for layer in ("0", "1"):
        first = found["norms"][0]["norms"][layer]
        assert [e["norms"][layer] / first for e in found["norms"][1:]] == pytest.approx([g[layer] for g in growth])
        weight = model.weight(int(layer))
        spectrum = found["snapshots"][-1]["spectrum"][layer]
        values = torch.linalg.svdvals(weight.delta.double())
        assert spectrum["singular_values"][:4] == pytest.approx(values[:4].tolist(), rel=1e-4)
        assert spectrum["frobenius"] == pytest.approx(weight.delta.norm().item(), rel=1e-5)
        assert found["snapshots"][-1]["key_drift"][layer] > 0
        norms = [found["matrix_norms"][moment][int(layer)] for moment in ("before", "after")]
        assert norms == pytest.approx(weight.norms(), rel=1e-5)
        base = torch.linalg.svdvals(model.weight(int(layer)).base.double())
        assert found["unedited"][layer]["singular_values"][0] == pytest.approx(base[0].item(), rel=1e-4)
    assert [entry["edits"] for entry in found["snapshots"]] == [4, 8, 9]
    assert found["matrix_norms"]["before"][2:] == found["matrix_norms"]["after"][2:]


def test_the_stream_is_measured_before_and_after(whole):
    before, after = (whole[1]["contributions"][moment] for moment in ("before", "after"))
    assert before["submodules"] == after["submodules"]
    assert before["norm"][0] == after["norm"][0]
    assert before["norm"][2] != after["norm"][2]


def test_an_interrupted_run_writes_the_same(small_run, options, whole, tmp_path):
    folder, found = whole
    early = checkpoints.find(folder / "checkpoints" / checkpoints.file_name(2))
    assert drifted(small_run, tmp_path / "resumed", *options, "--ckpt_path", str(early)) == found


def test_measuring_changes_nothing(small_run, whole, tmp_path):
    main([*small_run, "--trainer.default_root_dir", str(tmp_path)])
    assert not (tmp_path / "drift.json").exists()
    free, measured = (checkpoints.read(checkpoints.newest(folder)) for folder in (tmp_path, whole[0]))
    assert free["callbacks"]["Drift"] == {"norms": [], "snapshots": []}
    for name, value in free["state_dict"].items():
        assert torch.equal(value, measured["state_dict"][name])


def test_without_a_text_only_the_matrices_are_measured(small_run, tmp_path):
    found = drifted(small_run, tmp_path, "--drift.measure", "true", "--data.limit", "2")
    assert found["contributions"] == {}
    assert [entry["edits"] for entry in found["snapshots"]] == [2]


@pytest.mark.parametrize(
    ("options", "message"), [(["--drift.every", "0"], "at least 1"), (["--drift.text", "[nowhere.txt]"], "nowhere.txt")]
)
def test_bad_settings_are_refused(small_run, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*small_run, *options, "--trainer.default_root_dir", str(tmp_path)])
    assert message in str(caught.value) + capsys.readouterr().err
