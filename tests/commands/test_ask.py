"""Both models are asked the same, and answer as they do elsewhere."""

import io

import pytest

from lke_lightning import export
from lke_lightning.cli import main
from lke_lightning.commands.ask import nearest
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.generated import complete

PROMPT = "Ana was born in the"


def test_both_answer_and_the_nearest_edit_is_told(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    editor = export.load(finished)
    with editor.as_unedited():
        before = complete(editor.language_model, [PROMPT], 5)[0].strip()
    with editor.as_read():
        after = complete(editor.language_model, [PROMPT], 5)[0].strip()
    assert before != after
    main(["ask", str(finished), PROMPT, "--new_tokens", "5"])
    said = capsys.readouterr().out
    assert f" {before} " in said
    assert f" {after} " in said
    assert "unedited" in said
    assert f"Edit 8: {PROMPT} -> guitar" in said


def test_a_model_without_a_run_answers_alone(small_world, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n\nBob was born in the\n"))
    main(["ask", "--pretrained", str(small_world / "model"), "--new_tokens", "2"])  # line by line, until the input ends
    said = capsys.readouterr().out
    assert PROMPT in said
    assert "Bob was born in the" in said
    assert "unedited" not in said
    assert "Edit" not in said
    main(["ask", "Cyd was", "Dan was", "--pretrained", str(small_world / "model"), "--new_tokens", "2"])
    said = capsys.readouterr().out
    assert "Cyd was" in said
    assert "Dan was" in said


def test_a_wrong_line_does_not_end_the_conversation(finished, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'Ana ' * 3000}\n{PROMPT}\n"))
    main(["ask", str(finished), "--new_tokens", "2"])
    said = capsys.readouterr()
    assert "\nerror: " in f"\n{said.err}"
    assert PROMPT in said.out


def test_the_nearest_edit_is_about_the_longest_subject_and_worded_most_alike():
    edits = [
        EditRequest("a", "The capital of {} is", " X", subject="York"),
        EditRequest("b", "The mayor of {} is", " Y", subject="New York"),
        EditRequest("c", "The capital of {} is", " Z", subject="New York"),
    ]
    assert nearest("What is the capital of new york?", edits).id == "c"
    assert nearest("Who is the mayor of York?", edits).id == "a"
    assert nearest("Where is Rome?", edits) is None
    again = EditRequest("d", "The capital of {} is", " W", subject="New York", relation="capital")
    assert nearest("The capital of New York is", [*edits, again]).id == "d"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the folder of a run"),
        (["nowhere", "x"], "neither a checkpoint nor"),
        (["x", "--new_tokens", "0"], "1"),
    ],
)
def test_bad_input(words, message):
    with pytest.raises(SystemExit, match=message):
        main(["ask", *words])


def test_an_edit_without_a_subject_is_named_by_its_prompt():
    edits = [EditRequest("a", "The tallest bird is the", "emu")]
    assert nearest("the tallest bird is the", edits).id == "a"
    assert nearest("The smallest bird is the", edits) is None
