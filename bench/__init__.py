"""What fastinfogan costs, measured against PyTorch.

measuring: how things are timed, and what is kept of it. cases: what is timed, each with the check
that it computes the right thing. peers: what it is compared with. results: the rows, by machine.
`pytest bench/` runs the cases; `python -m bench.compare` sets one commit against another;
`python -m bench.gpu_report` collects all that a GPU can tell in a few minutes.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

# Run from a tree that nobody installed: the kernels' package lies one folder deeper.
if find_spec("fastinfogan_kernels") is None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
