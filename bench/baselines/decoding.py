"""DALI as its own examples have it: it reads the files itself, checks nothing and names nothing."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BarePipeline:
    """The same crop and resize as `DaliDecoder`'s, in files' order; built once and warm.

    Args:
        files: JPEGs.
        size: their height and width; the middle square of the width is taken.
        side: of the resized images.
        batch: images in a batch.
        threads: that decode.
        depth: of the prefetch queue, in batches.

    Raises:
        ImportError: DALI is not installed.
    """

    def __init__(
        self,
        files: list[Path],
        size: tuple[int, int],
        side: int,
        batch: int,
        threads: int,
        depth: int = 2,
    ) -> None:
        from nvidia import dali
        from nvidia.dali import fn, types

        self._batches, self._depth = len(files) // batch, depth
        pipeline: Any = dali.Pipeline(batch, threads, None, prefetch_queue_depth=depth)
        height, width = size
        with pipeline:
            encoded, _ = fn.readers.file(files=[str(file) for file in files])
            pictures = fn.decoders.image_slice(
                encoded,
                start=[(height - width) // 2, 0],
                shape=[width, width],
                axis_names="HW",
                device="cpu",
            )
            images = fn.resize(
                pictures, size=(side, side), interp_type=types.INTERP_LANCZOS3, antialias=True
            )
            pipeline.set_outputs(images)
        pipeline.build()
        self._pipeline = pipeline
        self._fresh = True

    def epoch(self) -> NDArray[np.uint8]:
        """Run as many batches as an epoch has; return the last one.

        By hand: `run` would leave batches behind that are decoded while something else is timed.
        """
        for _ in range(1 if self._fresh else self._depth):  # the first one schedules all
            self._pipeline.schedule_run()
        self._fresh = False
        for number in range(self._batches):
            images = np.array(self._pipeline.share_outputs()[0].as_array())
            self._pipeline.release_outputs()
            if number < self._batches - self._depth:
                self._pipeline.schedule_run()
        return images
