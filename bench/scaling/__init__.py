"""How the cost of an iteration grows, and what many GPUs would make of it.

`python -m bench.scaling` counts, times and computes, and writes bench/results/scaling.json;
`bench/scaling.md` is the paper about it, whose tables `python -m bench.numbers` fills from there.
"""
