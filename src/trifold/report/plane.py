"""The latent plane of a model: cells, how the surface bends below them, and what a circle of data space looks like there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trifold.data import open
from trifold.data.source import PickedSource
from trifold.errors import SchemaError, SpecError, listing, suggest
from trifold.geometry import metric
from trifold.report.labels import label, settle
from trifold.report.style import SMALL, decades, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trifold.data import Source
    from trifold.model import Model

CURVATURES = {"extrinsic": "extrinsic curvature × R²", "parameter": "parameter-effects curvature × R²"}
_MOST = 5_000  # cells that are drawn
_LISTED = 12  # different numbers up to which a column of numbers is taken for classes
# Okabe and Ito's palette but yellow, which is hard to see on white; with another marker in each round
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#444444")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_MAP = "cividis"  # from light where flat to dark where bent: the same order in grey and for any colour vision
_LIGHTEST = 0.9  # share of the map that is used: beyond, cells would be lost on white


@dataclass(frozen=True)
class Plane:
    """Cells in a plane of the latent.

    Args:
        source: The cells that are drawn, at most 5,000.
        latent: [n, d] latents.
        xy: [n, 2] where they are drawn.
        frame: [d, 2]: xy = (latent - origin) @ frame.
        origin: [d].
        names: Of the two axes, with units.
    """

    source: Source
    latent: np.ndarray
    xy: np.ndarray
    frame: np.ndarray
    origin: np.ndarray
    names: tuple[str, str]

    def of(self, z: Any) -> np.ndarray:
        """[k, 2] of latent points [k, d]."""
        return (np.asarray(z, dtype=np.float64) - self.origin) @ self.frame

    @property
    def d(self) -> int:
        """Latent dimensions."""
        return self.latent.shape[1]


def plane_of(model: Model, data: Any, *, rectified: bool = True, most: int = _MOST) -> Plane:
    """The latent plane of some cells: the latent itself if it has two dimensions, else its first two principal axes.

    Args:
        model: A trained model.
        data: Cells; of more than ``most``, an even choice.
        rectified: In coordinates in which distances are lengths in data space, as nearly as can be.
        most: Cells at most.

    Raises:
        SpecError: A latent of one dimension.
    """
    source = open(data, x=model.schema.x)
    if source.n > most:
        source = PickedSource(source, rows=np.linspace(0, source.n - 1, most).round().astype(np.int64))
    z = model.latent(source).astype(np.float64)
    d = z.shape[1]
    if d < 2:
        raise SpecError(f"A plane needs a latent of at least 2 dimensions; the model has {d}. Train with latent=2.")
    frame = np.asarray(model.card["rectifier"], dtype=np.float64) if rectified else np.eye(d)
    origin, names = np.zeros(d), ("latent 1", "latent 2")
    if d > 2:
        origin = z.mean(0)
        axes, size, _ = np.linalg.svd(frame.T @ (z - origin).T @ (z - origin) @ frame)
        frame = frame @ axes[:, :2]
        names = tuple(f"principal axis {j + 1} of the latent ({100 * size[j] / size.sum():.0f} %)" for j in range(2))  # type: ignore[assignment]
    if rectified:
        names = (f"{names[0]}, rectified: length in data space", f"{names[1]}, rectified")
    return Plane(source, z, (z - origin) @ frame, frame, origin, names)


def squared_radius(model: Model, latent: np.ndarray, under: Mapping[str, Any] | None = None) -> float:
    """R²: mean squared distance of the decoded cells to their centroid, in length² of data space.

    Curvature times R² has no unit: where it is d, the surface bends as a sphere would that the cells lie on.

    Args:
        model: A trained model.
        latent: [n, d] latents of the cells.
        under: column -> value of the covariates that the decoder sees.
    """
    surface = model.surface(under)
    square, total = 0.0, 0.0
    with torch.no_grad():
        first = surface(torch.as_tensor(latent[:1], dtype=torch.float32)).double()
        for start in range(0, len(latent), 1024):
            x = surface(torch.as_tensor(latent[start : start + 1024], dtype=torch.float32)).double() - first
            square, total = square + x.square().sum(), total + x.sum(0)  # type: ignore[assignment]
    return float(square / len(latent) - (total / len(latent)).square().sum())  # type: ignore[attr-defined]


def bends(model: Model, plane: Plane, which: str, under: Mapping[str, Any] | None = None) -> np.ndarray:
    """[n] curvature × R² at each cell of a plane, dimensionless; ``which`` is ``"extrinsic"`` or ``"parameter"``."""
    return model.curvature(plane.source)[which].to_numpy(dtype=np.float64) * squared_radius(model, plane.latent, under)  # type: ignore[no-any-return]


def plot_plane(
    model: Model,
    data: Any,
    *,
    color: str = "extrinsic",
    labels: str | None = None,
    ellipses: bool = True,
    rectified: bool = True,
    under: Mapping[str, Any] | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Cells in the latent plane, coloured by how the surface bends below them or by a column of obs.

    Args:
        model: A trained model of two latent dimensions; of more, the first two principal axes are drawn, without ellipses.
        data: The cells.
        color: ``"extrinsic"``: how fast the surface turns; ``"parameter"``: how fast the latent grid stretches; or a column of obs.
            Curvatures are times R², the mean squared distance of the decoded cells to their centroid.
        labels: Column of obs whose classes are named at their centres; None: ``color``, if that is a column of classes.
        ellipses: Draw what circles of one radius in data space are in the plane: all equal and round where the grid is even.
        rectified: In coordinates in which distances are lengths in data space, as nearly as can be.
        under: column -> value of the covariates that the decoder sees, for ellipses and R²; columns that are not named count as unknown.
        limits: Least and greatest value of the colour scale; None: from the cells.
        title: Above the plane.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.

    Raises:
        SchemaError: No such column.
        SpecError: A latent of one dimension, or, for a curvature, a decoder with kinks.
    """
    from matplotlib.figure import Figure

    plane = plane_of(model, data, rectified=rectified)
    figure = Figure(figsize=(7.4, 5.8), layout="constrained")
    ax = figure.subplots()
    draw_plane(ax, model, plane, color=color, under=under, limits=limits, title=title)
    if ellipses and plane.d == 2:
        draw_ellipses(ax, model, plane, under=under)
    named = labels or (color if color not in CURVATURES and is_classes(column_of(plane, color)) else None)
    settle(ax)
    if named is not None:
        draw_names(ax, plane, named)
    return figure


