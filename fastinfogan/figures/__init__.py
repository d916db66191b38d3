"""Pictures of a trained model: samples, traversals of each code, the paper's Figure 1."""

from fastinfogan.figures.curves import draw_figure1
from fastinfogan.figures.pictures import (
    draw_all,
    draw_samples,
    draw_traversal,
    samples_name,
    traversal_name,
)

__all__ = [
    "draw_all",
    "draw_figure1",
    "draw_samples",
    "draw_traversal",
    "samples_name",
    "traversal_name",
]
