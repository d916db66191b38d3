"""`python -m fastinfogan.data.synthetic FOLDER`: contact sheets of the three sets, as PNG."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from fastinfogan.data.synthetic import SCENES, draw
from fastinfogan.data.synthetic.scene import Float32, Pixels, Scene

_COLUMNS = 8  # as many as there are types of chairs
_ROWS = 3  # of images as they are drawn
_THREE_QUARTER_VIEW = 0.8  # of periodic factors while others vary
_GAP = 12  # pixels between those and the sweeps


def sheet(scene: Scene) -> Pixels:
    """Render random images, then a row per factor in which it varies from left to right.

    Returns:
        uint8 (height, width).
    """
    drawn = draw(scene, 1, _ROWS * _COLUMNS + len(scene.factors))
    parts = [_rows(scene, drawn[: _ROWS * _COLUMNS])]
    sweeps = np.repeat(drawn[_ROWS * _COLUMNS :, None], _COLUMNS, axis=1)
    for i, factor in enumerate(scene.factors):
        if factor.period:  # the last column would be the first again
            sweeps[i, :, i] = np.linspace(-1, 1, _COLUMNS + 1, dtype=np.float32)[:-1]
        else:
            sweeps[i, :, i] = np.linspace(-1, 1, _COLUMNS, dtype=np.float32)
            turns = [j for j, other in enumerate(scene.factors) if other.period]
            sweeps[i, :, turns] = _THREE_QUARTER_VIEW
    parts.append(np.full((_GAP, parts[0].shape[1]), 255, np.uint8))
    parts.append(_rows(scene, sweeps.reshape(-1, scene.columns)))
    scale = 64 // scene.shape.height
    return np.concatenate(parts).repeat(scale, axis=0).repeat(scale, axis=1)


def _rows(scene: Scene, numbers: Float32) -> Pixels:
    images = scene.render(numbers)[..., 0].reshape(-1, _COLUMNS, *scene.shape[:2])
    return images.transpose(0, 2, 1, 3).reshape(-1, _COLUMNS * scene.shape.width)


def main() -> None:
    """Write the sheets."""
    parser = argparse.ArgumentParser(description="Write contact sheets of the rendered sets.")
    parser.add_argument("folder", type=Path, help="to write them to")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in SCENES.items():
        file = folder / f"{name}.png"
        Image.fromarray(sheet(scene)).save(file, optimize=True)
        print(file)


if __name__ == "__main__":
    main()
