"""Metrics over plain tensors."""

from lke_lightning.metrics.preference import MEASURES, Preference, harmonic_mean, preference

__all__ = ["MEASURES", "Preference", "harmonic_mean", "preference"]
