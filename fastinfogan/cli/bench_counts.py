"""`fastinfogan bench counts`: what one iteration asks of a GPU, counted on any machine."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Counts:
    """Count the launches, bytes, multiplications, waits and allocations of one iteration."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """One of mnist, svhn, celeba, faces, chairs, sprites."""
    batch_size: int = 128
    """Real and generated images in a step."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "bf16"
    """Of convolutions and matrix products; with fp16, gradients are looked through, too."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Do it; the exit code."""
        import json
        from dataclasses import asdict, replace

        from fastinfogan import experiments
        from fastinfogan.engine.counts import count

        experiment = replace(experiments.get(self.experiment), batch_size=self.batch_size)
        found = count(experiment, self.precision)
        if self.json:
            print(json.dumps(asdict(found), indent=1))
            return 0
        print(f"{found.experiment}, batch {found.batch_size}, {found.precision}: one iteration")
        print(f"launches       {found.launches}")
        print(f"bytes          {found.bytes:,}")
        print(f"  of minimum   {found.bytes / found.bytes_minimum:.3f}")
        print(f"flops          {found.flops:,}")
        print(f"host waits     {found.host_syncs}")
        print(f"allocations    {found.allocations}, and none in a replayed graph")
        for name, launches in found.kernels.items():
            print(f"  {launches:3d}  {name}")
        return 0
