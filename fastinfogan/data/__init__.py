"""Image sets: formats, decoding, cache and the training loader."""

from fastinfogan.data.image_set import ImageSet, ImageShape
from fastinfogan.data.open import open_image_set

__all__ = ["ImageSet", "ImageShape", "open_image_set"]
