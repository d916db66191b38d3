"""Decoded images, cached."""
