"""Draws what a real model says before and after it was edited: `python docs/picture.py [RUN]`.

RUN is the folder of a run of `real`; its answers are then written to `ANSWERS` first. Of the edits that `real` asks
about, the edited prompt is asked, its first paraphrase, and its first neighbour.
"""

from __future__ import annotations

import json
import sys
import textwrap
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ANSWERS = ROOT / "results" / "real-smollm2-100-answers.json"
PICTURE = ROOT / "docs" / "images" / "before-after.svg"
KINDS = {
    "edited": "Asked as it was edited: the new answer",
    "paraphrase": "Asked in other words: the new answer",
    "neighborhood": "Asked about something else: the old answer",
}
LEFT, BEFORE, AFTER, WIDTH, LINE = 20, 466, 700, 945, 22
"""Where the columns begin, how wide the picture and how high a line is, in pixels."""


def asked(run: str) -> dict[str, Any]:
    """Return what the unedited and the edited model of a run say."""
    from lke_lightning import export
    from lke_lightning.callbacks.speaking import Speaking
    from lke_lightning.data import own_request
    from lke_lightning.demo.facts import FACTS
    from lke_lightning.evaluation.generated import respond
    from lke_lightning.results import versions

    requests = [own_request(json.loads(line)) for line in FACTS.read_text().splitlines()]
    editor, how = export.load(Path(run)), Speaking()
    some = requests[:: len(requests) // how.edits][: how.edits]
    found = {
        "edited": [(one.text, one.target) for one in some],
        "paraphrase": [(one.paraphrases[0], one.target) for one in some],
        "neighborhood": [(one.neighborhood[0].prompt, one.neighborhood[0].answer) for one in some],
    }
    rows = [{"kind": kind, "prompt": prompt, "wanted": wanted} for kind in found for prompt, wanted in found[kind]]
    for when, moment in (("before", editor.as_unedited), ("after", editor.as_read)):
        with moment():
            said = respond(editor.language_model, [row["prompt"] for row in rows], how.new_tokens)
        for row, text in zip(rows, said, strict=True):
            row[when] = text.strip()
    command = "python -m lke_lightning real --trainer.default_root_dir RUN && python docs/picture.py RUN"
    return {"command": command, "edits": len(requests), "answers": rows, "versions": versions()}


def drawn(answers: list[dict[str, str]]) -> str:
    """Return the picture: SVG with a background of its own, so that it can be read on a light and on a dark page."""
    parts, y = [], 34
    for x, title in ((BEFORE, "before"), (AFTER, "after 100 edits")):
        parts.append(_text(x, y, title, "head"))
    for asked_as, title in KINDS.items():
        y += LINE + 12
        rows = [row for row in answers if row["kind"] == asked_as]
        held = sum(_holds(row) for row in rows)
        parts.append(_text(LEFT, y, f"{title} ({held} of {len(rows)})", "head"))
        for row in rows:
            y += LINE
            sign, kind = ("✓", "good") if _holds(row) else ("✗", "bad")
            parts += [
                _text(LEFT, y, row["prompt"], "prompt", BEFORE - LEFT - 10),
                _text(BEFORE, y, row["before"], "answer", AFTER - BEFORE - 10),
                _text(AFTER, y, f"{sign} {row['after']}", kind, WIDTH - AFTER - 20),
            ]
    style = (
        "text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#24292f}"
        ".head{font-weight:600}.prompt{fill:#57606a}.good{fill:#0a5d2a}.bad{fill:#a40e26}"
    )
    height = y + 22
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>Answers of SmolLM2-135M-Instruct before and after 100 edits</title><style>{style}</style>'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fff" stroke="#d0d7de"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _holds(row: dict[str, str]) -> bool:
    """Say whether the edited model's text begins with the answer that is wanted."""
    return row["after"].casefold().startswith(row["wanted"].casefold())


def _text(x: int, y: int, words: str, kind: str, width: int = WIDTH) -> str:
    """Return a line of text, cut behind a word where it would leave its column at 7 pixels a letter."""
    shown = textwrap.shorten(words, width // 7, placeholder=" …")
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(shown)}</text>'


if __name__ == "__main__":
    if sys.argv[1:]:
        ANSWERS.write_text(json.dumps(asked(sys.argv[1]), indent=1, ensure_ascii=False) + "\n")
    PICTURE.write_text(drawn(json.loads(ANSWERS.read_text())["answers"]))
