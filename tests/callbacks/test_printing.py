"""What users named is printed as it is."""

from lke_lightning.callbacks.printing import show
from lke_lightning.sweeps import report


def test_names_and_paths_are_no_markup(capsys):
    card = {
        "method": "my[/b]", "edits": 1, "data": "D[/i]", "batch_size": 1, "protocol": "teacher-forced", "before": None,
        "just_after": None, "final": None, "probability": {}, "weight_norms": {}, "seconds": {},
    }  # fmt: skip
    show(card, "runs/[/b]/scorecard.json", "runs/[/b]/last.ckpt")
    said = capsys.readouterr().out
    for text in ("my[/b]", "D[/i]", "runs/[/b]/scorecard.json", "runs/[/b]/last.ckpt"):
        assert text in said


def test_titles_and_rows_of_tables_are_no_markup(capsys):
    report.show("plan[/b]", [("row[/b]", {"status": "failed"})])
    said = capsys.readouterr().out
    assert "plan[/b]" in said
    assert "row[/b]" in said
