"""The cache of tensors: where it is, who may read it, and what cannot be one."""

import os

import pytest
import torch

from lke_lightning.cache import TensorCache, digest
from lke_lightning.edits import EditError

KEY = {"model": "m", "tokens": "3"}


def test_what_is_put_in_is_got_out_and_nothing_else(tmp_path):
    cache = TensorCache(str(tmp_path / "a" / "b"), "x")
    assert not (tmp_path / "a").exists()
    tensors = {"values": torch.arange(3.0), "turned": torch.rand(3, 4).T, "half": torch.rand(2).bfloat16()}
    cache.put("kind", KEY, tensors)
    found = TensorCache(str(tmp_path / "a" / "b"), "x").get("kind", dict(reversed(KEY.items())))
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert cache.get("kind", {**KEY, "tokens": "4"}) is None
    assert cache.get("other", KEY) is None


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    cache = TensorCache(str(tmp_path), "x")
    before = os.umask(0o002)
    try:
        cache.put("kind", KEY, {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert cache.file("kind", KEY).stat().st_mode & 0o777 == 0o664


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LKE_CACHE", str(tmp_path / "there"))
    assert TensorCache(None, "x").folder == tmp_path / "there"
    assert TensorCache(str(tmp_path / "here"), "x").folder == tmp_path / "here"
    (tmp_path / "there").write_text("")
    with pytest.raises(EditError, match="LKE_CACHE cannot be"):
        TensorCache(None, "x")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below", "file/below/it"):
        with pytest.raises(EditError, match=r"some\.option cannot be the folder of a cache: .*a file, not a folder"):
            TensorCache(str(tmp_path / place), "some.option")


def test_a_digest_sees_names_dtypes_shapes_and_every_bit():
    tensor = torch.arange(6.0)
    others = [
        {"b": tensor}, {"a": tensor.double()}, {"a": tensor.view(2, 3)}, {"a": tensor.flip(0)},
        {"a": torch.cat([tensor[:5], tensor[5:].nextafter(torch.tensor(9.0))])},
    ]  # fmt: skip
    assert len({digest(tensors) for tensors in [{"a": tensor}, *others]}) == 6
    assert digest({"a": torch.arange(6.0), "b": tensor}) == digest({"b": tensor, "a": tensor})
