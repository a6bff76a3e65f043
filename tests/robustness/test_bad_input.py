"""A table of bad inputs: each ends in one sentence that says what to do, at once, with nothing half-written."""

import importlib
import pkgutil
import re
from pathlib import Path

import lightning.pytorch  # noqa: F401  its logger keeps the stderr of its first import, which must not be a test's
import pytest

import lke_lightning.commands.real  # before a test puts another `load` and another stderr into its place
import lke_lightning.fitting  # noqa: F401  likewise
import tests.robustness
from lke_lightning.cli import main
from lke_lightning.model import language_model

TABLES = [name for _, name, _ in pkgutil.iter_modules(tests.robustness.__path__) if name.startswith("bad_")]
CASES = [case for name in TABLES for case in getattr(importlib.import_module(f"tests.robustness.{name}"), "CASES", ())]


def files(*folders):
    """Every file but the lock of a run's folder and what its run was started with."""
    found = {path for folder in folders for path in Path(folder).rglob("*") if path.is_file()}
    return {path for path in found if path.name not in (".lock", "config.yaml")}


@pytest.fixture(scope="session")
def world(small_world, small_run):
    """The small world, and a finished run in it: nine edits, of which the last, 8, replaces the first, 0."""
    main([*small_run, "--trainer.default_root_dir", str(small_world / "run")])
    return small_world


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_it_is_refused_with_what_to_do(bad, world, small_run, tmp_path, monkeypatch, capsys):
    place = tmp_path / "place"
    place.mkdir()
    given = list(bad.arguments(place, world) if callable(bad.arguments) else bad.arguments)
    if given and given[0] in ("fit", "validate"):
        given = [given[0], *small_run[1:], "--trainer.default_root_dir", str(tmp_path / "run"), *given[1:]]
    if not bad.loads_model:

        def no_loading(*_, **__):
            pytest.fail("a model was loaded before the input was refused")

        monkeypatch.setattr(language_model, "load", no_loading)
        monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", no_loading)
    before = files(tmp_path, world)
    with pytest.raises(SystemExit) as left:
        main(given)
    assert left.value.code not in (0, None)
    reason, said = left.value.code, capsys.readouterr().err
    message = reason if isinstance(reason, str) else said  # in that case the parser has written it
    message = re.split(r"^(?:[\w .-]+: )?error: ", message.strip(), flags=re.MULTILINE)[-1]
    assert "Traceback" not in message + said
    assert len(message.splitlines()) <= 8, message
    assert re.search(bad.says, message, re.DOTALL), message
    assert files(tmp_path, world) == before
