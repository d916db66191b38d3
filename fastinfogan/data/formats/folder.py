"""Any folder of pictures, its subfolders included, in the order of their names."""

from pathlib import Path

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.decoders.geometry import recipe
from fastinfogan.data.image_set import EncodedImageSet, ImageShape
from fastinfogan.data.listing import SUFFIXES, list_images
from fastinfogan.errors import InputError


class NoPicturesError(InputError):
    """There are no pictures in a folder."""


def read(path: Path, shape: ImageShape, damaged: OnBadImage = "fail") -> EncodedImageSet:
    """List every picture: its largest centred box of the right proportions becomes the image.

    Args:
        path: the folder.
        shape: of the images.
        damaged: whether subfolders that cannot be read are left out.

    Raises:
        NoPicturesError: there are no pictures.
        InputError: a folder that cannot be read.
    """
    pictures = list_images(path, damaged)
    if not pictures:
        raise NoPicturesError(
            f"{path}: no pictures in this folder (looked for {', '.join(sorted(SUFFIXES))})"
        )
    return EncodedImageSet(str(path), pictures, recipe("plain", shape))
