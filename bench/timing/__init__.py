"""Interleaved timing on noisy machines, the machine's roofline, and the rows of bench/results/."""
