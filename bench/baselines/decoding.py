"""DALI as its own examples have it: it reads the files itself, checks nothing and names nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_DEPTH = 2
"""Batches in the prefetch queue."""


def bare_pipeline(
    files: list[Path], size: tuple[int, int], side: int, batch: int, threads: int
) -> Callable[[], None]:
    """Make a run that decodes an epoch in files' order, with `DaliDecoder`'s crop and resize.

    Args:
        files: JPEGs.
        size: their height and width; the middle square of the width is taken.
        side: of the resized images.
        batch: images in a batch.
        threads: that decode.

    Raises:
        ImportError: DALI is not installed.
    """
    from nvidia import dali
    from nvidia.dali import fn, types

    pipeline: Any = dali.Pipeline(batch, threads, None, prefetch_queue_depth=_DEPTH)
    height, width = size
    with pipeline:
        encoded, _ = fn.readers.file(files=[str(file) for file in files])
        pictures = fn.decoders.image_slice(
            encoded, start=[(height - width) // 2, 0], shape=[width, width], axis_names="HW",
            device="cpu",
        )  # fmt: skip
        images = fn.resize(
            pictures, size=(side, side), interp_type=types.INTERP_LANCZOS3, antialias=True
        )
        pipeline.set_outputs(images)
    pipeline.build()
    pipeline.schedule_run()  # the first one schedules all

    def run() -> None:
        """Decode an epoch by hand: `run` would leave batches behind that other times pay for."""
        nonlocal scheduled
        for _ in range(_DEPTH - scheduled):
            pipeline.schedule_run()
        scheduled = 0
        batches = len(files) // batch
        for number in range(batches):
            np.array(pipeline.share_outputs()[0].as_array())
            pipeline.release_outputs()
            if number < batches - _DEPTH:
                pipeline.schedule_run()

    scheduled = _DEPTH
    return run
