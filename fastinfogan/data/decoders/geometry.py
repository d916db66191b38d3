"""What is cut out of each set's pictures before they are resized."""

from typing import Final, Literal

from fastinfogan.data.image_set import CropResize, ImageShape

RecipeName = Literal["celeba", "svhn", "chairs", "plain"]

CROPS: Final[dict[RecipeName, tuple[int, int] | None]] = {
    # The face: of the aligned 218x178, the middle 128x128.
    "celeba": (128, 128),
    # 32x32 as they are.
    "svhn": None,
    # Of 600x600 the middle: the outer 100 pixels are margin, and at 64x64 a third of an image.
    "chairs": (400, 400),
    # The largest box of the image's proportions.
    "plain": None,
}
"""Height and width of a box in the picture's centre; None for the largest that fits."""


def recipe(name: RecipeName, shape: ImageShape) -> CropResize:
    """A set's recipe for images of a shape."""
    return CropResize(shape, CROPS[name])


def box(of: CropResize, height: int, width: int) -> tuple[int, int, int, int]:
    """What a recipe cuts out of a picture: its top, left, height and width.

    Raises:
        ValueError: the picture is smaller.
    """
    if of.crop:
        down, across = of.crop
        if down > height or across > width:
            raise ValueError(f"{height}x{width}, smaller than the {down}x{across} that are cut out")
    else:
        shape = of.shape
        down = min(height, max(round(width * shape.height / shape.width), 1))
        across = min(width, max(round(height * shape.width / shape.height), 1))
    return (height - down) // 2, (width - across) // 2, down, across
