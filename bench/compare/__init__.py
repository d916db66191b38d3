"""One commit against the working tree on this machine: `make bench-compare BASE=<commit>`.

trees: the commit's files. worker: a process that times one tree's cases. times: both processes,
round by round. paired: whether the paired times differ.
"""
