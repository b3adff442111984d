"""Genes along a path: what changes on the way from one group of cells to another, and how straight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.errors import SchemaError, SpecError, suggest
from trifold.report.style import PLAIN, SMALL, plain

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 4  # panels beside each other


def plot_genes(path: AnnData, *, genes: Sequence[str] | None = None, top: int = 12, unit: str | None = None, title: str = "") -> Figure:
    """One panel per gene: its expected value along a path, over the length travelled in data space.

    A dashed line joins the ends; the R² in a title says how much of the gene's course a straight line tells. All panels span the same
    range, so that steep is much and flat is little.

    Args:
        path: From ``model.path``.
        genes: Which; None: the ``top`` that change most from end to end.
        top: How many, if genes are not named.
        unit: Of the values; None: those of x.
        title: Above all.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.

    Raises:
        SchemaError: A gene that the path does not have.
        SpecError: No gene is left.
    """
    from matplotlib.figure import Figure

    chosen = genes_of(path, genes, top)
    across = min(_ACROSS, len(chosen))
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(2.3 * across + 0.6, 1.85 * down + 0.9), layout="constrained")
    draw_genes(figure.subplots(down, across, squeeze=False, sharex=True), path, chosen)
    figure.supxlabel("length travelled in data space", fontsize=SMALL)
    figure.supylabel(unit or unit_of(path), fontsize=SMALL)
    if title:
        figure.suptitle(title, fontsize=PLAIN + 1, fontweight="bold", x=0.02, ha="left")
    return figure


def draw_genes(axes: Any, path: AnnData, genes: Sequence[str]) -> None:
    """One gene per panel; panels that are left over are taken away.

    Args:
        axes: [down, across] panels.
        path: From ``model.path``.
        genes: At most as many as panels.
    """
    values, length = values_of(path, genes), path.obs["length"].to_numpy()
    linearity = path.var["linearity"]
    spans = np.array([v.max() - v.min() for v in values.T])
    span = 1.15 * float(spans.max()) or 1.0
    flat = np.asarray(axes).ravel()
    for ax, gene, course in zip(flat, genes, values.T, strict=False):
        _course(ax, length, course, span)
        plain(ax)
        ax.set_title(gene, loc="left", fontsize=PLAIN, fontweight="bold", fontstyle="italic")
        ax.set_title(f"R² {_share(float(linearity[gene]))}", loc="right", fontsize=SMALL)
    for ax in flat[len(genes) :]:
        ax.remove()
    above = flat[: len(genes)][-np.asarray(axes).shape[1] :]
    for ax in above:  # the last panel of each column keeps its numbers
        ax.tick_params(labelbottom=True)


def genes_of(path: AnnData, genes: Sequence[str] | None, top: int) -> list[str]:
    """The genes that are asked for, or those that change most from end to end.

    Raises:
        SchemaError: A gene that the path does not have.
        SpecError: No gene is left.
    """
    chosen = list(most_changed(path, top).index) if genes is None else list(genes)
    for gene in chosen:
        if gene not in path.var_names:
            raise SchemaError(f"The path has no gene {gene!r}.{suggest(gene, path.var_names)} It has {path.n_vars:,} genes.")
    if not chosen:
        raise SpecError("plot_genes needs at least one gene; found none. Pass top=12, or genes=[...].")
    return chosen


def most_changed(path: AnnData, top: int) -> pd.DataFrame:
    """``change`` and ``linearity`` of the genes that change most from end to end, the greatest first."""
    order = np.argsort(-path.var["change"].abs().to_numpy(), kind="stable")[: max(top, 0)]
    return path.var.iloc[order]


def values_of(path: AnnData, genes: Sequence[str]) -> np.ndarray:
    """[steps, k] values in the data space in which the path's change and linearity are measured: x, or for counts its natural logarithm."""
    x = np.asarray(path[:, list(genes)].X, dtype=np.float64)
    return np.log(np.maximum(x, 1e-12)) if path.uns["trifold"].get("x") == "counts" else x


def unit_of(path: AnnData) -> str:
    """What :func:`values_of` gives, in words."""
    return "log of expected counts per 10,000" if path.uns["trifold"].get("x") == "counts" else "expected value, units of x"


def _course(ax: Axes, length: np.ndarray, course: np.ndarray, span: float) -> None:
    middle = (course.max() + course.min()) / 2
    ax.plot(length[[0, -1]], course[[0, -1]], color="#8C8C8C", linewidth=1.2, linestyle="--")
    ax.plot(length, course, color="#0072B2", linewidth=2.0)
    ends = {"color": ["#FFFFFF", "#0072B2"], "edgecolors": "#0072B2", "linewidths": 1.4}
    ax.scatter(length[[0, -1]], course[[0, -1]], s=26, zorder=3, clip_on=False, **ends)  # type: ignore[arg-type]
    ax.set_ylim(middle - span / 2, middle + span / 2)
    reach = float(length[-1]) or 1.0
    ax.set_xlim(-0.03 * reach, 1.03 * reach)


def _share(value: float) -> str:
    """R² in two digits, one that is not quite 1 never written as 1."""
    return f"{value:.2f}" if value < 0.995 or value >= 0.9995 else "> 0.99"
