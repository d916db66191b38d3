"""Turning encoded pictures into images."""
