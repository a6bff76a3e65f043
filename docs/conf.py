"""How Sphinx makes a site of the README, CONTRIBUTING and the pages of this folder: `make docs`."""

from __future__ import annotations

import os
import re
import shutil
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
INDEX = "docs/README"

project = "lke_lightning"
release = metadata.version("lke-lightning")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
html_static_path = ["site.css"]
html_css_files = ["site.css"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "docs/**/*.md"]
exclude_patterns = [".*", "build", "runs", "shared"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
default_role = "code"  # of docstrings, which have Markdown's backticks


def _menu(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to the first page a menu that no other reader sees: the pages of the index, each where it is named first."""
    if page == root_doc:
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n\n{INDEX}\n```\n"
        seen: set[str] = set()
        for section in re.split(r"^## ", (ROOT / f"{INDEX}.md").read_text(), flags=re.MULTILINE)[1:]:
            linked = [os.path.normpath(f"docs/{found}") for found in re.findall(r"\]\(([\w./-]+)\.md", section)]
            pages = [found for found in dict.fromkeys(linked) if found not in seen]
            seen |= set(pages)
            if pages:
                entries = "\n".join(f"/{found}" for found in pages)
                title = section.partition("\n")[0]
                source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```\n"


def _folders(app: Sphinx, page: str, source: list[str]) -> None:
    """Keep the words of links to folders, which a site does not have."""
    here = (ROOT / page).parent

    def kept(link: re.Match[str]) -> str:
        return link[1] if (here / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"\[([^]]*)\]\(([\w./-]+)\)", kept, source[0])


def _front(app: Sphinx, error: Exception | None) -> None:
    """Give the first page the name that a server opens."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Connect what is done before and after."""
    app.connect("source-read", _folders)
    app.connect("source-read", _menu)
    app.connect("build-finished", _front)
