"""What is shown of long work, on a terminal and in a log."""

import io

import pytest

from lke_lightning import progress
from lke_lightning.progress import Bars, Lines, Nobody, reported, reporter_for, track, work


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_has_a_line_of_what_cannot_be_counted_and_now_and_then_one_of_the_rest(monkeypatch):
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with reported(Lines(log)), work("Loading it"):
        for _ in track(range(100), "reading", "passes"):
            now[0] += 1
    assert log.getvalue().splitlines() == ["Loading it"] + [
        f"Loading it; reading: {done} of 100 passes" for done in range(10, 101, 10)
    ]


def test_a_loop_that_is_left_early_is_no_work_any_more():
    seen = []

    class Ears:
        def show(self, works):
            seen.append([str(one) for one in works])

    with reported(Ears()):
        for step in track(range(5), "steps"):
            if step:
                break
        with pytest.raises(KeyError), work("failing"):
            raise KeyError
    assert seen == [["steps: 0 of 5"], ["steps: 1 of 5"], [], ["failing"], [], []]


def test_nothing_is_shown_where_nobody_asked(capfd):
    assert list(track("ab", "letters")) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_a_bar_goes_with_its_work(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with reported(Bars()), work("Editing [x]", 2, "batches") as editing:
        editing.advance()
        assert "Editing [x]" in screen.getvalue()
    assert "Editing" not in screen.getvalue().split("\x1b[2K")[-1]  # which erases a line


def test_who_reports(monkeypatch):
    for name in progress.RANKS:
        monkeypatch.delenv(name, raising=False)
    assert isinstance(reporter_for(Terminal()), Bars)
    assert isinstance(reporter_for(Terminal(), bar=False), Lines)
    assert isinstance(reporter_for(io.StringIO()), Lines)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert isinstance(reporter_for(Terminal()), Nobody)
