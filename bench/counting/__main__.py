"""`python -m bench.counting`: what one iteration asks of a GPU, counted on any machine."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from fastinfogan.cli import run


@dataclass(frozen=True)
class Counts:
    """Count the launches, bytes, multiplications, waits and allocations of one iteration.

    With --ranks, of one process of so many, with its collectives.
    """

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """One of mnist, svhn, celeba, faces, chairs, sprites."""
    batch_size: int = 128
    """Real and generated images in a step, of all processes together."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "bf16"
    """Of convolutions and matrix products; with fp16, gradients are checked for overflows, too."""
    ranks: int = 1
    """How many processes share the batch."""
    batch_norm: Literal["synchronised", "per-rank"] = "synchronised"
    """Of several processes: statistics of the whole batch, or of each process's part."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        import json
        from dataclasses import asdict, replace

        from bench.counting.iteration import count
        from fastinfogan import experiments

        experiment = replace(experiments.get(self.experiment), batch_size=self.batch_size)
        found = count(experiment, self.precision, self.ranks, self.batch_norm)
        if self.json:
            print(json.dumps(asdict(found), indent=1))
            return 0
        of = f", a rank of {self.ranks}" if self.ranks > 1 else ""
        print(f"{found.experiment}, batch {found.batch_size}, {found.precision}{of}: one iteration")
        print(f"launches       {found.launches}")
        print(f"bytes          {found.bytes:,}")
        print(f"  of minimum   {found.bytes / found.bytes_minimum:.3f}")
        print(f"flops          {found.flops:,}")
        print(f"host waits     {found.host_syncs}")
        print(f"allocations    {found.allocations}, and none in a replayed graph")
        if found.collectives:
            size = sum(each.bytes for each in found.collectives)
            print(f"collectives    {len(found.collectives)}, {size:,} bytes of operands")
        for name, launches in found.kernels.items():
            print(f"  {launches:3d}  {name}")
        return 0


def main(arguments: Sequence[str]) -> int:
    return run(Counts, "python -m bench.counting", None, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
