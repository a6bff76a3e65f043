"""The page, in NiceGUI: nothing but this machine is asked for anything, not even for a font."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import HTTPException
from fastapi.responses import HTMLResponse
from nicegui import app, run, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lke_lightning.callbacks.printing import number
from lke_lightning.commands.ask import Answer
from lke_lightning.edits import KINDS, EditError
from lke_lightning.report.page import page as report_page
from lke_lightning.report.reading import read_all
from lke_lightning.studio.session import ARROW, SCORED, Session

CSS = """
body, .q-field, .q-btn, .q-table {font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif}
.q-btn {text-transform: none}
.page {max-width: 1240px; margin: 0 auto; display: grid; grid-template-columns: minmax(0, 8fr) minmax(0, 5fr)}
.page, .page > .nicegui-column {gap: 18px}
.page .q-card {width: 100%; box-shadow: none; border: 1px solid #8884; border-radius: 12px; gap: 10px; padding: 18px}
.quiet {opacity: .68; font-size: .82rem; line-height: 1.4}
.said {white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem}
.token {white-space: nowrap; font-variant-numeric: tabular-nums; font-size: .82rem}
h2 {font-size: 1.05rem; font-weight: 600; line-height: 1.3; margin: 0}
@media (max-width: 900px) {.page {grid-template-columns: minmax(0, 1fr)}}
"""
TURN = """<q-td :props="props"><q-btn flat dense no-caps color="primary" :label="props.value"
 :aria-label="props.value + ' ' + props.row.id" @click="() => $parent.$emit('turn', props.row.id)"/></q-td>"""
"""The button of a row, which undoes its edit or writes it again."""
FIELDS = (
    ("prompt", "Prompt", "The capital of Kazakhstan is"),
    ("subject", "Subject, as it is in the prompt", "Kazakhstan"),
    ("target", "New answer", "Astana"),
    ("original", "Today's answer (optional; success compares with it)", "Nur-Sultan"),
)
LISTS = (
    ("paraphrases", "Other wordings, one per line (optional)", "Kazakhstan is governed from"),
    (
        "neighborhood",
        f"What must stay, prompt {ARROW} answer, one per line (optional)",
        f"Peru's capital is {ARROW} Lima",
    ),
)


def serve(session: Session, host: str, port: int, hosts: list[str]) -> None:
    """Serve the page until the process is told to stop.

    Args:
        session: what the page is of.
        host: the address to listen on.
        port: the port.
        hosts: the names by which requests may call this machine.
    """
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)  # else other sites could name this one as theirs
    app.on_startup(lambda: print(f"Studio  http://{host}:{port}  (Ctrl-C ends it)", flush=True))

    def tell() -> None:
        if session.unsaved:
            print(f"{session.unsaved} changes were not saved, and are lost", flush=True)

    app.on_shutdown(tell)  # by a signal too

    @app.get("/report")
    def report() -> HTMLResponse:
        try:
            return HTMLResponse(report_page(read_all([str(session.folder)])))
        except EditError as error:
            raise HTTPException(404, f"There is no report yet: {error}") from error

    @ui.page("/")
    def index() -> None:
        Tab(session)

    logging.getLogger("nicegui").setLevel(logging.ERROR)  # it counts milliseconds that a busy machine takes
    with suppress(KeyboardInterrupt):
        ui.run(
            host=host, port=port, title="Knowledge editing", favicon="✏️", dark=None, show=False, reload=False,
            show_welcome_message=False,
        )  # fmt: skip


class Tab:
    """One browser tab on a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._shown: Any = None
        ui.add_css(CSS)
        ui.colors(primary="#1c7cc0")
        self._header()
        with ui.element("div").classes("page w-full"):
            with ui.column().classes("min-w-0"):
                self._questions()
                self._facts()
            with ui.column().classes("min-w-0"):
                self._form()
                self._scores()
                self._room()
        ui.timer(0.15, self._follow)

    def _header(self) -> None:
        editor, session = self.session.model.editor, self.session
        with ui.row().classes("page w-full items-end pt-2"):
            with ui.element("div"):
                ui.label(f"{editor.method} on {type(session.model.model).__name__}").classes("text-xl font-semibold")
                ui.label(f"{editor.pretrained}, layers {', '.join(map(str, editor.language_model.layers))}").classes(
                    "quiet"
                )
            with ui.row().classes("items-center justify-end gap-3"):
                ui.link("Report of what is saved", "/report", new_tab=True)
                self._button("Save", session.save).bind_text_from(
                    session, "unsaved", lambda count: f"Save {count} change{'s' * (count != 1)}" if count else "Saved"
                ).bind_enabled_from(self, "can_save").props(f'title="{session.folder}"')
        with ui.row().classes("w-full h-6 max-w-[1240px] mx-auto items-center gap-3"):
            ui.label().classes("quiet").bind_text_from(
                session,
                "doing",
                lambda doing: (
                    f"{doing} …"
                    if doing
                    else f"Edits stay in memory until they are saved into the folder {session.folder.name}."
                ),
            )
            ui.linear_progress(show_value=False).props("indeterminate").classes("w-64").bind_visibility_from(
                session, "doing", bool
            )

    @property
    def can_save(self) -> bool:
        """Whether there is something to save, and time."""
        return bool(self.session.unsaved) and not self.session.doing

    def _questions(self) -> None:
        with ui.card():
            ui.html("<h2>Ask</h2>", sanitize=False)
            with ui.row().classes("w-full items-center no-wrap"):
                asked = ui.input("Prompt").classes("grow").props("outlined dense")
                ask = self._button("Ask", lambda: self.session.ask(asked.value))
            asked.on("keydown.enter", lambda: self._do(lambda: self.session.ask(asked.value)))
            ask.mark("ask")
            self._answers()

    @ui.refreshable_method
    def _answers(self) -> None:
        if not self.session.answers:
            ui.label("The unedited and the edited model answer side by side.").classes("quiet")
        with ui.row().classes("w-full no-wrap items-start gap-6"):
            for answer in self.session.answers:
                self._answer(answer)
        edit = self.session.nearest
        if edit is not None:
            ui.label(f"Nearest edit, {edit.id}: {edit.text} {ARROW} {edit.target}").classes("quiet")

    def _answer(self, answer: Answer) -> None:
        with ui.column().classes(f"gap-1 min-w-0 basis-1/2 answer-{answer.title}"):
            ui.label(answer.title).classes("quiet")
            ui.label(answer.text.strip() or "…").classes("said")
            for token, probability in answer.first:
                with ui.row().classes("w-full items-center no-wrap gap-2"):
                    ui.label(repr(token)).classes("token w-28 overflow-hidden")
                    ui.linear_progress(probability, show_value=False).classes("grow").props("rounded")
                    ui.label(f"{probability:.2f}").classes("token")

    @ui.refreshable_method
    def _facts(self) -> None:
        rows = self.session.facts()
        with ui.card():
            ui.html(f"<h2>Edits: {len(self.session.model.edited)} of {len(rows)} in the weights</h2>", sanitize=False)
            columns = [
                {"name": name, "label": label, "field": name, "align": "left"}
                for name, label in (
                    ("id", "id"),
                    ("prompt", "prompt"),
                    ("target", "answer"),
                    ("state", ""),
                    ("turn", ""),
                )
            ]
            table = ui.table(rows=rows, columns=columns, row_key="id", pagination=8).classes("w-full facts")
            table.props('flat dense wrap-cells no-data-label="None yet: make one with the form."')
            table.add_slot("body-cell-turn", TURN)
            table.on("turn", lambda event: self._do(lambda: self.session.turn(event.args)))
            if len(rows) > 8:
                with table.add_slot("top"):
                    ui.input("Find").bind_value_to(table, "filter").props("dense outlined").classes("w-full")

    def _form(self) -> None:
        with ui.card():
            ui.html("<h2>New edit</h2>", sanitize=False)
            parts = {n: ui.input(label, placeholder=example).props("outlined dense") for n, label, example in FIELDS}
            parts |= {
                n: ui.textarea(label, placeholder=example).props("outlined dense rows=2") for n, label, example in LISTS
            }
            for part in parts.values():
                part.classes("w-full").props("stack-label")
            self._button("Edit", lambda: self.session.edit({name: part.value for name, part in parts.items()}))

    @ui.refreshable_method
    def _scores(self) -> None:
        before, now = self.session.before, self.session.now
        with ui.card():
            ui.html("<h2>Scorecard</h2>", sanitize=False)
            if not now:
                ui.label("No edit is in the weights.").classes("quiet")
                return
            pair = (("unedited", before), ("edited", now))
            rows = [
                {"kind": kind} | {at: _figures(part[kind]) for at, part in pair}
                for kind in KINDS
                if now[kind]["accuracy"] is not None
            ]
            if now["score"] is not None:
                rows.append({"kind": "S", **{at: number(part["score"]) for at, part in pair}})
            columns = [{"name": name, "label": name, "field": name, "align": "right"} for name, _ in pair]
            columns.insert(0, {"name": "kind", "label": "", "field": "kind", "align": "left"})
            ui.table(rows=rows, columns=columns).props("flat dense").classes("w-full scores")
            note = f"Success (accuracy) of the edits in the weights, of {SCORED} at most, the newest; fractions of 1."
            ui.label(note).classes("quiet")

    @ui.refreshable_method
    def _room(self) -> None:
        points = self.session.room()
        with ui.card():
            ui.html("<h2>Room for new edits</h2>", sanitize=False)
            if not points:
                ui.label("No fulfilment: nothing was edited yet, or this method has none.").classes("quiet")
                return
            with ui.row().classes("w-full items-center no-wrap"):
                ui.circular_progress(round(points[-1][1], 2), size="84px", show_value=True).classes("gauge")
                ui.echart(_chart(points)).classes("h-36 grow")
            ui.label(
                "Fulfilment: the share of a single new edit that would be written, before each batch, over edits made. "
                "It falls as the memory of past edits fills up."
            ).classes("quiet")

    def _button(self, text: str, work: Callable[[], None]) -> ui.button:
        button = ui.button(text, on_click=lambda: self._do(work)).props("unelevated")
        return button.bind_enabled_from(self.session, "doing", lambda doing: not doing)

    async def _do(self, work: Callable[[], None]) -> None:
        """Do something long beside the server; what is wrong with the input is said on the page."""
        told: dict[str, Any] = {"multi_line": True, "timeout": 0, "close_button": "OK", "position": "top"}
        try:
            await run.io_bound(work)
        except EditError as error:
            ui.notify(str(error), type="negative", **told)
        except Exception as error:
            ui.notify(f"This should not happen, the terminal says more: {error}", type="negative", **told)
            raise
        while self.session.notes:
            ui.notify(self.session.notes.pop(0), type="warning", **told)
        self._follow()

    def _follow(self) -> None:
        """Bring the tab up to date, also with what another tab does."""
        session = self.session
        said = [(answer.text, len(answer.first)) for answer in session.answers]
        last, self._shown = self._shown, (session.changes, said)
        if last is None:
            return
        if last[1] != said:
            self._answers.refresh()
        if last[0] != session.changes:
            for part in (self._facts, self._scores, self._room):
                part.refresh()


def _figures(measures: dict[str, float | None]) -> str:
    return f"{number(measures['success'])} ({number(measures['accuracy'])})"


def _chart(points: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "grid": {"left": 44, "right": 12, "top": 12, "bottom": 24},
        "xAxis": {"type": "value", "min": 0, "max": points[-1][0], "splitLine": {"show": False}},
        "yAxis": {"type": "value", "min": 0, "max": 1, "interval": 0.5},
        "tooltip": {"trigger": "axis"},
        "series": [{"type": "line", "data": points, "showSymbol": len(points) < 20, "color": "#1c7cc0"}],
        "animation": False,
    }
