"""Sets of images with known factors, rendered from a seed: nothing is downloaded.

`open` renders a set once and keeps it in the cache; later it is mapped from there.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from fastinfogan.data.image_set import ImageSet
from fastinfogan.data.synthetic import kept
from fastinfogan.data.synthetic.chairs import CHAIRS
from fastinfogan.data.synthetic.faces import FACES
from fastinfogan.data.synthetic.scene import Numbers, Pixels, Scene
from fastinfogan.data.synthetic.sprites import SPRITES
from fastinfogan.errors import InputError
from fastinfogan_kernels import philox

SCENES: Final = {scene.name: scene for scene in (FACES, CHAIRS, SPRITES)}
COUNT = 50_000
"""How many images that set has."""
MAX_COUNT: Final = 10_000_000

Progress = Callable[[int, int], None]
"""Told how many images are rendered, and how many there will be."""


def open(
    name: str, count: int | None = None, seed: int = 0, progress: Progress | None = None
) -> ImageSet:
    """A rendered set, with its factors and a test part that is a tenth as large.

    An image is a function of the set, the seed and its number, and of nothing else: a larger set
    begins with the images of a smaller one.

    Args:
        name: faces3d, chairs3d or sprites.
        count: how many images; None for `COUNT`.
        seed: of what is drawn.
        progress: told 0 at the start, then as images are rendered; nothing where they are kept.

    Raises:
        InputError: no such set, no such number of images, or a seed out of range.
    """
    if name not in SCENES:
        raise InputError(f"no rendered set {name!r}; there are {', '.join(SCENES)}")
    count = COUNT if count is None else count
    if not 1 <= count <= MAX_COUNT:
        raise InputError(f"a rendered set has 1 to {MAX_COUNT:,} images, not {count}")
    philox.require_seed(seed)
    scene = SCENES[name]
    parts = (count, max(count // 10, 1))
    numbers = [draw(scene, seed, rows, part) for part, rows in enumerate(parts)]
    title = f"{name}, rendered from seed {seed}"
    images = kept.read(scene, seed, parts)
    if images is None:
        images = kept.write(scene, seed, parts, _render(scene, np.concatenate(numbers), progress))
    learn, test = (
        ImageSet(
            title if part == 0 else f"{title}, test",
            pixels,
            scene.labels(rows),
            None,
            scene.known(rows),
        )
        for part, (pixels, rows) in enumerate(zip(np.split(images, [count]), numbers, strict=True))
    )
    return ImageSet(title, learn.images, learn.labels, test, learn.factors)


def draw(scene: Scene, seed: int, rows: int, part: int = 0) -> Numbers:
    """The numbers of a set's images, float32 (rows, columns) in (-1, 1); part 1 is its test part.

    Raises:
        InputError: the seed is out of range.
    """
    return philox.uniform(philox.words(seed, part, philox.Stream.RENDERED, rows, scene.columns))


def _render(scene: Scene, numbers: Numbers, progress: Progress | None) -> Pixels:
    """Render by all cores: NumPy lets others run while it computes."""
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
            pool.shutdown(cancel_futures=True)  # Ctrl-C waits for what is begun, not for the rest
            raise
    return images
