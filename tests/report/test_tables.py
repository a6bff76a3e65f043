"""Tables for papers: what is in them, what is bold, what is escaped."""

from lke_lightning.report.reading import RunRecord
from lke_lightning.report.tables import latex, markdown, table


def card(success, edits=100, **more):
    kinds = ("efficacy", "paraphrase", "neighborhood")
    final = {**{kind: {"success": success} for kind in kinds}, "score": success, **more}
    return {"edits": edits, "final": final, "weight_norms": {"0": {"before": 1.0, "after": 2.0 / success}}}


def read(written, **cards):
    return [RunRecord.read(written(name, card), name.replace("_", " & ")) for name, card in cards.items()]


def test_the_best_of_each_column_is_bold_high_or_low(written):
    runs = read(written, a_b=card(0.9), c=card(0.5))
    made = table(runs)
    assert made.header == ["Edits", "Efficacy", "Paraphrase", "Neighborhood", "S", "Norm growth"]
    assert made.rows[0] == ("a & b", ["100", "90.0", "90.0", "90.0", "90.0", "2.22"])
    assert made.best == {(0, column) for column in range(1, 6)}
    assert "| a & b | 100 | **90.0** |" in markdown(runs)
    assert r"a \& b & 100 & \textbf{90.0}" in latex(runs)


def test_runs_with_fewer_edits_are_not_compared(written):
    assert table(read(written, a=card(0.9, edits=10), b=card(0.5))).best == set()


def test_intervals_are_told_as_half_their_width(written):
    intervals = {"efficacy": {"success": [0.85, 0.93]}}
    text = latex(read(written, a=card(0.9, intervals=intervals)))
    assert r"90.0 $\pm$ 4.0" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_what_was_not_measured_is_left_empty_or_out(written):
    runs = read(written, a={"edits": 3, "final": None}, b={**card(0.5), "perplexity": {"before": 2, "final": 3e7}})
    made = table(runs)
    assert made.rows[0][1][1:] == [""] * (len(made.header) - 1)
    assert made.rows[1][1][made.header.index("Perplexity")] == "3.0e+07"
    assert "Downstream F1" not in made.header
    assert "a & 3 & -- &" in latex(runs)
