"""What the page does, without the page: a real run is asked, edited, undone and saved."""

import pytest

from lke_lightning.api import resume
from lke_lightning.edits import EditError
from lke_lightning.ledger import Ledger, locked
from lke_lightning.run_folder import Run
from lke_lightning.studio.session import Session, fact_of

FORM = {"prompt": "Bob was born in the", "subject": "Bob", "target": "city", "original": "river", "paraphrases": " \n"}


def test_edits_are_asked_undone_and_written_when_the_user_says_so(run):
    session = Session(resume(run), Run.read(run).root, new_tokens=3)
    before, points, size = session.now, len(session.room()), Ledger(run).size
    assert session.facts()[0] == {
        "id": "8", "prompt": "Ana was born in the", "target": "guitar", "state": "in the weights", "turn": "undo",
    }  # fmt: skip
    session.ask(" Ana was born in the ")
    assert [answer.title for answer in session.answers] == ["unedited", "edited"]
    assert session.nearest.id == "8"
    session.edit(FORM)
    assert session.facts()[0]["prompt"] == "Bob was born in the"
    assert session.now != before
    assert session.before["efficacy"]["magnitude"] < session.now["efficacy"]["magnitude"]
    assert len(session.room()) == points + 1
    new = session.facts()[0]["id"]
    session.turn(new)
    assert session.facts()[0]["turn"] == "redo"
    assert session.now["efficacy"] == pytest.approx(before["efficacy"], abs=1e-4)  # the fact replaced before is back
    assert (session.unsaved, Ledger(run).size) == (2, size)
    with locked(run):
        session.save()
    assert session.unsaved == 0
    events = [entry["event"] for entry in Ledger(run).read()]
    assert events[-3:] == ["edit", "batch", "undo"]
    assert new not in resume(run).edited


def test_a_wrong_edit_changes_nothing_and_the_session_goes_on(run):
    session = Session(resume(run), run, new_tokens=2)
    rows = session.facts()
    with pytest.raises(EditError, match="is not in the prompt"):
        session.edit({**FORM, "subject": "Bobby"})
    with pytest.raises(EditError, match="type a prompt"):
        session.ask(" ")
    with pytest.raises(EditError, match="nine"):
        session.turn("nine")
    assert (session.facts(), session.unsaved, session.doing) == (rows, 0, "")
    session.ask("Ana was born in the")
    assert session.answers


def test_a_form_is_a_fact():
    typed = {
        **FORM,
        "subject": " ",
        "paraphrases": "Bob is from the\n\n",
        "neighborhood": "Ana is in -> York\nCyd is in",
    }
    assert fact_of(typed) == {
        "prompt": "Bob was born in the", "target": "city", "original": "river", "paraphrases": ["Bob is from the"],
        "neighborhood": [{"prompt": "Ana is in", "answer": "York"}, "Cyd is in"],
    }  # fmt: skip
