"""Folders of runs as tests want them, and a real one."""

import json

import pytest

from lke_lightning.cli import main


@pytest.fixture(scope="session")
def finished(small_run, small_world, tmp_path_factory):
    """A run with all that can be asked for: evaluations on the way, drift, a guard that warns."""
    folder = tmp_path_factory.mktemp("finished") / "run <1>"
    text = json.dumps([str(small_world / "text.txt")])
    main([
        *small_run, "--trainer.default_root_dir", str(folder), "--trainer.val_check_interval", "1",
        "--trainer.check_val_every_n_epoch", "null", "--scorecard.text", text, "--scorecard.text_tokens", "300",
        "--drift.every", "4", "--drift.text", text, "--guard.norm_growth", "1.0001", "--guard.action", "warn",
    ])  # fmt: skip
    return folder


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a run's folder from a scorecard and ledger entries."""

    def write(name, card=None, entries=(), **others):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if card is not None:
            (folder / "scorecard.json").write_text(json.dumps(card))
        if entries:
            (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        for file, content in others.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        return folder

    return write
