"""Sets of images with known factors, rendered from a seed.

`load` renders a set once and stores it in the cache folder; later it is mapped from there.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from fastinfogan.data.image_set import ImageSet
from fastinfogan.data.synthetic import stored
from fastinfogan.data.synthetic.chairs import CHAIRS
from fastinfogan.data.synthetic.faces import FACES
from fastinfogan.data.synthetic.scene import Float32, Pixels, Scene
from fastinfogan.data.synthetic.sprites import SPRITES
from fastinfogan.errors import InputError
from fastinfogan_kernels import philox

SCENES: Final = {scene.name: scene for scene in (FACES, CHAIRS, SPRITES)}
COUNT = 50_000
"""Images of a set by default."""
MAX_COUNT: Final = 10_000_000

Progress = Callable[[int, int], None]
"""Called with the number of images rendered so far, and of all."""


def load(
    name: str, count: int | None = None, seed: int = 0, progress: Progress | None = None
) -> ImageSet:
    """Load a rendered set with its factors and a test split of a tenth of its size.

    An image depends only on the set, the seed and its index: a larger set begins with the images
    of a smaller one.

    Args:
        name: faces3d, chairs3d or sprites.
        count: number of images; None for `COUNT`.
        seed: of the factors.
        progress: called while images are rendered; not if they are stored already.

    Raises:
        InputError: an unknown name, or a count or seed out of range.
    """
    if name not in SCENES:
        raise InputError(f"name must be one of {', '.join(SCENES)}, not {name!r}")
    count = COUNT if count is None else count
    if not 1 <= count <= MAX_COUNT:
        raise InputError(f"count must be 1 to {MAX_COUNT:,}, not {count}")
    philox.require_seed(seed)
    scene = SCENES[name]
    splits = (count, max(count // 10, 1))
    numbers = [draw(scene, seed, rows, part) for part, rows in enumerate(splits)]
    title = f"{name}, rendered from seed {seed}"
    images = stored.read(scene, seed, splits)
    if images is None:
        images = stored.write(
            scene, seed, splits, _render(scene, np.concatenate(numbers), progress)
        )
    learn, test = (
        ImageSet(
            title if part == 0 else f"{title}, test",
            pixels,
            scene.labels(rows),
            None,
            scene.factors_of(rows),
        )
        for part, (pixels, rows) in enumerate(zip(np.split(images, [count]), numbers, strict=True))
    )
    return ImageSet(title, learn.images, learn.labels, test, learn.factors)


def draw(scene: Scene, seed: int, rows: int, part: int = 0) -> Float32:
    """Draw the numbers of images: float32 (rows, columns) in (-1, 1); part 1 is the test split.

    Raises:
        InputError: the seed is out of range.
    """
    return philox.uniform(philox.words(seed, part, philox.Stream.RENDERED, rows, scene.columns))


def _render(scene: Scene, numbers: Float32, progress: Progress | None) -> Pixels:
    """Render on all cores: NumPy releases the GIL."""
    images = np.empty((len(numbers), *scene.shape), np.uint8)
    if progress:
        progress(0, len(numbers))
    starts = range(0, len(numbers), scene.chunk)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = [slice(start, start + scene.chunk) for start in starts]
        done = 0
        try:
            for part, rendered in zip(
                parts, pool.map(lambda part: scene.render(numbers[part]), parts), strict=True
            ):
                images[part] = rendered
                done += len(rendered)
                if progress:
                    progress(done, len(numbers))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C waits for running chunks only
            raise
    return images
