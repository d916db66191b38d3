"""One command that collects everything a GPU is needed for: `python -m bench.gpu_report`.

Each stage is a process of its own with a time limit of its own, and writes each row as it comes: a
hang or a crash costs one row. The most valuable stages come first.
"""
