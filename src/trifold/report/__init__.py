"""Plots of what a model predicts, beside what is real and what would have been guessed; of its surface; and of what its blocks hold."""

from trifold.report.embedding import draw_embedding, plot_embedding, umap_of
from trifold.report.genes import draw_genes, plot_genes
from trifold.report.geometry import draw_groups, plot_geometry
from trifold.report.images import images
from trifold.report.paths import draw_path, plot_paths
from trifold.report.plane import draw_ellipses, draw_names, draw_plane, plane_of, plot_plane, squared_radius
from trifold.report.response import draw_cells, draw_change, draw_history, draw_scores, response
from trifold.report.separation import draw_separation, plot_separation

__all__ = [
    "draw_cells",
    "draw_change",
    "draw_ellipses",
    "draw_embedding",
    "draw_genes",
    "draw_groups",
    "draw_history",
    "draw_names",
    "draw_path",
    "draw_plane",
    "draw_scores",
    "draw_separation",
    "images",
    "plane_of",
    "plot_embedding",
    "plot_genes",
    "plot_geometry",
    "plot_paths",
    "plot_plane",
    "plot_separation",
    "response",
    "squared_radius",
    "umap_of",
]
