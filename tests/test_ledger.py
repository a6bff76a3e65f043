"""The ledger: append, cut, read what is whole, tell what became of edits."""

import pytest

from lke_lightning.edits import EditError
from lke_lightning.ledger import DISCARDED, Ledger, locked


def names(ledger, size=None):
    return [entry["id"] for entry in ledger.read(size)]


def test_entries_come_back_in_order_with_their_time(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append([{"event": "note", "id": "ä"}, {"event": "note", "id": "2"}])
    first = ledger.size
    ledger.append([{"event": "note", "id": "3"}])
    assert names(ledger) == ["ä", "2", "3"]
    assert names(ledger, first) == ["ä", "2"]
    assert all(entry["time"].endswith("+00:00") for entry in ledger.read())


def test_what_no_checkpoint_knows_is_cut_out_and_kept_elsewhere(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append([{"event": "note", "id": "1"}])
    size = ledger.size
    ledger.append([{"event": "note", "id": "2"}])
    with ledger.path.open("a") as file:
        file.write('{"event": "edi')  # the process died here
    assert names(ledger) == ["1", "2"]
    assert ledger.cut(size) == 1
    assert names(ledger) == ["1"]
    assert '"id": "2"' in (tmp_path / DISCARDED).read_text()
    assert ledger.cut(size) == 0
    with pytest.raises(EditError, match="changed or replaced"):
        ledger.cut(size + 1)


def test_a_fork_takes_the_past_along(tmp_path):
    ledger, fork = Ledger(tmp_path / "a"), Ledger(tmp_path / "b")
    ledger.append([{"event": "note", "id": "1"}])
    size = ledger.size
    ledger.append([{"event": "note", "id": "2"}])
    fork.path.parent.mkdir()
    fork.begin_with(ledger, size)
    assert names(fork) == ["1"]
    with pytest.raises(EditError, match="bytes"):
        fork.begin_with(ledger, 10**6)


def test_a_line_that_is_no_entry_is_named(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append([{"event": "note", "id": "1"}, {"event": "note", "id": "2"}])
    for damage in (b"not json", b"[1]", b'{"id": "2"}', b"\xff\xfe"):
        lines = ledger.path.read_bytes().splitlines(keepends=True)
        ledger.path.write_bytes(lines[0] + damage + b"\n")
        with pytest.raises(EditError, match="line 2 is not an entry"):
            list(ledger.read())


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(EditError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert (tmp_path / ".lock").is_file()
