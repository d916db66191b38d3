"""Exact counts: launches, bytes, FLOPs, collectives."""
