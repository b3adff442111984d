"""One page on a predicted response: the change of each gene, the cells, the training, and the scores beside nulls and ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.errors import EvaluationError
from trifold.evaluate import averages, correlation, fit_pca, higher_is_better, project
from trifold.evaluate.space import dense, mean
from trifold.report.style import COLOUR, PLAIN, SMALL, below, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIT = "log(1 + counts per 10,000)"
SHOWN = {
    "pearson_delta": "Pearson of change",
    "pearson_delta_top20": "Pearson, top 20 genes",
    "rmse_delta": "RMSE of change",
    "e_distance": "E-distance",
    "variance_concordance": "Variance concordance",
    "zero_concordance": "Zero concordance",
}
_MOST = 1500  # cells of each kind that are drawn


def response(
    predicted: Any,
    real: Any,
    control: Any,
    *,
    null: Any = None,
    null_name: str = "null model",
    name: str = "model",
    table: pd.DataFrame | None = None,
    history: Any = None,
    genes: Sequence[str] | None = None,
    title: str = "",
    unit: str = UNIT,
    feature: str = "gene",
) -> Figure:
    """The page; panels whose data are not given are left out.

    Args:
        predicted: [n, g] predicted cells in score space.
        real: [m, g] real cells of the group under the target.
        control: [l, g] real cells of the group under the source.
        null: [k, g] cells of a prediction that has learned nothing, drawn beside the model.
        null_name, name: How the null and the model are called.
        table: Scores from :func:`trifold.evaluate.leave_combinations_out`.
        history: A :class:`trifold.train.History`, or its rows.
        genes: [g] names; the six that change most are labelled.
        title: Above all.
        unit: Of the values.
        feature: What a column of the cells is: a gene, a pixel.

    Returns:
        A figure; ``figure.savefig(path)`` writes it.

    Raises:
        EvaluationError: The cells differ in their genes.
    """
    from matplotlib.figure import Figure

    rows = history.rows if hasattr(history, "rows") else list(history or ())
    figure = Figure(figsize=(13.5, 8.4 if table is not None else 4.8), layout="constrained")
    parts: Any = figure.subfigures(1 if table is None else 2, 1, height_ratios=None if table is None else (1.35, 1), squeeze=False)
    upper, lower = parts[0, 0], parts[-1, 0]
    panels = upper.subplots(1, 3 if rows else 2)
    draw_change(panels[0], predicted, real, control, null=null, null_name=null_name, name=name, genes=genes, unit=unit, feature=feature)
    draw_cells(panels[1], predicted, real, control)
    if rows:
        draw_history(panels[2], rows)
    if table is not None:
        shown = [m for m in SHOWN if m in set(table.loc[table["value"].notna(), "metric"])]
        draw_scores(lower.subplots(1, len(shown), sharey=True, squeeze=False)[0], table, shown)
    if title:
        figure.suptitle(title, fontsize=PLAIN + 2, fontweight="bold")
    return figure


def draw_change(
    ax: Axes,
    predicted: Any,
    real: Any,
    control: Any,
    *,
    null: Any = None,
    null_name: str = "null model",
    name: str = "model",
    genes: Sequence[str] | None = None,
    unit: str = UNIT,
    feature: str = "gene",
) -> None:
    """Predicted against real change of the mean of each gene, the null's beside the model's; on the diagonal a prediction is right."""
    base, truth = mean(dense(control)), mean(dense(real))
    if len(base) != len(truth) or len(truth) != dense(predicted).shape[1]:
        raise EvaluationError(
            f"predicted, real and control cells need the same genes; found {dense(predicted).shape[1]}, {len(truth)} and {len(base)}. "
            "Subset all three to the same var_names."
        )
    x = truth - base
    y = mean(dense(predicted)) - base
    drawn = [("model", name, y)]
    if null is not None:
        drawn.insert(0, ("null model", null_name, mean(dense(null)) - base))
    for sort, called, values in drawn:
        label = f"{called} (Pearson {correlation(values, x):.2f})"
        ax.scatter(
            x, values, s=13, alpha=0.75, color=COLOUR[sort], marker="x" if sort == "null model" else "o", linewidths=0.8, label=label
        )
    ends = (min(x.min(), *(v.min() for _, _, v in drawn)), max(x.max(), *(v.max() for _, _, v in drawn)))
    ax.plot(ends, ends, color="#555555", linewidth=0.8, linestyle="--", zorder=0)
    if genes is not None:
        _label(ax, x, y, genes)
    plain(ax, title=f"Change of each {feature}", x=f"real change of the mean, {unit}", y=f"predicted change, {unit}")
    below(ax)


def draw_cells(ax: Axes, predicted: Any, real: Any, control: Any) -> None:
    """Control, real and predicted cells in the first two principal components of the real ones."""
    kinds = {"control": dense(control), "real": dense(real), "model": dense(predicted)}
    pca = fit_pca(np.concatenate([kinds["control"], kinds["real"]]), 2)
    names = {"control": "control", "real": "target, real", "model": "target, predicted"}
    for (kind, cells), marker in zip(kinds.items(), ("o", "s", "^"), strict=True):
        at = project(cells[:_MOST], pca=pca)
        y = at[:, 1] if at.shape[1] > 1 else np.zeros(len(at))
        ax.scatter(at[:, 0], y, s=14, alpha=0.55, color=COLOUR[kind], marker=marker, linewidths=0, label=f"{names[kind]} ({len(cells):,})")
    share = [*(100 * pca.explained_variance_ratio_), 0.0]
    plain(ax, title="Cells", x=f"PC 1 ({share[0]:.0f} % of the variance)", y=f"PC 2 ({share[1]:.0f} %)")
    below(ax)


def draw_history(ax: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    """Loss over epochs on trained and watched cells."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] + 1 for row in rows]
    settled: list[float] = []  # without the first epochs, which would leave no room for the rest
    for prefix, name, colour in (("train", "trained on", COLOUR["model"]), ("validation", "watched", COLOUR["watched"])):
        values = [row.get(f"{prefix}/loss", np.nan) for row in rows]
        if np.isfinite(values).any():
            settled += [v for v in values[len(values) // 20 :] if np.isfinite(v)]
            ax.plot(epochs, values, color=colour, linewidth=1.6, linestyle="-" if prefix == "train" else "--", label=name)
    if settled and np.ptp(settled) > 0:
        ax.set_ylim(min(settled) - 0.05 * np.ptp(settled), max(settled) + 0.05 * np.ptp(settled))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(ax, title="Training", x="epoch", y="loss, nats per cell")
    ax.legend(fontsize=SMALL, frameon=False, loc="upper right")


def draw_scores(axes: Sequence[Axes], table: pd.DataFrame, metrics: Sequence[str]) -> None:
    """One small plot per metric: a dot for each model, null and the ceiling, the same order in all.

    Args:
        axes: One for each metric, sharing y.
        table: From :func:`trifold.evaluate.leave_combinations_out`.
        metrics: Which of them.
    """
    wide = averages(table)
    wide = wide.loc[[k for kind in ("model", "null model", "ceiling") for k in wide.index if k[0] == kind]]
    kinds, names = wide.index.get_level_values("kind"), [*wide.index.get_level_values("method")]
    y = np.arange(len(wide))[::-1]
    for ax, metric in zip(axes, metrics, strict=True):
        values = wide[metric].to_numpy(dtype=float)
        top = values[kinds == "ceiling"]
        if len(top):
            ax.axvline(top[0], color=COLOUR["ceiling"], linewidth=0.8, linestyle=":")
        for kind, marker in (("model", "o"), ("null model", "X"), ("ceiling", "D")):
            at = kinds == kind
            ax.scatter(values[at], y[at], s=46, color=COLOUR[kind], marker=marker, zorder=3)
        ax.set_ylim(-0.6, len(wide) - 0.4)
        ax.grid(axis="y", color="#EEEEEE")
        ax.set_axisbelow(True)
        ax.margins(x=0.12)
        better = "higher is better →" if higher_is_better(metric) else "← lower is better"
        plain(ax, title=SHOWN.get(metric, metric), x=better)
    axes[0].set_yticks(y, [f"null: {n}" if k == "null model" else n for n, k in zip(names, kinds, strict=True)], fontsize=SMALL)


def _label(ax: Axes, x: Any, y: Any, genes: Sequence[str], count: int = 6) -> None:
    """Names beside the genes that really change most, those that would overlap an earlier one left out."""
    width, height = np.ptp(x) or 1.0, np.ptp(y) or 1.0
    placed: list[tuple[float, float]] = []
    for j in np.argsort(-np.abs(x))[: 4 * count]:
        here = (x[j] / width, y[j] / height)
        if len(placed) < count and all(abs(here[0] - a) > 0.16 or abs(here[1] - b) > 0.05 for a, b in placed):
            placed.append(here)
            left = x[j] > x.mean()
            ax.annotate(
                str(genes[j]),
                (x[j], y[j]),
                xytext=(-5 if left else 5, -3),
                textcoords="offset points",
                fontsize=SMALL - 1.5,
                ha="right" if left else "left",
            )
