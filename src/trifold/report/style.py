"""Colours and axes of all plots. Figures are made without pyplot, so nothing global changes and no display is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Okabe and Ito's palette, which people with any colour vision can tell apart
COLOUR = {"model": "#0072B2", "null model": "#E69F00", "real": "#009E73", "control": "#8C8C8C", "ceiling": "#000000", "watched": "#D55E00"}
SMALL, PLAIN = 8.5, 10.0  # points


def plain(ax: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Two spines, a title flush left, labels with units."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title, loc="left", fontsize=PLAIN, fontweight="bold")
    ax.set_xlabel(x, fontsize=SMALL)
    ax.set_ylabel(y, fontsize=SMALL)
    ax.tick_params(labelsize=SMALL)


def below(ax: Axes) -> None:
    """A legend under the axes, where it hides nothing."""
    ax.legend(fontsize=SMALL, frameon=False, handletextpad=0, columnspacing=0.8, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3)


def decades(axis: Axis, low: float, high: float) -> None:
    """Few numbers, written out, on a logarithmic axis that runs from low to high."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    steps = (1.0,) if high >= 300 * low else (1.0, 3.0) if high >= 30 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}" if 1e-4 <= value < 1e5 else f"{value:.0e}"))
    axis.set_minor_locator(NullLocator())
