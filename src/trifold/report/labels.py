"""Names beside points, moved until no two of them overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trifold.report.style import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top, in points of print

_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_RINGS = (9.0, 16.0, 24.0, 34.0, 46.0, 60.0, 76.0)  # points of print


def settle(ax: Axes) -> None:
    """Lay the figure out, so that places on the page are known; before :func:`label`, after all axes are drawn."""
    page_of(ax).draw_without_rendering()


def label(
    ax: Axes, at: Any, names: Sequence[str], *, cells: Any = None, clear: Any = None, size: float = SMALL, weight: str = "bold"
) -> list[Box]:
    """Write names at points, each where it overlaps none that is there, stays in the axes and hides few cells.

    Args:
        ax: Settled axes (:func:`settle`).
        at: [k, 2] points in data coordinates; the first ones choose first.
        names: [k].
        cells: [n, 2] in data coordinates; places with few of them are preferred.
        clear: [m, 2] in data coordinates; places without any are preferred.
        size: Of the text, in points.
        weight: Of the font.

    Returns:
        The boxes that the names take.
    """
    from matplotlib.patheffects import withStroke

    scale = 72 / page_of(ax).dpi
    spots, crowd, kept = (_on_page(ax, points) * scale for points in (at, cells, clear))
    frame = np.asarray(ax.get_window_extent().extents) * scale
    shifts = np.concatenate([[[0.0, 0.0]], *(r * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1) for r in _RINGS)])
    boxes: list[Box] = []
    for spot, name in zip(spots, names, strict=True):
        half = np.asarray(extent(name, size, weight)) / 2 + (1.5, 1.0)
        stretch = shifts * np.where(np.arange(len(shifts)) > 0, 1, 0)[:, None] * (1 + half / (half.sum() + 1))
        centres = spot + stretch
        low, high = centres - half, centres + half
        cost = np.linalg.norm(stretch, axis=1) / 10
        for box in boxes:
            wide = np.minimum(high[:, 0], box[2]) - np.maximum(low[:, 0], box[0])
            tall = np.minimum(high[:, 1], box[3]) - np.maximum(low[:, 1], box[1])
            cost += 1e3 * ((wide > 0) & (tall > 0)) * (1 + wide.clip(0) * tall.clip(0))
        outside = (frame[:2] - low).clip(0).sum(1) + (high - frame[2:]).clip(0).sum(1)
        cost += 100 * outside
        for j in np.flatnonzero(cost < cost.min() + 8):
            cost[j] += 0.1 * np.sqrt(_inside(crowd, low[j], high[j])) + 4 * (_inside(kept, low[j] - 3, high[j] + 3) > 0)
        best = int(np.argmin(cost))
        boxes.append((*map(float, low[best]), *map(float, high[best])))  # type: ignore[arg-type]
        moved = np.linalg.norm(stretch[best]) > half[1] + 4
        text = ax.annotate(
            name,
            at[len(boxes) - 1],
            xytext=tuple(stretch[best]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            fontweight=weight,
            zorder=10,
            arrowprops={"arrowstyle": "-", "color": "#333333", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0} if moved else None,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )
        text.set_in_layout(False)
    return boxes


def page_of(ax: Axes) -> Figure:
    """The figure that axes are in, through subfigures."""
    return cast("Figure", ax.figure.figure)


def _on_page(ax: Axes, points: Any) -> np.ndarray:
    """[k, 2] pixels of points in data coordinates; none of None."""
    at = np.zeros((0, 2)) if points is None else np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return np.asarray(ax.transData.transform(at)).reshape(-1, 2)


def _inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> int:
    return int(((points > low) & (points < high)).all(1).sum())


def extent(text: str, size: float, weight: str = "normal") -> tuple[float, float]:
    """Width and height of a text, in points of print."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0, size
    box = TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight), usetex=False).get_extents()
    return float(box.x1), float(size * 1.1)
