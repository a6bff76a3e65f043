"""Figures as readers see them: nothing cut off, the same colour for the same run, no setting left changed."""

import matplotlib
import pytest

from lke_lightning.report.figures import COLOURS, EXHIBITS, GREY, STYLE, as_image
from lke_lightning.report.reading import read_all

SURE = next(exhibit for exhibit in EXHIBITS if exhibit.title == "Confidence in answers")
ROOM = next(exhibit for exhibit in EXHIBITS if exhibit.title == "Room for new edits")
GROWTH = next(exhibit for exhibit in EXHIBITS if exhibit.title == "Norm growth")


def card(**more):
    likely = {"per_token": {"mean": 0.5, "histogram": [1, 2, 3, 4]}}
    return {"edits": 4, "probability": {"edited_just_after": likely, "known_originals": likely}, **more}


@pytest.mark.parametrize(
    "name", ["m{}", "MEMIT with a norm constraint of 0.1, run {}", "{}" + "x" * 150, "_{}", "$\\frac{}$"]
)
def test_the_legend_of_six_runs_is_within_the_figure(written, name):
    runs = read_all([str(written(name.replace("{}", str(number)), card())) for number in range(6)])
    with matplotlib.rc_context(STYLE):
        figure = SURE.draw(runs)
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) >= 6
    assert legend.x0 >= 0
    assert legend.y0 >= 0
    assert legend.x1 <= figure.bbox.x1
    plot = figure.axes[0].get_tightbbox()
    assert legend.y1 <= plot.y0 + 1, "the legend covers the plot"


def test_a_run_has_its_colour_also_where_others_have_nothing_to_draw(written):
    norms = {"weight_norms": {"0": {"before": 1.0, "after": 2.0}}}
    runs = read_all(
        [str(written(name, {"edits": 4, **more})) for name, more in (("a", {}), ("b", norms), ("c", norms))]
    )
    lines = {line.get_label(): line.get_color() for line in GROWTH.draw(runs).axes[0].get_lines()}
    assert lines == {"b": COLOURS[1], "c": COLOURS[2]}


def test_of_several_runs_references_are_the_first_ones_and_grey(written):
    runs = read_all([str(written(name, card())) for name in ("a", "b")])
    lines = [(line.get_label(), line.get_color()) for line in SURE.draw(runs).axes[0].get_lines()]
    assert lines == [("known: answers that edits replace (mean 0.50)", GREY), ("a", COLOURS[0]), ("b", COLOURS[1])]


def test_of_several_runs_the_largest_growth_of_any_layer_is_drawn(written):
    norms = {"0": {"before": 1.0, "after": 2.0}, "1": {"before": 1.0, "after": 20.0}}
    runs = read_all([str(written(name, {"edits": 4, "weight_norms": norms})) for name in ("a", "b")])
    [axes] = GROWTH.draw(runs).axes
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[1.0, 20.0]] * 2
    assert axes.get_yscale() == "log"


def test_of_several_runs_the_fulfilment_is_drawn_where_it_was_recorded(written):
    def ledger(**more):
        return [{"event": "batch", "batch": i, "edits": 2, "norm_growth": {}, **more} for i in range(2)]

    known = {"fulfilment": {"3": 0.8, "4": 0.6, "5": 0.5}}
    runs = read_all([str(written(name, entries=ledger(**more))) for name, more in (("old", {}), ("new", known))])
    [line] = ROOM.draw(runs).axes[0].get_lines()
    assert line.get_label() == "new"
    assert list(line.get_ydata()) == [0.6, 0.6]
    assert ROOM.draw(runs[:1]) is None


def test_points_over_edits_are_averaged_and_keep_their_ends():
    shown = GROWTH._thinned([(i + 1, float(i)) for i in range(100)])
    assert len(shown) == 25
    assert shown[0] == (4, 1.5)
    assert shown[-1][0] == 100
    assert GROWTH._thinned(shown) == shown


def test_drawing_leaves_the_settings_of_matplotlib_alone(written):
    before = dict(matplotlib.rcParams)
    image, is_wide = as_image(SURE.draw, read_all([str(written("run", card()))]))
    assert image.startswith("data:image/svg+xml;base64,")
    assert not is_wide
    assert dict(matplotlib.rcParams) == before
