"""Plots of what a model predicts, beside what is real and what would have been guessed without it."""

from trifold.report.images import images
from trifold.report.response import draw_cells, draw_change, draw_history, draw_scores, response

__all__ = ["draw_cells", "draw_change", "draw_history", "draw_scores", "images", "response"]
