"""The page of real and of odd runs: complete, self-contained, and readable by a browser where there is one."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from lke_lightning.cli import main

VOID = {"meta", "br", "hr", "img", "link", "input"}
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")
EDIT = {"event": "edit", "prompt": "A is", "subject": "A", "target": "b", "weight": 1.0}
KINDS = ("efficacy", "paraphrase", "neighborhood")


class Page(HTMLParser):
    """What is in a page, as a browser would take it; elements must be closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.attributes, self.figures = "", [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "img":
            found = dict(attrs)
            self.figures[found["alt"]] = base64.b64decode(found["src"].partition("base64,")[2]).decode()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def made(*places, output):
    main(["report", *map(str, places), "--output", str(output)])
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "new" / "page.html"
    return output, made(finished, output=output)


def test_the_page_is_whole_and_shows_all_that_was_measured(whole, finished):
    page = Page(whole[1])
    assert list(page.figures) == [
        "Just after each batch", "Room for new edits", "All edits so far", "Perplexity", "Retention per batch",
        "By age of edit", "Confidence in answers", "Norm growth", "Norms by depth", "Ordinary keys",
        "Contributions to the residual stream", "Spectrum of the change", "Steps to stop",
    ]  # fmt: skip
    for drawn in page.figures.values():
        assert drawn.count("<path") > 5
    for said in ("ENCORE", str(finished), "batch-00000005.ckpt", "torch", "NormPenalty", "warn", "stage one"):
        assert said in page.text, said
    assert "Not finished" not in page.text
    assert [path.name for path in whole[0].parent.iterdir()] == ["page.html"]


def test_nothing_is_loaded_from_anywhere(whole):
    page = Page(whole[1])
    assert {tag for tag, *_ in page.attributes} & {"script", "link", "iframe", "object"} == set()
    ids = {value for _, name, value in page.attributes if name == "id"}
    for tag, name, value in page.attributes:
        if name == "href":
            assert value.removeprefix("#") in ids, value
        if name == "src":
            assert value.startswith("data:image/svg+xml;base64,"), (tag, value[:80])
    assert not re.search(r"https?://|@import|url\(", whole[1])
    for drawn in page.figures.values():
        assert not re.search(r"href=\"(?!#)(?!data:)", drawn)


def test_what_others_wrote_is_text_and_not_markup(written, tmp_path):
    guard = {"event": "guard", "batch": 0, "action": "<i>", "measured": {"norm_growth": 2.0},
             "limits": {"norm_growth": 1.0}}  # fmt: skip
    card = {"method": "<u>M</u>", "edits": 1, "final": {"<b>": {"success": 1.0}},
            "generated": {"examples": [{"prompt": "<script>a&b", "target": "x", "said": "\"'<s>"}]}}  # fmt: skip
    text = made(written("run", card, [guard]), output=tmp_path / "out.html")
    page = Page(text)
    assert not re.search(r"<(u|i|b|s|script)>", text)
    for said in ("<u>M</u>", "<i>", "<b> / success", "<script>a&b", "\"'<s>"):
        assert said in page.text, said


def test_several_runs_side_by_side(finished, written, tmp_path):
    kinds = {kind: {"success": 0.5} for kind in KINDS}
    other = written("older", {"method": "MEMIT", "edits": 9, "final": {**kinds, "score": 0.5}})
    text = made(finished, other, output=tmp_path / "out.html")
    page = Page(text)
    assert "2 runs" in page.text
    assert finished.name in page.text
    assert "<td>older</td><td>9</td>" in text
    assert "Not finished" not in page.text
    assert "Norm growth" in page.figures


def test_an_unfinished_run_has_a_page_and_says_so(written, tmp_path):
    entries = [
        {
            **EDIT,
            "number": i,
            "id": str(i),
            "batch": i,
            "steps": 3,
            "stopped_by": "MaxSteps",
            "success_just_after": True,
        }
        for i in range(3)
    ] + [
        {"event": "batch", "batch": i, "edits": 1, "norm_growth": {"3": 1.5 + i}, "time": f"2026-01-01T00:00:0{i}"}
        for i in range(3)
    ]
    page = Page(made(written("young", entries=entries), output=tmp_path / "out.html"))
    assert "Not finished: young" in page.text
    assert list(page.figures) == ["Just after each batch", "Norm growth", "Steps to stop"]


def test_a_run_that_has_not_begun_has_a_page(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").touch()
    page = Page(made(tmp_path / "run", output=tmp_path / "out.html"))
    assert "Not finished: run" in page.text
    assert page.figures == {}


def test_a_broken_model_has_a_page_too(written, tmp_path):
    """Perplexities that overflow, norms that are no number, scores of nothing but zeros."""
    card = {
        "method": "M", "edits": 4, "batch_size": 2, "seconds": {"total": 0.0}, "retention": [],
        **{moment: {**{kind: {"success": 0.0} for kind in KINDS}, "score": 0.0} for moment in ("before", "final")},
        "weight_norms": {"0": {"before": 1.0, "after": float("nan")}, "1": {"before": 1.0, "after": float("inf")}},
        "perplexity": {"before": 3.0, "final": float("inf")},
    }  # fmt: skip
    page = Page(made(written("run", card), output=tmp_path / "out.html"))
    assert "inf" in page.text
    assert {"Perplexity", "Norm growth"} <= set(page.figures)


def test_without_an_output_it_goes_beside_the_runs(written):
    folder = written("runs/one", {"edits": 0})
    written("runs/two", {"edits": 0})
    main(["report", str(folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "scorecard.json"]
    main(["report", str(folder.parent)])
    assert (folder.parent / "report.html").is_file()


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page_within_its_width(whole, tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    picture = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width},3000", f"--screenshot={picture}", whole[0].as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(picture) as image:
        assert image.width == width
        shades = image.convert("L").histogram()
    assert sum(count > 0 for count in shades) > 50
    assert max(shades) < 0.99 * sum(shades)
