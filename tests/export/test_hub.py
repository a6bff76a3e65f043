"""Exports pushed to a hub: a server on this machine that answers the hub's client as the hub does."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lke_lightning.cli import main
from lke_lightning.edits import EditError
from lke_lightning.export import Options, push, write
from tests.export.edited import base, edited

TOKEN = "hf_of_the_test"


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits; files that end in `.safetensors` go through its large-file storage."""

    def do_POST(self):
        hub, asked = self.server.hub, self.rfile.read(int(self.headers["Content-Length"]))
        hub["tokens"].add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            given = json.loads(asked)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            is_private = given.get("private") or given.get("visibility") == "private"  # newer clients say the latter
            hub["repos"].setdefault(name, bool(is_private))
            self.answer({"url": f"{hub['url']}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(asked)["files"]
            ]
            self.answer({"files": modes})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub['url']}/storage/{one['oid']}"}}}
                for one in json.loads(asked)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            if hub["full"]:
                return self.answer({"error": "the storage is full"}, status=403)
            for line in map(json.loads, asked.splitlines()):
                if line["key"] == "file":
                    hub["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    hub["files"][line["value"]["path"]] = hub["storage"][line["value"]["oid"]]
            name = self.path.split("/commit/")[0].removeprefix("/api/models/")
            self.answer({"commitUrl": f"{hub['url']}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})
        return None

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hub["storage"][hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_GET(self):
        name = self.path.removeprefix("/api/models/")
        known = self.server.hub["repos"].get(name)
        self.answer({"id": name, "private": known}, status=404 if known is None else 200)

    def answer(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.hub = {
        "url": f"http://127.0.0.1:{server.server_port}",
        "repos": {}, "files": {}, "storage": {}, "tokens": set(), "full": False,
    }  # fmt: skip
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.hub["url"])  # read from HF_ENDPOINT at its import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its storage is no part of this hub
    yield server.hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    return edited(base(tmp_path_factory.mktemp("model"), "llama"))


def pushed(editor, output, **options):
    asked = Options(**options)
    write(editor, output, asked)
    push(editor, output, asked)


def test_a_folder_is_pushed_as_it_was_written(hub, editor, tmp_path, capsys):
    pushed(editor, tmp_path / "adapter", format="lora", push_to_hub="owner/name", private=True)
    assert hub["files"] == {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    assert hub["repos"] == {"owner/name": True}
    assert hub["tokens"] == {f"Bearer {TOKEN}"}
    assert capsys.readouterr().out == f"pushed to {hub['url']}/owner/name\n"


def test_a_file_is_pushed_with_a_card_beside_it(hub, editor, tmp_path):
    pushed(editor, tmp_path / "x.safetensors", format="delta", push_to_hub="name")
    assert set(hub["files"]) == {"x.safetensors", "README.md"}
    assert hub["files"]["x.safetensors"] == (tmp_path / "x.safetensors").read_bytes()
    assert b"`apply_delta`" in hub["files"]["README.md"]
    assert hub["repos"] == {"me/name": False}


def test_what_is_to_be_private_is_not_pushed_where_all_can_see_it(hub, editor, tmp_path):
    hub["repos"]["owner/name"] = False
    with pytest.raises(EditError, match=r"owner/name is public on the hub.*stays where it is"):
        pushed(editor, tmp_path / "adapter", format="lora", push_to_hub="owner/name", private=True)
    assert not hub["files"]


def test_what_cannot_be_pushed_stays_and_can_be_pushed_later(hub, editor, tmp_path):
    hub["full"] = True
    with pytest.raises(EditError, match=r"could not be pushed \(.*\): push it later with `hf upload owner/name .*adap"):
        pushed(editor, tmp_path / "adapter", format="lora", push_to_hub="owner/name")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not hub["files"]


@pytest.mark.parametrize(
    ("name", "offline", "message"),
    [("a/b/c", False, "no name of a repository"), ("a/b", True, "HF_HUB_OFFLINE"), ("a/b", False, "needs a token")],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_read(name, offline, message, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nobody"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(SystemExit, match=message):
        main(["export", "nowhere", "--output", str(tmp_path / "out"), "--push_to_hub", name])
    assert not list(tmp_path.iterdir())
