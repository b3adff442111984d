"""``trifold curvature`` and ``trifold path``: the shape of a run's surface, in tables, files and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape

from trifold.cli import show
from trifold.cli.files import cells_of, require_free, require_suffix, write
from trifold.cli.pairs import pairs, selection, target
from trifold.data import Source
from trifold.data.align import align
from trifold.data.covariates import require_column
from trifold.errors import SpecError
from trifold.loading import load
from trifold.model import Model
from trifold.outputs import write_h5ad

PLOTS = (".png", ".pdf", ".svg")
_DPI = 150
_SHOWN = {"extrinsic": "extrinsic × R²", "parameter": "parameter × R²", "condition": "condition"}


def write_curvature(
    run: Path,
    data: Path,
    out: Path,
    *,
    group: str | None,
    plot: Path | None,
    color: str,
    directions: int,
    seed: int,
    device: str,
    missing: str,
    trust: Sequence[str],
    force: bool,
) -> None:
    """Curvature of each cell to .csv; medians on the screen, by group if asked; the latent plane to a picture if asked.

    Raises:
        TrifoldError: As ``load``, ``Model.curvature`` and ``report.plot_plane``, or an output that cannot be written.
    """
    _outputs(out, ".csv", plot, force=force)
    model = load(run, trust=trust)
    source = _aligned(model, data, missing)
    for role, column in (("group", group), ("color", None if color in ("extrinsic", "parameter") else color)):
        if column is not None:
            require_column(source.obs, column, role=role)
    table = model.curvature(source, directions=directions, seed=seed, device=device)
    write(out, lambda path: table.to_csv(path, index_label="cell"))
    _medians(model, source, table, group, device=device)
    show.say(f"{out}: {len(table):,} cells; extrinsic and parameter in 1/length² of data space, condition without unit")
    if plot is not None:
        from trifold import report

        figure = report.plot_plane(model, source, color=color, labels=group)
        write(plot, lambda path: figure.savefig(path, dpi=_DPI))
        show.say(f"{plot}: the latent plane")


def write_path(
    run: Path,
    data: Path,
    out: Path,
    *,
    start: Sequence[str],
    end: Sequence[str],
    kind: str,
    steps: int,
    under: Sequence[str] | None,
    plot: Path | None,
    top: int,
    missing: str,
    trust: Sequence[str],
    force: bool,
) -> None:
    """Decoded genes along a path between two groups of cells to .h5ad; lengths and the genes that change most on the screen.

    Raises:
        TrifoldError: As ``load`` and ``Model.path``, or an output that cannot be written.
    """
    _outputs(out, ".h5ad", plot, force=force)
    if top < 1:
        raise SpecError(f"--top needs at least 1 gene; found {top}. Pass --top 12.")
    ends = pairs(start, option="--from"), pairs(end, option="--to")
    asked = pairs(under, option="--under")
    model = load(run, trust=trust)
    source = _aligned(model, data, missing)
    a, b = (selection(chosen, source.obs) for chosen in ends)
    answer: Any = model.path(a, b, data=source, kind=kind, steps=steps, under=target(asked, model.schema, option="--under") or None)
    write(out, lambda p: write_h5ad(answer, p))
    from trifold.report.genes import most_changed, plot_genes
    from trifold.report.paths import called

    way = f"{called(a)} → {called(b)}"
    about = answer.uns["trifold"]
    lengths = [(name, f"{about['length'][name]:.4g}") for name in ("straight", "geodesic")]
    rows = [*lengths, ("straightness", f"{about['straightness']:.4f}")]
    show.say(f"{way}: lengths in data space of both kinds of path, and their ratio", style="bold")
    show.table("", ["", ""], rows)
    genes = most_changed(answer, top)
    heads = ["change", "linearity R²"]
    table = [(escape(gene), f"{row.change:+.3f}", f"{row.linearity:.3f}") for gene, row in genes.iterrows()]
    show.say(f"Genes that change most from end to end, {kind} path", style="bold")
    show.table("", ["gene", *heads], table, numbers=heads)
    show.say(f"{out}: {answer.n_obs:,} points × {answer.n_vars:,} genes")
    if plot is not None:
        figure = plot_genes(answer, top=top, title=way)
        write(plot, lambda path: figure.savefig(path, dpi=_DPI))
        show.say(f"{plot}: {len(genes)} genes")


def _outputs(out: Path, suffix: str, plot: Path | None, *, force: bool) -> None:
    require_suffix(out, (suffix,))
    if plot is not None:
        require_suffix(plot, PLOTS, option="--plot")
    for path in (out, plot):
        if path is not None:
            require_free(path, force=force)


def _medians(model: Model, source: Source, table: pd.DataFrame, group: str | None, *, device: str) -> None:
    from trifold.report.plane import squared_radius

    square = squared_radius(model, model.latent(source, device=device))
    shown = table.assign(extrinsic=table["extrinsic"] * square, parameter=table["parameter"] * square)
    rows = [("all", f"{len(shown):,}", *_row(shown))]
    if group is not None:
        of = source.obs[group].astype(object).to_numpy()
        parts = [(str(name), shown[of == name]) for name in pd.unique(pd.Series(of).dropna())]
        parts.sort(key=lambda part: -part[1]["extrinsic"].median())
        rows += [(escape(name), f"{len(part):,}", *_row(part)) for name, part in parts]
    heads = ["cells", *_SHOWN.values()]
    show.say("Curvature, medians over cells", style="bold")
    show.table("", [group or "", *heads], rows, numbers=heads)
    show.say(f"R² = {square:.4g} is the mean squared distance of the decoded cells to their centroid, in length² of data space.")
    show.say(f"Extrinsic × R² is {model.vae.posterior.latent} where the surface is a sphere that the cells lie on, and 0 where it is flat.")


def _row(part: pd.DataFrame) -> list[str]:
    return [f"{np.median(part[name]):.3g}" for name in _SHOWN]


def _aligned(model: Model, data: Path, missing: str) -> Source:
    """The cells with the model's genes, absent ones as zeros where that was asked for."""
    return align(cells_of(data, model.schema.x), model.schema.genes, missing=missing)[0]
