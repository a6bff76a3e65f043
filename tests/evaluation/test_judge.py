"""The judge, against a small server on this machine."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lke_lightning.edits import EditError
from lke_lightning.evaluation import judge as module
from lke_lightning.evaluation.judge import Judge


class Server(HTTPServer):
    """Replies as its `reply` says, and remembers what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.reply = [], lambda question: (200, {"choices": [{"message": {"content": "Yes."}}]})

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1/"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), sent))
        code, reply = self.server.reply(sent["messages"][-1]["content"])
        self.send_response(code)
        self.end_headers()
        self.wfile.write(reply.encode() if isinstance(reply, str) else json.dumps(reply).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def says(content):
    return 200, {"choices": [{"message": {"content": content}}]}


def test_verdicts_come_back_in_order(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    server.reply = lambda question: says("**Yes**" if '"Rome"' in question.splitlines()[-1] else "no.")
    judge = Judge(server.url, "some-model", "SOME_KEY")
    judge.check()
    asked = [("The capital is", said, ("Rome", "Roma")) for said in ("Rome", "Paris", "Rome", "Nice")]
    assert judge(asked) == [1, 0, 1, 0]
    path, key, sent = server.seen[-1]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (sent["model"], sent["temperature"]) == ("some-model", 0)
    assert "Roma" in sent["messages"][-1]["content"]


def test_no_key_is_sent_unless_one_is_named(server):
    assert Judge(server.url, "m")([("a", "b", ("c",))]) == [1]
    assert server.seen[0][1] is None


@pytest.mark.parametrize(
    ("reply", "reason", "attempts"),
    [
        (says("perhaps"), "neither yes nor no", 3),
        ((200, "no json"), "no chat completion", 3),
        ((200, {"error": "busy"}), "no chat completion", 3),
        ((503, "overloaded"), "HTTP 503.*overloaded", 3),
        ((401, "wrong key"), "HTTP 401.*wrong key", 1),
    ],
)
def test_what_stays_undecided_is_told(reply, reason, attempts, server):
    server.reply = lambda question: reply
    judge = Judge(server.url, "m")
    with pytest.raises(EditError, match=f"gives no verdict: .*{reason}"):
        judge.check()
    server.seen.clear()
    with pytest.warns(UserWarning, match=f"1 of 1 answers undecided: .*{reason}"):
        [verdict] = judge([("a", "b", ("c",))])
    assert math.isnan(verdict)
    assert len(server.seen) == attempts


def test_it_is_asked_again_when_the_server_stumbles(server):
    replies = iter([(500, "oh"), says("yes")])
    server.reply = lambda question: next(replies)
    assert Judge(server.url, "m")([("a", "b", ("c",))]) == [1]


def test_settings_that_cannot_work_are_refused_before_any_work(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(EditError, match=r"NO_SUCH_KEY' holds no key"):
        Judge("http://localhost:9/v1", "m", "NO_SUCH_KEY").check_settings()
    for url in (
        "file:///etc",
        "localhost:8000/v1",
        "http://",
        "http://host:port/v1",
        "http://a b/v1",
        "http://[::1",
        "",
    ):
        with pytest.raises(EditError, match="must begin with http"):
            Judge(url, "m").check_settings()
    with pytest.raises(EditError, match=r"judge\.model"):
        Judge("http://localhost:9/v1", " ").check_settings()
    for timeout in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(EditError, match=r"judge\.timeout"):
            Judge("http://localhost:9/v1", "m", timeout=timeout).check_settings()
    with pytest.raises(EditError, match="gives no verdict"):
        Judge("http://127.0.0.1:9/v1", "m").check()
