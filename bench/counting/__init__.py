"""Exact counts on any machine: launches, bytes, FLOPs, saved bytes, registers and collectives."""
