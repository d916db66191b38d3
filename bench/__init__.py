"""What fastinfogan costs, measured against PyTorch.

cases: what is timed, each with a check of its results. baselines: what it is compared with. timing:
clocks, roofline and rows. results: the rows, by machine. counting: exact counts. `pytest bench/`
runs the cases; `python -m bench.compare` compares two commits; `python -m bench.parity` compares
training with the reference; `python -m bench.gpu_report` collects what a GPU shows in minutes.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

# Run from a tree that is not installed: the kernels' package lies one folder deeper.
if find_spec("fastinfogan_kernels") is None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
