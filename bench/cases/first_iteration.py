"""A process that trains mnist for one iteration and prints its losses: the cost of a start.

    python -m bench.cases.first_iteration fastinfogan eager
    python -m bench.cases.first_iteration best

The embedded digits need packages of their own; images are made up.
"""

import sys

from fastinfogan.files import set_compile_caches

set_compile_caches()

import torch  # noqa: E402 - it settles on a folder when it is imported

from bench.baselines.iteration import BestLoop, inputs_of  # noqa: E402
from bench.training import SEED, images_for, iteration_for  # noqa: E402
from fastinfogan import experiments  # noqa: E402
from fastinfogan.engine.config import choose_precision  # noqa: E402
from fastinfogan.engine.execution import choose_execution  # noqa: E402

BATCH = 128


def main() -> None:
    who, *execution = sys.argv[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    e = experiments.get("mnist")
    precision, _ = choose_precision("auto", device)
    images = images_for(e, 2 * BATCH, device)
    if who == "fastinfogan":
        iteration = iteration_for(e, precision.name, BATCH, images)
        chosen, _ = choose_execution(execution[0], device)  # type: ignore[arg-type]
        chosen(iteration).run(0, 1)
        found = iteration.sums[:2].tolist()
    else:
        baseline = BestLoop(e, images, BATCH, computed=precision.computed)
        found = baseline.iterate(inputs_of(e, images, SEED, 0, BATCH))[:2].tolist()
    print(*found)


if __name__ == "__main__":
    main()
