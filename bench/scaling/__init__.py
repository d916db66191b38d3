"""How the cost of an iteration grows, and what many GPUs would make of it.

`python -m bench.scaling` counts, times and computes, and writes bench/results/scaling.json;
`python -m bench.numbers` writes its tables into docs/scaling.md.
"""
