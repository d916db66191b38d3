"""Launching, registering and choosing implementations, and memory."""
