"""Where published files are, and a way to read a stream whole."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared():
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}")
    return SHARED
