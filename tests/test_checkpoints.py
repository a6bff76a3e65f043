"""Files that are whole or not there, and damage that is noticed."""

import pytest
import torch

from lke_lightning import checkpoints
from lke_lightning.callbacks.checkpoint import SafeCheckpointIO
from lke_lightning.editor import check_same_method
from lke_lightning.edits import EditError
from lke_lightning.results import replace
from tests import blank


def written(folder, batches):
    path = folder / checkpoints.FOLDER / checkpoints.file_name(batches)
    saved = blank.checkpoint(global_step=batches, state_dict={"delta": torch.arange(1000.0)})
    SafeCheckpointIO().save_checkpoint(saved, path)
    return path


def test_the_newest_is_the_one_with_the_most_batches_whatever_the_clock_says(tmp_path):
    import os

    paths = [written(tmp_path, batches) for batches in (9, 10, 200)]
    os.utime(paths[0], (4e9, 4e9))  # far in the future
    assert checkpoints.newest(tmp_path) == paths[2]
    assert checkpoints.find(tmp_path) == paths[2]
    assert checkpoints.read(paths[2])["global_step"] == 200
    checkpoints.keep_newest(paths[0].parent, 1, spared=paths[1])
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [paths[1].name, paths[2].name]


def test_going_back_sets_what_was_newer_aside(tmp_path):
    paths = [written(tmp_path, batches) for batches in (1, 2, 3)]
    checkpoints.set_newer_aside(paths[0])
    assert checkpoints.newest(tmp_path) == paths[0]
    assert len(list(paths[0].parent.glob("*.discarded"))) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damage_is_noticed_and_another_checkpoint_offered(tmp_path, damage):
    good, bad = written(tmp_path, 1), written(tmp_path, 2)
    data = bytearray(bad.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    bad.write_bytes({"cut": data[: len(data) // 3], "flipped": data, "empty": b""}[damage])
    with pytest.raises(EditError, match=f"damaged .*--ckpt_path {good}"):
        checkpoints.read(bad)
    good.unlink()
    with pytest.raises(EditError, match="no other beside it"):
        checkpoints.read(bad)


def test_a_file_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(EditError, match="no checkpoint of an editing run"):
        checkpoints.read(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = written(tmp_path, 1)

    def breaks_off(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EditError, match="No space left"):
        replace(path, breaks_off)
    assert checkpoints.read(path)["global_step"] == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_where_there_is_none(tmp_path):
    assert checkpoints.newest(tmp_path) is None
    with pytest.raises(EditError, match="neither a checkpoint nor the folder of a run"):
        checkpoints.find(tmp_path)
    with pytest.raises(EditError, match="no checkpoint"):
        checkpoints.read(tmp_path / "nothing.ckpt")


def test_a_setting_that_an_earlier_version_did_not_have_counts_as_its_default():
    saved = {"stage_one": {"lr": 0.5}, "stage_two": {"spread": "even"}}
    check_same_method(saved, {**saved, "stage_two": {"spread": "even", "compensate": False, "readout": None}})
    with pytest.raises(EditError, match=r"stage_two\.compensate: not set in the checkpoint, True now"):
        check_same_method(saved, {**saved, "stage_two": {"spread": "even", "compensate": True}})
