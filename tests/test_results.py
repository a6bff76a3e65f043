"""Files and folders reach the disk whole or not at all, and never through what lies in the way."""

import io
import os
import struct

import pytest
import torch
from safetensors import safe_open

from lke_lightning.edits import EditError
from lke_lightning.results import check_free, replace, replace_folder, write, write_tensors


def fill(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_text("a")


def stop(place):
    if isinstance(place, io.IOBase):
        place.write(b"half")
    else:
        fill(place)
    raise KeyboardInterrupt


def test_a_file_is_new_or_as_it_was(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write(path, "first")
    with pytest.raises(KeyboardInterrupt):
        replace(path, stop)
    assert path.read_text() == "first"
    write(path, "second")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_there_wholly_or_not(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "deep" / "out", stop)
    assert not list((tmp_path / "deep").iterdir())
    assert replace_folder(tmp_path / "deep" / "out", fill) == tmp_path / "deep" / "out"
    assert (tmp_path / "deep" / "out" / "sub" / "a").read_text() == "a"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_an_empty_folder_is_filled_also_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    replace_folder(tmp_path / "link", fill)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "sub" / "a").read_text() == "a"
    with pytest.raises(EditError, match="exists and is not empty"):
        replace_folder(tmp_path / "link", fill)


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "file", "a")
        replace_folder(tmp_path / "folder", fill)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_what_is_being_written_has_another_name_each_time(tmp_path):
    seen = []
    for _ in range(2):
        replace(tmp_path / "x", lambda _: seen.append([path.name for path in tmp_path.glob(".x.*.tmp")]))
    replace_folder(tmp_path / "y", lambda unfinished: seen.append([unfinished.name]))
    assert len({name for names in seen for name in names}) == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("torch"), Exception("io (os error 28)")])
def test_what_cannot_be_written_is_one_sentence(error, tmp_path):
    def fail(_):
        raise error

    for way in (replace, replace_folder):
        with pytest.raises(EditError, match=r"cannot write .*/x .*is the disk full"):
            way(tmp_path / "x", fail)
        assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError):
        replace_folder(tmp_path / "x", lambda _: 1 / 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_place_that_is_taken_or_cannot_be_is_said_before_any_work(is_folder, tmp_path):
    (tmp_path / "file").write_text("")
    for place, message in (("file", "exists and"), ("file/x", "is a file, not a folder"), ("file/x/y", "is a file")):
        with pytest.raises(EditError, match=message):
            check_free(tmp_path / place, is_folder)
    check_free(tmp_path / "a" / "b", is_folder)
    assert not (tmp_path / "a").exists()


def test_tensors_have_the_same_bytes_whatever_the_order(tmp_path):
    tensors = {"b": torch.rand(3, 5).T, "a": torch.arange(3), "c": torch.rand(2).bfloat16(), "d": torch.zeros(0, 4)}
    metadata = {name: f'say "{name}" \u00e4\n' for name in "qwertyuiop"}
    found = set()
    for turn in (dict, lambda given: dict(reversed(given.items()))):
        file = io.BytesIO()
        write_tensors(file, turn(tensors), turn(metadata))
        found.add(file.getvalue())
    assert len(found) == 1
    [data] = found
    assert struct.unpack("<Q", data[:8])[0] % 8 == 0
    (tmp_path / "x").write_bytes(data)
    with safe_open(tmp_path / "x", "pt") as stored:
        assert stored.metadata() == metadata
        assert all(torch.equal(stored.get_tensor(name), tensor) for name, tensor in tensors.items())
