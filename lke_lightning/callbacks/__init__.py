"""Callbacks of a run besides the two stages."""
