"""Honest measurement of edited models."""
