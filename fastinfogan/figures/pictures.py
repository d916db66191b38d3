"""Grids of generated images, in the paper's layout."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastinfogan.errors import InputError
from fastinfogan.model import Model
from fastinfogan_kernels.latents import Latents
from fastinfogan_kernels.philox import Stream

COUNT, ROWS, STEPS = 100, 10, 11  # of the pictures that a run draws itself

_GAP = 2
_HEADER = 22
_INK, _PAPER = 40, 255
_MAX_IMAGES = 10_000  # in one picture
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MIN_SIDE = 56  # images are enlarged by a whole number to about this many pixels


def samples_name(count: int = COUNT, seed: int = 0) -> str:
    """Return the file name of a picture of samples; options that are not the default are in it."""
    options = (f"_seed{seed}" if seed else "") + (f"_count{count}" if count != COUNT else "")
    return f"samples{options}.png"


def draw_samples(model: Model, file: Path, count: int = COUNT, seed: int = 0) -> Path:
    """Draw images from the prior in a square grid and write it; the seed determines them.

    Raises:
        InputError: count is not in 1 to 10,000, the seed is out of range, or the file is not a
            .png that can be written.
    """
    if not 1 <= count <= _MAX_IMAGES:
        limit = "1 or more" if count < 1 else f"{_MAX_IMAGES:,} or less"
        raise InputError(f"`count` must be {limit}, not {count}")
    _require_png(file)
    latents = model.experiment.latents.draw(seed, 0, Stream.PICTURES, count)
    images = model.generate(latents).numpy()
    columns = int(np.ceil(np.sqrt(count)))
    title = f"{model.experiment.name}, iteration {model.iteration}, seed {seed}"
    return _write(_grid(images, columns), title, file)


def traversal_name(
    model: Model,
    code: str,
    *,
    rows: int = ROWS,
    steps: int = STEPS,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
) -> str:
    """Return the file name of a traversal; options that are not the default are in it."""
    left, right = _range(model, low, high)
    options = f"_from{left:.9g}_to{right:.9g}" if (left, right) != _range(model) else ""
    for option, value, default in (
        ("seed", seed, 0),
        ("rows", rows, ROWS),
        ("steps", steps, STEPS),
    ):
        options += f"_{option}{value}" if value != default else ""
    return f"traversal_{code}{options}.png"


def _range(
    model: Model, low: float | None = None, high: float | None = None
) -> tuple[float, float]:
    left, right = model.experiment.sweep
    return left if low is None else low, right if high is None else high


def draw_traversal(
    model: Model,
    code: str,
    file: Path,
    *,
    rows: int = ROWS,
    steps: int = STEPS,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
) -> Path:
    """Draw the paper's Figure 2 for one code, which varies from left to right, and write it.

    Noise and the other codes differ from row to row and are fixed within a row. Where another code
    is categorical, the first such one counts up from row to row.

    Args:
        model: the networks.
        code: c1, c2, ...
        file: the PNG to write.
        rows: number of rows.
        steps: number of columns of a continuous code; a categorical one has its classes.
        low: the value of a continuous code at the left; None for the experiment's.
        high: the value at the right; None for the experiment's.
        seed: of noise and codes.

    Raises:
        InputError: no such code, an empty range, or the file cannot be written.
    """
    require_code(model, code)
    _require_png(file)
    spec = model.experiment.latents
    for option, value, least in (("rows", rows, 1), ("steps", steps, 2)):
        if value < least:
            raise InputError(f"`{option}` must be {least} or more, not {value}")
        if value > _MAX_IMAGES // 100:
            raise InputError(f"`{option}` must be {_MAX_IMAGES // 100} or less, not {value}")
    index, categorical = spec.names.index(code), len(spec.categorical)
    values: NDArray[np.float32]
    if index < categorical:
        if low is not None or high is not None:
            raise InputError(f"{code} is categorical; `low` and `high` are for continuous codes")
        values = np.arange(spec.categorical[index].classes, dtype=np.float32)
        title = f"{code}: 0 to {len(values) - 1}"
    else:
        left, right = _range(model, low, high)
        for option, end in (("low", left), ("high", right)):
            if not abs(end) < _FLOAT32_MAX:
                raise InputError(f"`{option}` must be a finite number, not {end}")
        if not left < right:
            raise InputError(f"the range {left} to {right} of {code} is empty")
        values = np.linspace(left, right, steps, dtype=np.float32)
        title = f"{code}: {left:g} to {right:g}"
    drawn = spec.draw(seed, 0, Stream.PICTURES, rows)
    classes, continuous = drawn.classes.copy(), drawn.continuous.copy()
    if categorical and index > 0:
        classes[:, 0] = np.arange(rows) % spec.categorical[0].classes
    columns = len(values)
    latents = Latents(
        np.repeat(drawn.noise, columns, axis=0),
        np.repeat(classes, columns, axis=0),
        np.repeat(continuous, columns, axis=0),
    )
    if index < categorical:
        latents.classes[:, index] = np.tile(values, rows)
    else:
        latents.continuous[:, index - categorical] = np.tile(values, rows)
    return _write(_grid(model.generate(latents).numpy(), columns), title, file)


def require_code(model: Model, code: str) -> None:
    """Check a code's name.

    Raises:
        InputError: the run has no such code.
    """
    names = model.experiment.latents.names
    if code not in names:
        raise InputError(f"no code {code!r}; this run has {', '.join(names)}")


def draw_all(model: Model, folder: Path) -> list[Path]:
    """Write samples.png and one traversal per code, and return the files."""
    files = [draw_samples(model, folder / samples_name())]
    for code in model.experiment.latents.names:
        files.append(draw_traversal(model, code, folder / traversal_name(model, code)))
    return files


def _grid(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Lay images (N, height, width, channels) out in rows, enlarged by a whole number."""
    count, height, width, channels = images.shape
    scale = max(round(_MIN_SIDE / height), 1)
    rows = -(-count // columns)
    sheet = np.full((rows, height * scale + _GAP, columns, width * scale + _GAP, channels), _PAPER)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    for i, image in enumerate(large):
        sheet[i // columns, _GAP:, i % columns, _GAP:] = image
    pixels = sheet.reshape(rows * sheet.shape[1], columns * sheet.shape[3], channels)
    return Image.fromarray(pixels.astype(np.uint8).squeeze(-1 if channels == 1 else ()))


def _write(grid: Image.Image, title: str, file: Path) -> Path:
    sheet = Image.new(grid.mode, (grid.width + _GAP, grid.height + _HEADER + _GAP), "white")
    sheet.paste(grid, (0, _HEADER))
    ink = _INK if grid.mode == "L" else (_INK,) * 3
    ImageDraw.Draw(sheet).text((4, 3), title, ink, ImageFont.load_default(14))
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(partial, "PNG")
        os.replace(partial, file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"{file}: cannot be written: {error}") from error
    return file


def _require_png(file: Path) -> None:
    if file.suffix.lower() != ".png" or file.is_dir():
        raise InputError(f"{file}: pictures are written as .png files")
