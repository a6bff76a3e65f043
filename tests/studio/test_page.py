"""The page in a real browser: ask, edit, see the scorecard change, undo; nothing else than this machine is asked."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.mark.slow
def test_a_browser_asks_edits_undoes_and_saves(run, tmp_path):
    pytest.importorskip("nicegui", reason="the extra `studio` is not installed")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser, and is not installed"
    )
    if BROWSER is None:
        pytest.skip("there is no chromium or chrome")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "lke_lightning", "studio", str(run), "--port", str(port)]
    plain = {name: value for name, value in os.environ.items() if "PYTEST" not in name}  # else NiceGUI tests itself
    pipes = {"env": plain, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes) as server, playwright.sync_playwright() as started:
        try:
            lines = iter(server.stdout.readline, "")
            assert any(f"127.0.0.1:{port}" in line for line in lines)
            browser = started.chromium.launch_persistent_context(
                tmp_path / "profile", executable_path=BROWSER, args=ARGUMENTS
            )
            _use(browser.pages[0], playwright.expect, port)
            browser.close()
        finally:
            server.send_signal(signal.SIGINT)
        assert server.stdout.read() == ""  # neither an error nor a change that was not saved
        assert server.wait() == 0
    ledger = (run / "ledger.jsonl").read_text()
    assert ledger.splitlines()[-1].startswith('{"event": "undo"')


def _use(page, expect, port):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda opened: asked.append(opened.url))
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    page.goto(f"http://127.0.0.1:{port}")
    first = page.locator(".facts tbody tr").first
    expect(first).to_contain_text("Ana was born in the")
    page.get_by_label("Prompt", exact=True).first.fill("Ana was born in the")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("Nearest edit, 8")).to_be_visible()
    expect(page.locator(".said")).to_have_count(2)

    scores = page.locator(".scores").inner_text()
    page.get_by_label("Prompt", exact=True).last.fill("Bob was born in the")
    page.get_by_label("Subject").fill("Bobby")
    page.get_by_label("New answer").fill("city")
    page.get_by_label("Today's answer").fill("river")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_text("the subject 'Bobby' is not in the prompt")).to_be_visible()
    page.get_by_label("Subject").fill("Bob")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(first).to_contain_text("Bob was born in the")
    expect(page.locator(".scores")).not_to_have_text(scores)

    page.get_by_role("button", name="undo 9").click()
    expect(first).to_contain_text("undone")
    page.get_by_role("button", name="Save 2 changes").click()
    expect(page.get_by_role("button", name="Saved")).to_be_visible()
    assert page.request.get(f"http://127.0.0.1:{port}/report").ok
    strangers = page.request.get(f"http://127.0.0.1:{port}", headers={"Host": "example.org"})
    assert strangers.status == 400
    assert {urlsplit(url).hostname for url in asked if not url.startswith("data:")} == {"127.0.0.1"}
