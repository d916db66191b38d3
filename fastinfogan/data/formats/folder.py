"""Any folder of image files, subfolders included, in the order of their names."""

from pathlib import Path

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.formats import Format, register
from fastinfogan.data.image_set import CropResize, EncodedImageSet, ImageShape
from fastinfogan.data.listing import has_images, list_images


def detect(path: Path) -> bool:
    """Return whether a path is a folder with an image in it or below it."""
    return path.is_dir() and has_images(path)


def read(path: Path, shape: ImageShape, on_bad_image: OnBadImage = "fail") -> EncodedImageSet:
    """List every image; the largest centre crop of the right aspect ratio is resized.

    Raises:
        InputError: a folder cannot be read, and `on_bad_image` is "fail".
    """
    return EncodedImageSet(str(path), list_images(path, on_bad_image), CropResize(shape))


register(Format("folder", "a folder of images", detect, read, priority=90))
