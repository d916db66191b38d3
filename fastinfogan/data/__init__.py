"""From files to uint8 images in memory, and the order in which a run sees them."""

from fastinfogan.data.open import open_source
from fastinfogan.data.order import EpochOrder
from fastinfogan.data.source import ImageShape, Source

__all__ = ["EpochOrder", "ImageShape", "Source", "open_source"]
