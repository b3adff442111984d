"""Latents as UMAPs, side by side, coloured by columns of obs: what mixes and what stays apart."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.data.covariates import require_column
from trifold.errors import ShapeError
from trifold.report.style import PLAIN, SMALL, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette but yellow and black, then the darker ones of Tol's muted scheme
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#332288", "#999933", "#882255", "#44AA99", "#AA4499")
_UNKNOWN = "#BBBBBB"
_SIDE, _LEGEND = 3.9, 1.7  # inches


def umap_of(latent: Any, *, neighbours: int = 15, seed: int = 0) -> np.ndarray:
    """[n, 2] UMAP of a latent, [n, d]. Distances between clusters in it, and their sizes, mean nothing.

    Args:
        latent: Points; their Euclidean distances count.
        neighbours: Of each cell in the graph that is laid out.
        seed: Of the layout.

    Source: McInnes et al., arXiv 1802.03426, as in scanpy.
    """
    import scanpy as sc
    from anndata import AnnData

    z = np.asarray(latent, dtype=np.float32)
    holder = AnnData(np.zeros((len(z), 1), dtype=np.float32), obsm={"latent": z})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, and of a seed that rules out threads
        sc.pp.neighbors(holder, n_neighbors=neighbours, use_rep="latent", random_state=seed)
        sc.tl.umap(holder, random_state=seed)
    return np.asarray(holder.obsm["X_umap"], dtype=np.float64)


def plot_embedding(
    latents: Mapping[str, Any], obs: pd.DataFrame, columns: Sequence[str], *, neighbours: int = 15, seed: int = 0, title: str = ""
) -> Figure:
    """A row of panels for each column, a panel for each latent; the legend of a row stands to its right.

    Args:
        latents: Name -> [n, d] latent. Of two dimensions it is drawn as it is, else as its UMAP.
        obs: [n] cells.
        columns: Columns of obs with classes. Cells without a value are grey.
        neighbours: Of the UMAPs.
        seed: Of the UMAPs, and of the order in which cells are drawn.
        title: Above all.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.

    Raises:
        SchemaError: obs lacks a column.
        ShapeError: A latent has another number of rows than obs.
    """
    from matplotlib.figure import Figure

    for column in columns:
        require_column(obs, column, role="columns")
    points = {}
    for name, z in latents.items():
        z = np.asarray(z)
        if len(z) != len(obs):
            raise ShapeError(f"{name!r} needs one row for each of the {len(obs)} cells of obs; found {len(z)}. Pass obs of the same cells.")
        points[name] = z if z.shape[1] == 2 else umap_of(z, neighbours=neighbours, seed=seed)
    figure = Figure(figsize=(_SIDE * len(points) + _LEGEND, (_SIDE - 0.3) * len(columns) + 0.3), layout="constrained")
    axes = figure.subplots(len(columns), len(points), squeeze=False)
    for row, column in zip(axes, columns, strict=True):
        for ax, (name, xy) in zip(row, points.items(), strict=True):
            draw_embedding(ax, xy, obs[column], title=f"{name}: {column}", seed=seed)
        _beside(row[-1])
    if title:
        figure.suptitle(title, fontsize=PLAIN + 2, fontweight="bold", x=0.02, ha="left")
    return figure


def draw_embedding(ax: Axes, xy: np.ndarray, classes: pd.Series, *, title: str = "", seed: int = 0) -> None:
    """Cells with a colour for each class, in random order, so that none lies over the others.

    Args:
        ax: Where.
        xy: [n, 2].
        classes: [n] of each cell; those without a value are grey, below the others.
        title: Above.
        seed: Of the order.
    """
    from matplotlib.colors import to_rgb

    text = classes.astype(object).map(str).astype(object).where(classes.notna(), None).to_numpy()
    names = sorted({t for t in text if t is not None})
    colour = {name: _COLOURS[j % len(_COLOURS)] for j, name in enumerate(names)}
    order = np.random.default_rng(seed).permutation(len(xy))
    order = order[np.argsort([text[i] is not None for i in order], kind="stable")]
    shades = np.array([to_rgb(colour.get(text[i], _UNKNOWN)) for i in order]).reshape(-1, 3)
    size = float(np.clip(9_000 / max(len(xy), 1), 2.5, 22))
    ax.scatter(xy[order, 0], xy[order, 1], s=size, c=shades, linewidths=0, rasterized=True)
    for name in names:
        ax.scatter([], [], s=30, color=colour[name], label=f"{name} ({int((text == name).sum()):,})")
    if any(t is None for t in text):
        ax.scatter([], [], s=30, color=_UNKNOWN, label=f"not known ({sum(t is None for t in text):,})")
    plain(ax, title=title)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[["left", "bottom"]].set_color("#CCCCCC")


def _beside(ax: Axes) -> None:
    ax.legend(fontsize=SMALL, frameon=False, handletextpad=0.2, loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0)
