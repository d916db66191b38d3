"""From files to uint8 images in memory."""

from fastinfogan.data.open import open_source
from fastinfogan.data.source import ImageShape, Source

__all__ = ["ImageShape", "Source", "open_source"]
