"""What the command refuses, before a model is loaded."""

import socket

import pytest

from lke_lightning.cli import main
from lke_lightning.studio.command import is_local


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the folder of a run"),
        (["x", "--pretrained", "demo"], "not both"),
        (["--pretrained", "demo"], "--output"),
        (["nowhere"], "neither a checkpoint nor"),
        (["nowhere", "--port", "0"], "1"),
        (["nowhere", "--output", "tests"], "not empty"),
    ],
)
def test_bad_input(words, message, monkeypatch):
    monkeypatch.setattr("lke_lightning.studio.command.find_spec", bool)  # the page itself is not needed for that
    port = [] if "--port" in words else ["--port", str(_free_port())]
    with pytest.raises(SystemExit, match=message):
        main(["studio", *words, *port])


def test_a_port_in_use_is_named(monkeypatch):
    monkeypatch.setattr("lke_lightning.studio.command.find_spec", bool)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port}"):
            main(["studio", "nowhere", "--port", str(port)])


def test_only_this_machine_is_local():
    assert all(map(is_local, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_local, ("0.0.0.0", "192.168.1.7", "example.org")))


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
