"""The separation table as a picture: what can be read from each block, beside chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trifold.report.style import PLAIN, SMALL, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {"invariant": ("#0072B2", "o"), "spurious": ("#E69F00", "s"), "pca": ("#8C8C8C", "D")}
_REST = ("#444444", "v")


def plot_separation(table: pd.DataFrame, *, title: str = "What can be read from each block") -> Figure:
    """One line for each column of obs: the strongest probe's accuracy from each latent, and chance.

    Args:
        table: From :attr:`trifold.Model.separation`, or :func:`trifold.evaluate.probes`.
        title: Above.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 1.5 + 0.5 * table["column"].nunique()), layout="constrained")
    draw_separation(figure.subplots(), table, title=title)
    return figure


def draw_separation(ax: Axes, table: pd.DataFrame, *, title: str = "") -> None:
    """Dots on one line for each column; a black bar where chance lies: that of biology, where the table has it.

    Args:
        ax: Where.
        table: As for :func:`plot_separation`.
        title: Above.
    """
    columns = list(dict.fromkeys(table["column"]))
    best = table.groupby(["column", "latent"])["accuracy"].max()
    names = []
    for y, column in enumerate(columns):
        part = table[table["column"] == column]
        within = part["chance_within"].iloc[0] if "chance_within" in part else np.nan
        chance = float(part["chance"].iloc[0] if np.isnan(within) else within)
        ax.plot([chance, chance], [y - 0.28, y + 0.28], color="#000000", linewidth=2.5, label="chance" if y == 0 else None, zorder=2)
        names.append(f"{column} ({part['role'].iloc[0]})" if "role" in part else column)
    latents = list(dict.fromkeys(table["latent"]))
    for latent, shift in zip(latents, np.linspace(-0.17, 0.17, len(latents)) if len(latents) > 1 else [0.0], strict=True):
        colour, marker = _LOOKS.get(latent, _REST)
        at, rows = [best[column, latent] for column in columns], np.arange(len(columns)) + shift  # apart, so that none hides another
        ax.scatter(at, rows, s=50, color=colour, marker=marker, edgecolors="white", linewidths=0.6, label=latent, zorder=3)
    ax.set_yticks(np.arange(len(columns)), names, fontsize=SMALL)
    ax.set_ylim(len(columns) - 0.5, -0.5)
    ax.set_xlim(min(0.0, ax.get_xlim()[0]), 1.03)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    plain(ax, title=title, x="accuracy of the strongest probe on cells that were not trained on")
    ax.title.set_fontsize(PLAIN)
    ax.tick_params(axis="y", length=0)
    ax.legend(fontsize=SMALL, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0)
