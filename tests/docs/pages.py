"""The pages that people read, as Markdown parsers see them."""

import json
import re
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt  # rich needs it, so it is there

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name(path):
    return str(path.relative_to(ROOT))


@cache
def tokens(path):
    """Return the parts of a page, or of the text in a notebook."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return MarkdownIt("commonmark").enable("table").parse(text)


def parts(path):
    """Return the parts of all lines of a page."""
    return [part for token in tokens(path) if token.type == "inline" for part in token.children]


def links(path):
    """Return where the links and pictures of a page lead."""
    return [found for part in parts(path) if (found := part.attrGet("href") or part.attrGet("src"))]


def anchors(path):
    """Return the anchors of a page's headings, by the rule of GitHub."""
    found, pairs = [], zip(tokens(path), tokens(path)[1:], strict=False)
    for heading in (after for before, after in pairs if before.type == "heading_open"):
        words = "".join(part.content for part in heading.children if part.type in ("text", "code_inline"))
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.append(f"{slug}-{before}" if (before := found.count(slug)) else slug)
    return found


def blocks(path, language):
    """Return the fenced blocks of a language, as pairs of the first line's number and the text."""
    fences = [token for token in tokens(path) if token.type == "fence"]
    return [(token.map[0] + 1, token.content) for token in fences if token.info == language]
