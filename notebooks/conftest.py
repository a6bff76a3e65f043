"""As tests the notebooks run on the demo model, everywhere: in the cache that they see there is no real one."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lke_lightning.cache import VARIABLE, default_folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Start the notebook's kernel with a cache of its own; what is costly to compute is the user's."""
    users = default_folder().resolve()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for kind in ("statistics", "eigen"):
            (users / kind).mkdir(parents=True, exist_ok=True)
            Path(folder, kind).symlink_to(users / kind)
        patch.setenv(VARIABLE, folder)
        return (yield)
