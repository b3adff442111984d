"""One page on the shape of a model's surface: the plane, how it bends, and the genes on the way from one group of cells to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trifold.report.genes import draw_genes, genes_of, unit_of
from trifold.report.labels import settle
from trifold.report.paths import called, draw_path, lengths, middle, selection_of, way
from trifold.report.plane import CURVATURES, Plane, bends, column_of, draw_ellipses, draw_names, draw_plane, plane_of
from trifold.report.style import PLAIN, SMALL, decades, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trifold.model import Model


def plot_geometry(
    model: Model,
    data: Any,
    *,
    column: str,
    a: Any,
    b: Any,
    genes: Any = None,
    top: int = 12,
    rectified: bool = True,
    under: Mapping[str, Any] | None = None,
    title: str = "",
) -> Figure:
    """The page: classes with a path, curvature with ellipses, curvature of each class, and genes along the path.

    Args:
        model: A trained model of two or more latent dimensions.
        data: The cells.
        column: Column of obs with classes.
        a, b: Ends of the path: values of ``column``, or selections as ``Model.path`` takes them.
        genes: Which genes; None: the ``top`` that change most along the shortest path.
        top: How many, if genes are not named.
        rectified: In coordinates in which distances are lengths in data space, as nearly as can be.
        under: column -> value of the covariates that the decoder sees.
        title: Above all.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.

    Raises:
        SchemaError: An unknown column, value or gene.
        SpecError: A latent of one dimension, or a decoder with kinks.
    """
    from matplotlib.figure import Figure

    plane = plane_of(model, data, rectified=rectified)
    column_of(plane, column)
    start, end = selection_of(a, column), selection_of(b, column)
    path = model.path(middle(plane, start), middle(plane, end), kind="geodesic", steps=100, under=under)
    chosen = genes_of(path, genes, top)
    down = -(-len(chosen) // 6)
    figure = Figure(figsize=(14.5, 5.9 + 1.75 * down), layout="constrained")
    upper, lower = cast("Any", figure.subfigures)(2, 1, height_ratios=(5.4, 0.5 + 1.75 * down))
    left, middle_, right = upper.subplots(1, 3, width_ratios=(1.25, 1.3, 0.62))
    draw_plane(left, model, plane, color=column, under=under, title="Classes and a path")
    draw_path(left, plane, path)
    draw_plane(middle_, model, plane, under=under, title="How the surface bends")
    if plane.d == 2:
        draw_ellipses(middle_, model, plane, under=under)
    draw_groups(right, model, plane, column, under=under)
    draw_genes(lower.subplots(down, 6, squeeze=False, sharex=True), path, chosen)
    lower.suptitle(f"Genes from {called(start)} to {called(end)}: {lengths(path)}", fontsize=PLAIN, fontweight="bold", x=0.02, ha="left")
    lower.supxlabel("length travelled in data space", fontsize=SMALL)
    lower.supylabel(unit_of(path), fontsize=SMALL)
    if title:
        figure.suptitle(title, fontsize=PLAIN + 2, fontweight="bold", x=0.02, ha="left")
    settle(left)
    draw_names(left, plane, column, clear=way(plane, path))
    return figure


def draw_groups(
    ax: Axes, model: Model, plane: Plane, column: str, *, which: str = "extrinsic", under: Mapping[str, Any] | None = None
) -> None:
    """Curvature × R² of the cells of each class: median as a dot, the middle half as a bar; the most bent class above.

    Args:
        ax: Where.
        model: A trained model.
        plane: The cells.
        column: Column of obs with classes.
        which: ``"extrinsic"`` or ``"parameter"``.
        under: column -> value of the covariates that the decoder sees, for R².
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = bends(model, plane, which, under)
    series = column_of(plane, column)
    text = series.astype(object).map(str).to_numpy()
    names = sorted(set(text[series.notna().to_numpy()]))
    quarters = np.array([np.quantile(values[text == name], (0.25, 0.5, 0.75)) for name in names])
    order = np.argsort(quarters[:, 1], kind="stable")
    y = np.arange(len(names))
    ax.hlines(y, quarters[order, 0], quarters[order, 2], color="#8C8C8C", linewidth=3)
    ax.scatter(quarters[order, 1], y, s=34, color="#000000", zorder=3)
    ax.set_yticks(y, [f"{names[j]} ({int((text == names[j]).sum()):,})" for j in order], fontsize=SMALL)
    if quarters.min() > 0 and quarters.max() > 10 * quarters.min():
        ax.set_xscale("log")
        decades(ax.xaxis, quarters.min(), quarters.max())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    plain(ax, title="By class", x=f"{CURVATURES[which]}\n(median, middle half)")
    ax.tick_params(axis="y", labelsize=SMALL)
