"""The small run of the fault tests."""

from tests.faults.conftest import small_run, small_world

__all__ = ["small_run", "small_world"]
