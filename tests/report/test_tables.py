"""The table of runs: what is in it, and what is bold."""

from lke_lightning.report.reading import read_all
from lke_lightning.report.tables import table


def card(success, edits=100, **more):
    kinds = ("efficacy", "paraphrase", "neighborhood")
    final = {**{kind: {"success": success} for kind in kinds}, "score": success, **more}
    return {"edits": edits, "final": final, "weight_norms": {"0": {"before": 1.0, "after": 2.0 / success}}}


def made(written, **cards):
    return table(read_all([str(written(name, card)) for name, card in cards.items()]))


def test_the_best_of_each_column_is_bold_high_or_low(written):
    header, rows, best = made(written, a=card(0.9), b=card(0.5))
    assert header == ["Run", "Edits", "Efficacy", "Paraphrase", "Neighborhood", "S", "Norm growth"]
    assert rows[0] == ["a", "100", "90.0", "90.0", "90.0", "90.0", "2.22"]
    assert best == {(0, column) for column in range(2, 7)}


def test_runs_with_fewer_edits_are_not_compared(written):
    assert made(written, a=card(0.9, edits=10), b=card(0.5))[2] == set()


def test_intervals_are_told_as_half_their_width(written):
    _, [row], _ = made(written, a=card(0.9, intervals={"efficacy": {"success": [0.85, 0.93]}}))
    assert row[2:4] == ["90.0 ± 4.0", "90.0"]


def test_what_was_not_measured_is_left_empty_or_out(written):
    broken = {**card(0.5), "perplexity": {"before": 2, "final": 3e7}}
    header, rows, _ = made(written, a={"edits": 3, "final": None}, b=broken)
    assert rows[0][2:] == [""] * (len(header) - 2)
    assert rows[1][header.index("Perplexity")] == "3.0e+07"
    assert "Downstream" not in header
