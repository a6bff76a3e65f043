"""Every link of the pages leads somewhere, on GitHub and on the site; the index has every page."""

import importlib
import itertools
import json
import re
import runpy
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest

import lke_lightning
from tests.docs.pages import NOTEBOOKS, PAGES, ROOT, anchors, blocks, links, name, parts


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_links_lead_somewhere(page):
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.exists(), f"{link}: there is no such file"
        assert ROOT in (target, *target.parents), f"{link} leads out of the repository"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("page", [page for page in [*PAGES, *NOTEBOOKS] if page.stem != "CHANGELOG"], ids=name)
def test_files_and_programs_that_a_line_names_are_there(page):
    words = [word for part in parts(page) if part.type == "code_inline" for word in part.content.split()]
    for before, word in itertools.pairwise(["", *words]):
        if re.fullmatch(r"(benchmarks|configs|docs|lke_lightning|notebooks|results|tests)/[\w./-]+", word):
            assert "NAME" in word or (ROOT / word).exists(), word
        if before == "-m" and word.startswith(("benchmarks.", "lke_lightning", "tests.")):
            assert find_spec(word), word


def test_the_index_has_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / urlsplit(link).path).resolve() for link in links(index)}
    assert set((ROOT / "docs").glob("*.md")) - {index} <= linked


def test_the_reference_has_every_public_name_and_every_slot():
    [*given] = re.findall(
        r"auto\w+:: (\S+)", "".join(text for _, text in blocks(ROOT / "docs" / "api.md", "{eval-rst}"))
    )
    for path in given:
        module, _, attribute = path.rpartition(".")
        assert getattr(importlib.import_module(module or "lke_lightning"), attribute).__doc__, path
    adding = (ROOT / "CONTRIBUTING.md").read_text().partition("## Adding a method")[2]
    [listed] = re.findall(r"the others of its kind \(a (.*?)\)", adding)
    slots = re.findall(r"`(\w+)`", listed)
    assert len(slots) >= 12
    assert {*lke_lightning.__all__, *slots, "StepView"} == {path.rpartition(".")[2] for path in given}


def test_the_readme_is_short_and_shows_what_was_measured():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    result = json.loads((ROOT / "results" / "real-smollm2-100.json").read_text())
    for when in ("before", "just_after", "final"):
        kinds = [result[when][kind] for kind in ("efficacy", "paraphrase", "neighborhood")]
        cells = [f"{kind['success']:.3f} ({kind['accuracy']:.3f})" for kind in kinds]
        assert f"{when.replace('_', ' '):10} │ {' │ '.join(cells)} │ {result[when]['score']:.3f}" in text
    families = json.loads((ROOT / "results" / "families.json").read_text())["families"]
    assert f"{len(families)} families tested" in text


def test_the_picture_is_drawn_from_its_file():
    script = runpy.run_path(str(ROOT / "docs" / "picture.py"))
    answers = json.loads(script["ANSWERS"].read_text())["answers"]
    assert script["drawn"](answers) == script["PICTURE"].read_text()
