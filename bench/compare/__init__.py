"""One commit against another on this machine: `make bench-compare BASE=<commit>`.

tree: both sides' sources. native: their C++ parts. worker: a process that holds one side, commanded
by side. counting: what a side's program asks of a GPU. counts: whether any of it grew. timing: both
sides by turns. decide: whether one is slower. report: what is told.
"""
