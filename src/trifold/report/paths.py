"""Paths between groups of cells in the latent plane: straight in the latent, and shortest on the surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.data import splits
from trifold.errors import SpecError
from trifold.report.labels import settle
from trifold.report.plane import Plane, draw_ellipses, draw_names, draw_plane, plane_of
from trifold.report.style import SMALL

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trifold.model import Model

_STEPS = 100  # points by which a path is drawn
_MOST = 9  # paths in one plane


def plot_paths(
    model: Model,
    data: Any,
    pairs: Sequence[tuple[Any, Any]],
    *,
    column: str | None = None,
    color: str | None = None,
    ellipses: bool = False,
    rectified: bool = True,
    under: Mapping[str, Any] | None = None,
    title: str = "",
) -> Figure:
    """Shortest paths on the surface beside straight lines in the latent, between groups of cells, with both lengths.

    Args:
        model: A trained model of two or more latent dimensions; of more than two, the first two principal axes are drawn.
        data: The cells; a group's end of a path is the mean latent of its cells.
        pairs: (from, to) of each path, nine at most: values of ``column``, or selections as ``Model.path`` takes them, such as
            ``{"tissue": "Lung"}``.
        column: Column of obs whose classes are named; needed where pairs are values.
        color: ``"extrinsic"``, ``"parameter"`` or a column of obs; None: ``column``.
        ellipses: Draw what circles of data space are in the plane.
        rectified: In coordinates in which distances are lengths in data space, as nearly as can be.
        under: column -> value of the covariates that the decoder sees.
        title: Above the plane.

    Returns:
        A figure; below the plane, for each path, both lengths in data space and their ratio, the straightness of the latent.

    Raises:
        SpecError: No pair or more than nine, a value without ``column``, or a latent of one dimension.
        SchemaError: An unknown column or value, or no cell matches.
    """
    from matplotlib.figure import Figure

    if not 1 <= len(pairs) <= _MOST:
        raise SpecError(
            f"plot_paths needs one to {_MOST} pairs (from, to); found {len(pairs)}. Pass pairs=[('A', 'B')]; draw more in a second figure."
        )
    ends = [(selection_of(a, column), selection_of(b, column)) for a, b in pairs]
    shown = column or next(iter(ends[0][0]))
    plane = plane_of(model, data, rectified=rectified)
    figure = Figure(figsize=(7.4, 6.0 + 0.2 * len(pairs)), layout="constrained")
    ax = figure.subplots()
    draw_plane(ax, model, plane, color=color or shown, under=under, title=title)
    if ellipses and plane.d == 2:
        draw_ellipses(ax, model, plane, under=under)
    paths = [model.path(middle(plane, a), middle(plane, b), kind="geodesic", steps=_STEPS, under=under) for a, b in ends]
    lines = []
    for j, (path, (a, b)) in enumerate(zip(paths, ends, strict=True)):
        number = f"{j + 1}" if len(paths) > 1 else ""
        draw_path(ax, plane, path, number=number)
        lines.append(f"{number + '  ' if number else ''}{called(a)} → {called(b)}: {lengths(path)}")
    figure.supxlabel("\n".join(lines), fontsize=SMALL, x=0.02, ha="left", linespacing=1.5)
    settle(ax)
    draw_names(ax, plane, shown, clear=np.concatenate([way(plane, path) for path in paths]))
    return figure


def draw_path(ax: Axes, plane: Plane, path: AnnData, *, number: str = "") -> None:
    """A path in a plane: shortest on the surface as a line with a dot at every tenth of its length, straight in the latent dashed.

    Args:
        ax: Where the plane is drawn.
        plane: Of the model that the path is of.
        path: From ``model.path(..., kind="geodesic")``.
        number: Written at the middle of the way.
    """
    from matplotlib.patheffects import withStroke

    xy, share = plane.of(path.obsm["latent"]), path.obs["position"].to_numpy()
    around = [withStroke(linewidth=4.2, foreground="white")]
    ax.plot(xy[[0, -1], 0], xy[[0, -1], 1], color="#000000", linewidth=1.6, linestyle=(0, (4, 2.2)), zorder=6, path_effects=around)
    ax.plot(xy[:, 0], xy[:, 1], color="#D55E00", linewidth=2.2, zorder=7, path_effects=around)
    tenths = np.stack([np.interp(np.linspace(0, 1, 11), share, xy[:, j]) for j in range(2)], 1)
    x, y = tenths.T
    ax.scatter(x[1:-1], y[1:-1], s=12, color="#FFFFFF", edgecolors="#D55E00", linewidths=1.1, zorder=8)
    ax.scatter(x[[0, -1]], y[[0, -1]], s=52, color=["#FFFFFF", "#000000"], edgecolors="#000000", linewidths=1.6, zorder=8)
    if number:
        ax.text(
            x[5],
            y[5],
            number,
            fontsize=SMALL,
            fontweight="bold",
            ha="center",
            va="center",
            zorder=9,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "#D55E00"},
        )


def way(plane: Plane, path: AnnData) -> np.ndarray:
    """[2 k, 2] points of a path and of the straight line between its ends, in the plane."""
    xy = plane.of(path.obsm["latent"])
    share = np.linspace(0, 1, len(xy))[:, None]
    return np.concatenate([xy, xy[:1] + share * (xy[-1:] - xy[:1])])


def lengths(path: AnnData) -> str:
    """Both lengths of a path's ends in data space, and their ratio, in words."""
    about = path.uns["trifold"]
    length = about["length"]
    return (
        f"straight in the latent {length['straight']:.4g}, shortest on the surface {length['geodesic']:.4g}, "
        f"ratio {about['straightness']:.3f}"
    )


def selection_of(given: Any, column: str | None) -> dict[str, Any]:
    """A selection of cells, from a value of the column or a selection.

    Raises:
        SpecError: A value, and no column that it could be of.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if column is None:
        raise SpecError(
            f"plot_paths needs to know which column {given!r} is a value of. "
            f"Pass column='cell_type', or the selection {{'cell_type': {given!r}}}."
        )
    return {column: given}


def called(selection: Mapping[str, Any]) -> str:
    """A selection in words: its values."""
    return ", ".join(" or ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for v in selection.values())


def middle(plane: Plane, selection: Mapping[str, Any]) -> np.ndarray:
    """[d] mean latent of the cells that a selection matches.

    Raises:
        SchemaError: An unknown column or value, or no cell matches.
    """
    return plane.latent[splits.some(plane.source.obs, selection)].mean(0)  # type: ignore[no-any-return]
