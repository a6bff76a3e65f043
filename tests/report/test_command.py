"""The page of real tiny runs: complete, self-contained, and readable by a browser where there is one."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from lke_lightning.cli import main
from lke_lightning.report.canvas import LIGHT, PAGE, averaged, spans, style
from lke_lightning.report.figures import EXHIBITS

VOID = {"meta", "br", "hr", "img", "link", "input"}
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")


class Page(HTMLParser):
    """What is in a page, as a browser would take it; elements must be closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.attributes, self.ids, self.figures, self.drawn = "", [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "figure":
            self.figures.append(dict(attrs)["id"])
        if "figure" in self.open and tag in ("path", "use", "image"):
            self.drawn.append(self.figures[-1])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def made(*places, output):
    main(["report", *map(str, places), "--output", str(output)])
    return (output / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "new"
    return output, made(finished, output=output)


def test_the_page_is_whole_and_shows_all_that_was_measured(whole, finished):
    page = Page(whole[1])
    assert page.open == []
    slugs = [exhibit.slug for exhibit in EXHIBITS]
    assert page.figures == [slug for slug in slugs if slug in page.figures]
    # its facts have no paraphrases, so there is no S
    assert set(slugs) - set(page.figures) <= {"score", "downstream", "retention"}
    assert {slug: page.drawn.count(slug) > 10 for slug in page.figures} == dict.fromkeys(page.figures, True)
    for said in ("ENCORE", "9 edits", "teacher-forced", "norm growth", str(finished), "batch-00000005.ckpt",
                 "torch", "NormPenalty", r"\toprule", "warn"):  # fmt: skip
        assert said in page.text, said


def test_nothing_is_loaded_from_anywhere(whole):
    page = Page(whole[1])
    assert {tag for tag, *_ in page.attributes} & {"script", "link", "iframe", "img", "object"} == set()
    for tag, name, value in page.attributes:
        if name in ("href", "src", "xlink:href", "data"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:80])
    assert not re.search(r"https?://|@import|url\((?!#)", whole[1])


def test_identifiers_are_unique_and_references_lead_somewhere(whole):
    page = Page(whole[1])
    assert len(page.ids) == len(set(page.ids))
    wanted = re.findall(r"url\(#([^)]+)\)", whole[1])
    wanted += [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert wanted
    assert set(wanted) <= set(page.ids)


def test_colours_of_figures_are_those_of_the_page(whole):
    drawn = "".join(re.findall(r"<svg.*?</svg>", whole[1], re.DOTALL))
    assert "var(--series-0)" in drawn
    assert "var(--text)" in drawn
    assert not [colour for colour in (PAGE.text, PAGE.muted, *PAGE.series) if colour in drawn]
    for name in set(re.findall(r"var\((--[\w-]+)\)", whole[1])):
        assert len(re.findall(rf"{name}:#", whole[1])) == 2, f"{name} needs a light and a dark value"


def test_figures_and_tables_are_files_and_not_empty(whole):
    output, text = whole
    for slug in Page(text).figures:
        with Image.open(output / "figures" / f"{slug}.png") as image:
            colours = image.convert("RGB").getcolors(2**24)
            assert image.width > 600
        assert len(colours) > 20
        pdf = (output / "figures" / f"{slug}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert pdf.rstrip().endswith(b"%%EOF")
    assert r"\begin{tabular}" in (output / "table.tex").read_text()
    assert (output / "table.md").read_text().startswith("| Run |")


def test_what_others_wrote_is_text_and_not_markup(written, tmp_path):
    entry = {"event": "edit", "id": "<i>", "batch": 0, "prompt": "<script>{}", "subject": "a&b", "target": "<b>",
             "original": None, "steps": 1, "stopped_by": "MaxSteps", "accurate_just_after": False,
             "nll_just_after": 1.0}  # fmt: skip
    text = made(written("run", {"method": "<u>M</u>", "edits": 1}, [entry]), output=tmp_path / "out")
    page = Page(text)
    assert {"script", "i", "u"} & {tag for tag, *_ in page.attributes} == set()
    assert "<script>a&b" in page.text
    assert "<u>M</u>" in page.text
    assert "Not finished" in page.text


def test_several_runs_side_by_side(finished, written, tmp_path):
    kinds = {kind: {"success": 0.5} for kind in ("efficacy", "paraphrase", "neighborhood")}
    other = written("older", {"method": "MEMIT", "edits": 9, "final": {**kinds, "score": 0.5}})
    page = Page(made(finished, other, output=tmp_path / "out"))
    assert page.open == []
    assert "2 runs" in page.text
    for name in (finished.name, "older"):
        assert name in page.text
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| older | 9 | 50.0 | 50.0 |" in table
    assert table.count("**") == 2, "efficacy is the only figure that both have"


def test_a_broken_model_has_a_page_too(written, tmp_path):
    """Perplexities that overflow, norms that are no number, scores of nothing but zeros."""
    kinds = ("efficacy", "paraphrase", "neighborhood")
    card = {
        "method": "M", "edits": 4, "batch_size": 2, "seconds": {"total": 0.0}, "retention": [],
        **{moment: {**{kind: {"success": 0.0} for kind in kinds}, "score": 0.0} for moment in ("before", "final")},
        "weight_norms": {"0": {"before": 1.0, "after": float("nan")}, "1": {"before": 1.0, "after": float("inf")}},
        "perplexity": {"before": 3.0, "final": float("inf")},
    }  # fmt: skip
    page = Page(made(written("run", card), output=tmp_path / "out"))
    assert page.open == []
    assert "inf" in page.text
    assert {"scores", "perplexity", "norm-growth"} <= set(page.figures)


def test_without_an_output_it_goes_into_the_folder_of_the_run(written):
    folder = written("run", {"edits": 0})
    main(["report", str(folder)])
    assert (folder / "report" / "index.html").is_file()
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(("place", "message"), [("nowhere", "no folder 'nowhere'"), (".", "neither the folder")])
def test_bad_places_are_refused(place, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["report", place])
    assert list(tmp_path.iterdir()) == []


def test_points_are_averaged_and_keep_their_ends():
    points = [(i + 1, float(i)) for i in range(100)]
    shown = averaged(points, 25)
    assert len(shown) == 25
    assert shown[0] == (4, 1.5)
    assert shown[-1][0] == 100
    assert averaged(points[:3], 25) == points[:3]


def test_scales_are_logarithmic_where_values_differ_much():
    assert spans([1.0, 10.0])
    assert not spans([1.0, 2.0])
    assert not spans([])


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style(LIGHT):
        assert matplotlib.rcParams["text.color"] == LIGHT.text
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_the_page_within_its_width(whole, tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    picture = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width},3000", f"--screenshot={picture}", (whole[0] / "index.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(picture) as image:
        assert image.width == width
        shades = image.convert("L").histogram()
    assert sum(count > 0 for count in shades) > 50
    assert max(shades) < 0.99 * sum(shades)
