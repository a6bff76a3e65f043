"""The command `studio`."""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from lke_lightning.api import begin, resume
from lke_lightning.edits import EditError, check_number
from lke_lightning.ledger import locked
from lke_lightning.run_folder import Run, check_unused
from lke_lightning.studio.session import Session


def studio(
    run: str | None = None,
    pretrained: str | None = None,
    layers: list[int] | None = None,
    config: str = "method/encore.yaml",
    chat: bool = False,
    output: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "cpu",
    trust: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Serve a page on which an edited model is asked, edited and scored, for one user, on this machine.

    Edits are made in memory; the page writes them into the run's folder when its button is pressed. Until the command
    ends, no other process can change that folder.

    Args:
        run: the folder of a run, or one of its checkpoints.
        pretrained: start from a model that no run has edited: a folder, a hub name, a GGUF file or `demo`.
        layers: of that model, the layers to edit; default: those of `config`, else those that it names itself.
        config: of that model, the method: a YAML file, by its path or its name below `configs/`.
        chat: ask that model through its chat template; a run knows how its model is asked.
        output: the folder to write, a new one; default: that of the run.
        host: the address to listen on; another than this machine's own lets others in.
        port: the port to listen on.
        device: where the model runs, such as `cuda`.
        trust: paths of classes outside of this package that the run's stages may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is neither a run nor a model, or both; it cannot be opened; a new run has no folder; the page
            cannot be served.
    """
    if (run is None) == (pretrained is None):
        raise EditError("name the folder of a run, or a model with --pretrained, and not both")
    if pretrained is not None and output is None:
        raise EditError("no run has edited this model: name the folder of the new run with --output")
    _check_place(host, port)
    if output is not None:
        check_unused(Path(output))
    opened = None if run is None else Run.read(run)
    folder = opened.root if opened is not None and output is None else Path(str(output))
    with locked(folder):
        if opened is not None and output is None:
            opened.check_newest()
        if opened is None:
            model = begin(str(pretrained), layers, config, chat, trust_remote_code)
        else:
            model = resume(opened, trust=tuple(trust or ()), trust_remote_code=trust_remote_code)
        model.model.to(device)  # type: ignore[arg-type]  # transformers declares it without `self`
        from lke_lightning.studio.page import serve  # NiceGUI, which is an extra

        serve(Session(model, folder), host, port, [host, "localhost"] if is_local(host) else ["*"])


def _check_place(host: str, port: int) -> None:
    """Refuse what cannot be served before a model is loaded, and warn where others can reach the page.

    Raises:
        EditError: NiceGUI is missing, or the address cannot be listened on.
    """
    if find_spec("nicegui") is None:
        raise EditError("the page needs the package nicegui: pip install 'lke-lightning[studio]'")
    check_number("--port", port, at_least=1, at_most=65535)
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise EditError(f"cannot listen on {host}, port {port} ({error.strerror}): name another --port") from error
    if not is_local(host):
        print(
            f"warning: whoever reaches port {port} of this machine can read and edit the model and write the run: the "
            "page has no password",
            file=sys.stderr,
        )


def is_local(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
