"""A tiny model in a folder, facts to edit, text for key statistics, and the arguments of a short run of them."""

import json
import shutil
from contextlib import suppress

import pytest

from lke_lightning.cache import VARIABLE, default_folder
from lke_lightning.cli import main
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

NAMES = ["Ana", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal"]


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory):
    """A cache where the scores of unedited models are the tests' own; what is costly is the user's."""
    folder, users = tmp_path_factory.mktemp("cache"), default_folder().resolve()
    for kind in ("models", "statistics", "eigen", "curvature"):
        with suppress(OSError):
            (users / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind).symlink_to(users / kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder))
        yield


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    texts = [f"{name} {word}" for name in NAMES for word in WORDS]
    tiny_network("llama").float().save_pretrained(folder / "model")
    tiny_tokenizer(texts).save_pretrained(folder / "model")
    facts = [
        {"prompt": f"{name} was born in the", "subject": name, "target": target, "original": "river"}
        for name, target in zip([*NAMES, "Ana"], ["city", "guitar"] * 4 + ["guitar"], strict=True)
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    (folder / "text.txt").write_text("\n".join(" ".join(texts[i:] + texts[:i]) for i in range(0, 40, 2)))
    return folder


@pytest.fixture(scope="session")
def small_run(small_world):
    """Arguments of a run of nine edits in five batches; the last states the first one's fact anew."""
    return [
        "fit", "-c", "configs/method/encore.yaml", "-c", "tests/conf/tiny.yaml",
        "--model.pretrained", str(small_world / "model"), "--model.layers", "[0,1]",
        "--data", "JsonLines", "--data.path", str(small_world / "facts.jsonl"), "--data.batch_size", "2",
        "--stage_two.statistics", "KeyStatistics", "--stage_two.statistics.corpus", str(small_world / "text.txt"),
        "--stage_two.statistics.tokens", "2000", "--stage_two.statistics.cache_dir", str(small_world / "cache"),
        "--checkpoint.every_n_train_steps", "2", "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def finished(small_run, tmp_path_factory):
    """A run of nine edits of which the last, 8, states the fact of the first, 0, anew; to be read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    main([*small_run, "--trainer.default_root_dir", str(folder)])
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"