def draw_plane(
    ax: Axes,
    model: Model,
    plane: Plane,
    *,
    color: str = "extrinsic",
    under: Mapping[str, Any] | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """The cells of a plane, coloured as in :func:`plot_plane`; the plane's two axes have one scale."""
    if color in CURVATURES:
        values = bends(model, plane, color, under)
        name = CURVATURES[color] + (f"  (sphere: {plane.d})" if color == "extrinsic" else "  (even grid: 0)")
        _numbers(ax, plane, values, name, limits, log=True)
    else:
        series = column_of(plane, color)
        if is_classes(series):
            _classes(ax, plane, series)
        else:
            _numbers(ax, plane, series.to_numpy(dtype=np.float64), color, limits, log=False)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.04)
    plain(ax, title=title, x=plane.names[0], y=plane.names[1])


def draw_ellipses(ax: Axes, model: Model, plane: Plane, *, under: Mapping[str, Any] | None = None) -> None:
    """Circles of one radius in data space, as they look in the plane, on a grid over the cells; below the axes, their radius.

    Args:
        ax: Where the plane is drawn.
        model: A trained model of two latent dimensions.
        plane: Its plane.
        under: column -> value of the covariates that the decoder sees.
    """
    from matplotlib.collections import PolyCollection

    spots, spacing = grid_of(plane.xy)
    z = torch.as_tensor(spots @ np.linalg.inv(plane.frame) + plane.origin, dtype=torch.float32)
    with torch.no_grad():
        g = metric(model.surface(under), z).double().numpy()
    back = np.linalg.inv(plane.frame)
    values, axes = np.linalg.eigh(back @ g @ back.T)  # the metric in the coordinates that are drawn
    reach = 1 / np.sqrt(np.maximum(values, 1e-12 * values[:, -1:]))  # how far one length of data space reaches in the plane
    radius = round_down(0.45 * spacing / float(np.quantile(reach[:, 0], 0.9)))
    turn = np.linspace(0, 2 * np.pi, 49)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    outlines = np.swapaxes((axes * (radius * reach)[:, None]) @ circle, 1, 2) + spots[:, None]
    ax.add_collection(PolyCollection(list(outlines), facecolors="none", edgecolors="#222222", linewidths=0.7, zorder=4), autolim=False)
    ax.set_xlabel(f"{ax.get_xlabel()}\n○ circles of radius {radius:g} in data space", fontsize=SMALL)


def draw_names(ax: Axes, plane: Plane, column: str, *, clear: Any = None) -> None:
    """Names of classes at the medians of their cells, the largest class first, beside points that are kept clear.

    Args:
        ax: Settled axes (``figure.draw_without_rendering()``), for what is drawn later may move the names.
        plane: What is drawn there.
        column: Column of obs with classes.
        clear: [m, 2] points that should stay seen, such as those of a path.
    """
    values = column_of(plane, column).astype(object)
    groups = values.dropna().map(str).value_counts()
    text = values.map(str).to_numpy()
    at = np.array([np.median(plane.xy[text == name], axis=0) for name in groups.index]).reshape(-1, 2)
    label(ax, at, list(groups.index), cells=plane.xy, clear=clear, size=SMALL if len(groups) <= 15 else SMALL - 1)


