"""Predict an iteration on many GPUs, from exact counts and stated speeds.

    T(n) = max(FLOPs / rate, bytes / bandwidth) + launches * gap + sum of collectives

Nothing overlaps with anything but products with their own loads, as in the program: gradients are
summed when all of a phase are there. So it is what such a cluster needs at least, for this program.
A collective takes its start and its hops, near (NVLink) and far (between nodes), and its bytes:

    all-reduce of S:  start + 2 (g-1) near + 2 (g-1)/g S/NVLink
                      + 2 ceil(log2 m) far + 2 (m-1)/m (S/g)/network
    all-gather of s:  start + (g-1) near + ceil(log2 m) far + (m-1) s/network + (n-1) s/NVLink

for g GPUs on each of m nodes, n = g m: summed within the node first, each GPU then takes its part
of the sum to the other nodes by its own adapter.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.counting.iteration import Collective, Counts, count
from fastinfogan import experiments
from fastinfogan.engine.config import BatchNorm


@dataclass(frozen=True)
class Speeds:
    """Of a cluster of H100s; SI units.

    Attributes:
        flops: of a large bf16 product, measured on one (798 TFLOP/s).
        copy: of a large copy, read plus written, measured on one (3.0 TB/s).
        gap: between two launches of a replayed graph; assumed.
        per_node: GPUs of a node.
        nvlink: bytes/s of a GPU to its node's others, one way; NVLink 4's data sheet.
        network: bytes/s of a GPU's own adapter, one way; 400 Gb/s InfiniBand's data sheet.
        start: of a collective until its first byte moves; assumed.
        near: a hop between GPUs of a node; assumed.
        far: a hop between nodes; assumed.
    """

    flops: float = 798e12
    copy: float = 3.0e12
    gap: float = 1.5e-6
    per_node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    start: float = 8e-6
    near: float = 1e-6
    far: float = 4e-6


def communicating(messages: Iterable[Collective], gpus: int, v: Speeds = Speeds()) -> float:
    """Return the seconds of an iteration's collectives, one after the other.

    Args:
        messages: the collectives, with the bytes of each rank's operand.
        gpus: of all nodes; a multiple of a node's, or fewer than those.
        v: of the cluster.
    """
    g = min(gpus, v.per_node)
    m, total = gpus // g, 0.0
    far = math.ceil(math.log2(m)) * v.far
    for message in messages if gpus > 1 else ():
        size = message.bytes
        if message.kind == "all_reduce":
            within = 2 * (g - 1) * v.near + 2 * (g - 1) / g * size / v.nvlink
            between = 2 * far + 2 * (m - 1) / m * size / g / v.network
        else:
            within = (g - 1) * v.near + (gpus - 1) * size / v.nvlink
            between = far + (m - 1) * size / v.network
        total += v.start + within + between
    return total


@dataclass(frozen=True)
class Prediction:
    """One iteration.

    Attributes:
        experiment: its name.
        gpus: that share it.
        rows: of the batch, for each GPU.
        batch_norm: statistics of the whole batch, or of each GPU's part.
        bound: what one GPU's part is bound by: "FLOPs" or "bytes".
        computing: seconds of FLOPs or bytes.
        launching: seconds between launches.
        communicating: seconds of collectives.
        efficiency: of one GPU's images/s with as many rows, the part that each keeps.
    """

    experiment: str
    gpus: int
    rows: int
    batch_norm: str
    bound: str
    computing: float
    launching: float
    communicating: float
    efficiency: float

    @property
    def seconds(self) -> float:
        """Of the iteration."""
        return self.computing + self.launching + self.communicating

    def to_dict(self) -> dict[str, Any]:
        seconds, images = self.seconds, self.gpus * self.rows
        return asdict(self) | {"seconds": seconds, "images_per_second": images / seconds}


def predict(name: str, gpus: int, rows: int, batch_norm: BatchNorm = "synchronised") -> Prediction:
    """Predict an experiment's iteration in bf16.

    Args:
        name: of the experiment.
        gpus: that share it.
        rows: of the batch, for each of them.
        batch_norm: by the statistics of the whole batch, or each GPU's own.
    """
    e = experiments.get(name)
    alone = _parts(count(replace(e, batch_size=rows)))
    counts = count(replace(e, batch_size=rows * gpus), ranks=gpus, batch_norm=batch_norm)
    bound, computing, launching = _parts(counts)
    message_seconds = communicating(counts.collectives, gpus)
    efficiency = sum(alone[1:]) / (computing + launching + message_seconds)
    return Prediction(
        name, gpus, rows, batch_norm if gpus > 1 else "-", bound, computing, launching,
        message_seconds, efficiency,
    )  # fmt: skip


def _parts(counts: Counts, v: Speeds = Speeds()) -> tuple[str, float, float]:
    by = {"FLOPs": counts.flops / v.flops, "bytes": counts.bytes / v.copy}
    bound = max(by, key=lambda name: by[name])
    return bound, by[bound], counts.launches * v.gap
