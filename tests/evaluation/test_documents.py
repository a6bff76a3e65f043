"""Text files that can be read, and those that cannot."""

import pytest

from lke_lightning.edits import EditError
from lke_lightning.evaluation.documents import check_files, read_documents


def test_documents_are_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \n two \n")
    (tmp_path / "b.txt").write_text("three")
    assert list(read_documents([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], "x")) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no text file '.*a.txt' \(drift.text\)"),
        (b"", "holds no text"),
        (b"\n  \n", "holds no text"),
        ("Zürich".encode("latin-1"), "a.txt' .drift.text. is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, content, message):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EditError, match=message):
        check_files([str(path)], "drift.text")


def test_a_file_that_must_not_be_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(EditError, match="cannot be read: Permission denied"):
        check_files([str(tmp_path / "a.txt")], "drift.text")


def test_what_is_wrong_behind_the_beginning_is_told_when_it_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good text\n" * 10_000 + b"\xff\n")
    check_files([str(tmp_path / "a.txt")], "drift.text")
    with pytest.raises(EditError, match="is not UTF-8"):
        list(read_documents([str(tmp_path / "a.txt")], "drift.text"))