def column_of(plane: Plane, name: str) -> pd.Series:
    """A column of obs of the cells that are drawn.

    Raises:
        SchemaError: No such column.
    """
    obs = plane.source.obs
    if name not in obs:
        options = [*CURVATURES, *map(str, obs.columns)]
        raise SchemaError(f"obs has no column {name!r}.{suggest(name, options)} A plane can be coloured by: {listing(options, 20)}.")
    return obs[name]


def is_classes(series: pd.Series) -> bool:
    """Whether a column holds classes rather than numbers to be measured."""
    return series.dtype.kind not in "iuf" or series.nunique() <= _LISTED


def grid_of(xy: np.ndarray, across: int = 12) -> tuple[np.ndarray, float]:
    """Points of a square grid that have cells near them, and its spacing.

    Args:
        xy: [n, 2].
        across: Steps along the longer side.

    Returns:
        ([k, 2], spacing); the cells' centre where a grid has no place.
    """
    from scipy.spatial import cKDTree

    low, high = np.quantile(xy, 0.005, axis=0), np.quantile(xy, 0.995, axis=0)
    spacing = float((high - low).max() / across)
    if not spacing > 0:
        return xy.mean(0, keepdims=True), 1.0
    count = np.maximum(np.round((high - low) / spacing), 1).astype(int)
    sides = [(low[j] + high[j]) / 2 + spacing * (np.arange(count[j] + 1) - count[j] / 2) for j in range(2)]
    spots = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
    near = cKDTree(xy).query(spots)[0] <= 0.6 * spacing
    return (spots[near], spacing) if near.any() else (xy.mean(0, keepdims=True), spacing)


def round_down(value: float) -> float:
    """The greatest of 1, 2, 5 times a power of ten that is not above the value."""
    if not (value > 0 and np.isfinite(value)):
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * max(m for m in (1, 2, 5) if m * power <= value * (1 + 1e-9)))


def _numbers(ax: Axes, plane: Plane, values: np.ndarray, name: str, limits: tuple[float, float] | None, *, log: bool) -> None:
    """Cells coloured by a number, the greatest on top; on a log scale where they span more than a decade."""
    from matplotlib.colors import LogNorm, Normalize

    known = np.isfinite(values)
    shown = values[known] if known.any() else np.zeros(1)
    low, high = limits or (float(np.quantile(shown, 0.02)), float(np.quantile(shown, 0.98)))
    logarithmic = log and low > 0 and high > 10 * low
    low = low if logarithmic or not log or limits else min(low, 0.0)
    high = high if high > low else low + 1.0
    norm = LogNorm(low, high, clip=True) if logarithmic else Normalize(low, high, clip=True)
    _hollow(ax, plane.xy[~known])
    order = np.flatnonzero(known)[np.argsort(values[known], kind="stable")]
    x, y = plane.xy[order].T
    drawn = ax.scatter(x, y, c=values[order], norm=norm, cmap=colours(), s=_size(len(plane.xy)), edgecolors="#777777", linewidths=0.2)
    bar = ax.figure.colorbar(drawn, ax=ax, extend="both", fraction=0.05, pad=0.02)
    bar.set_label(name, fontsize=SMALL)
    if logarithmic:
        decades(bar.ax.yaxis, low, high)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)  # type: ignore[operator]


def colours() -> Any:
    """The colour map of all numbers: the darker, the more."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    return ListedColormap(mpl.colormaps[_MAP](np.linspace(_LIGHTEST, 0, 256)), name="trifold")


def _classes(ax: Axes, plane: Plane, series: pd.Series) -> None:
    """Cells with a colour and marker for each class."""
    text = series.astype(object).map(str).astype(object).where(series.notna(), None).to_numpy()
    _hollow(ax, plane.xy[series.isna().to_numpy()])
    for j, name in enumerate(sorted({t for t in text if t is not None})):
        colour, marker = _COLOURS[j % len(_COLOURS)], _MARKERS[(j + j // len(_COLOURS)) % len(_MARKERS)]
        x, y = plane.xy[text == name].T
        ax.scatter(x, y, s=_size(len(plane.xy)), color=colour, marker=marker, alpha=0.75, edgecolors="white", linewidths=0.2, label=name)


def _hollow(ax: Axes, xy: np.ndarray) -> None:
    """Cells of which nothing is known."""
    ax.scatter(xy[:, 0], xy[:, 1], s=14, facecolors="none", edgecolors="#999999", linewidths=0.5)


def _size(n: int) -> float:
    """Area of a cell's marker, in points²."""
    return float(np.clip(9_000 / max(n, 1), 5, 22))
