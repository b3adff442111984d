"""``trifold evaluate``: what a run held out, predicted and scored beside nulls and a ceiling."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trifold import evaluate
from trifold.cli import show
from trifold.cli.files import cells_of, require_free, require_suffix, write
from trifold.cli.pairs import pairs, selection
from trifold.data import Source, splits
from trifold.data.align import align
from trifold.data.covariates import require_column
from trifold.data.source import PickedSource
from trifold.errors import SpecError, listing
from trifold.evaluate.space import dense, to_score
from trifold.loading import load
from trifold.model import Model

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

KINDS = ("residual",)  # the mean of many counts is far from the log of a mean: only moved cells compare with real ones
_NULL = "similar shift"  # the strongest of the five, drawn beside the model
_CONDITION, _GROUP = "condition", "group"


@dataclass(frozen=True)
class Held:
    """One held-out combination and the cells that may be looked at for it.

    Args:
        adata: Values on the model's genes; obs: condition and group as text; names are positions in the source. Without the cells of
            other combinations that were held out too, so that nulls know no more than the model.
        group, start, target: Which group, from which condition, to which.
        to: column -> value of the target, as ``Model.predict`` takes it.
    """

    adata: AnnData
    group: str
    start: str
    target: str
    to: Mapping[str, Any]

    @property
    def names(self) -> dict[str, Any]:
        """Arguments that ``leave_combinations_out`` and ``make_fold`` share."""
        return {"condition": _CONDITION, "group": _GROUP, "source": self.start, "target": self.target}


def evaluate_run(
    run: Path,
    data: Path,
    *,
    group: Sequence[str],
    source: Sequence[str] | None,
    kinds: Sequence[str],
    genes: int,
    out: Path | None,
    plots: Path | None,
    seed: int,
    device: str,
    trust: Sequence[str],
    force: bool,
) -> None:
    """Print the scores of a run; write the table and the plots where they are asked for.

    Raises:
        TrifoldError: As ``load``, :func:`held_combinations` and ``trifold.evaluate``, or an output that cannot be written.
    """
    if out is not None:
        require_suffix(out, (".csv",))
    for path in (out, plots):
        if path is not None:
            require_free(path, force=force)
    model = load(run, trust=trust)
    cells = cells_of(data, model.schema.x)
    combinations = held_combinations(model, cells, group=group, start=pairs(source, option="--source"))
    tables = []
    for held in combinations:
        tables.append(score(model, cells, held, kinds=kinds, genes=genes, seed=seed, device=device))
        if len(combinations) <= 4:
            show.scores(evaluate.averages(tables[-1]), title=f"{held.group}: {held.target} predicted from {held.start}")
        if plots is not None:
            figure = page(model, cells, held, tables[-1], kind=kinds[0], genes=genes, seed=seed, device=device)
            path = plots / f"{_file_name(held.group)}-{_file_name(held.target)}.png"
            write(path, lambda p, f=figure: f.savefig(p, dpi=130))  # type: ignore[misc]
    table = pd.concat(tables, ignore_index=True)
    if len(combinations) > 1:
        show.scores(evaluate.averages(table), title=f"Mean of {len(combinations)} combinations that were held out")
    if out is not None:
        write(out, lambda p: table.to_csv(p, index=False))
        show.say(f"{out}: {table['metric'].nunique()} metrics of {table['method'].nunique()} methods")
    if plots is not None:
        show.say(f"{plots}: one page for each combination")


def held_combinations(
    model: Model, source: Source, *, group: Sequence[str] = (), start: Mapping[str, Sequence[Any]] | None = None
) -> list[Held]:
    """The combinations that the run's card says were held out, and that the data hold.

    Args:
        model: A trained model.
        source: The cells.
        group: Columns by whose values to split the held-out cells further.
        start: column -> value of the condition to predict from; None or empty: the other one where there are two.

    Raises:
        SpecError: Nothing was held out, or no condition, or there is more than one condition to predict from.
        SchemaError, DataError: The data lack a column or value of the hold-out.
    """
    from anndata import AnnData

    hold_out = model.card.get("hold_out") or {}
    roles = [c.name for c in model.schema.roles.get("condition", ())]
    conditions = [c for c in hold_out if c in roles]
    if not conditions:
        held = ", ".join(f"{c}={v}" for c, v in hold_out.items()) or "nothing"
        raise SpecError(
            f"evaluate needs a run that held out cells of some condition ({listing(roles) or 'it has none'}); this one held out {held}. "
            "Train with, for instance, --hold-out condition=stimulated --hold-out cell_type=NK."
        )
    groups = list(dict.fromkeys([*(c for c in hold_out if c not in conditions), *group]))
    if not groups:
        raise SpecError(
            f"evaluate needs a group that was held out under {conditions[0]}={hold_out[conditions[0]]}; the run held out all groups. "
            "Train with, for instance, --hold-out cell_type=NK too."
        )
    mask = splits.held_out(source.obs, hold_out)
    for name in groups:
        require_column(source.obs, name, role="group")
    condition, of_group = _joined(source.obs, conditions), _joined(source.obs, groups)
    origin = _start(source.obs, conditions, condition, condition[mask], start or {})
    aligned, _ = align(source, model.schema.genes)
    adata = AnnData(
        aligned.take(slice(0, aligned.n)),
        obs=pd.DataFrame({_CONDITION: condition, _GROUP: of_group}, index=pd.RangeIndex(source.n).astype(str)),
        var=pd.DataFrame(index=list(model.schema.genes)),
    )
    out = []
    for name, target in sorted(set(zip(of_group[mask], condition[mask], strict=True))):
        own = mask & (of_group == name) & (condition == target)
        first = source.obs.iloc[int(np.flatnonzero(own)[0])]
        to = {c: first[c].item() if hasattr(first[c], "item") else first[c] for c in conditions}
        out.append(Held(adata[~mask | own].copy(), name, origin, target, to))
    return out


def score(
    model: Model, source: Source, held: Held, *, kinds: Sequence[str] = KINDS, genes: int = 2000, seed: int = 0, device: str = "auto"
) -> pd.DataFrame:
    """Tidy table of scores of one combination, as :func:`trifold.evaluate.leave_combinations_out` gives it."""
    methods = {f"{model.preset or 'model'} {kind}": _predictor(model, source, held, kind, device) for kind in kinds}
    return evaluate.leave_combinations_out(
        held.adata, methods, groups=[held.group], seeds=(seed,), n_top_genes=genes, min_cells=4, kind=_kind(model), **held.names
    )


def page(
    model: Model,
    source: Source,
    held: Held,
    table: pd.DataFrame,
    *,
    kind: str = KINDS[0],
    genes: int = 2000,
    seed: int = 0,
    device: str = "auto",
    **named: str,
) -> Figure:
    """The plots of one combination; ``named``: unit and feature, as :func:`trifold.report.response` takes them."""
    from trifold import report

    fold = evaluate.make_fold(held.adata, held=held.group, n_top_genes=genes, kind=_kind(model), **held.names)
    names = list(fold.train.var_names)
    predicted = _predictor(model, source, held, kind, device)(fold.train, fold.controls, seed)[:, names]
    null = evaluate.NULLS[_NULL](
        fold.x, fold.groups, conditions=fold.conditions, held=held.group, source=held.start, target=held.target, seed=seed
    )
    return report.response(
        dense(to_score(predicted, kind=fold.kind)),
        fold.real,
        fold.control,
        null=null,
        null_name=f"null: {_NULL}",
        name=model.preset or "model",
        table=table,
        history=model.history,
        genes=names,
        title=f"{held.group}: {held.target} predicted from {held.start}",
        **(({} if fold.kind == "counts" else {"unit": "units of x", "feature": "feature"}) | named),
    )


def _predictor(model: Model, source: Source, held: Held, kind: str, device: str) -> Any:
    """What ``leave_combinations_out`` calls: the controls are found again in the source, with all genes of the model."""

    def predict(train: AnnData, controls: AnnData, seed: int) -> AnnData:
        rows = PickedSource(source, rows=controls.obs_names.to_numpy().astype(np.int64))
        return model.predict(rows, dict(held.to), kind=kind, seed=seed, device=device)

    return predict


def _kind(model: Model) -> Any:
    return "counts" if model.schema.kind == "counts" else "real"


def _joined(obs: pd.DataFrame, columns: Sequence[str]) -> Any:
    """[n] values of the columns as text, joined by " / "."""
    parts = [obs[c].astype(object).map(str).to_numpy() for c in columns]
    return np.array([" / ".join(row) for row in zip(*parts, strict=True)], dtype=object)


def _start(obs: pd.DataFrame, columns: Sequence[str], condition: Any, held: Any, given: Mapping[str, Sequence[Any]]) -> str:
    """The condition to predict from, as :func:`_joined` writes it."""
    chosen = {c: [v] if not isinstance(v, list) else v for c, v in selection(given, obs).items()}
    if not chosen:
        others = sorted(set(condition) - set(held))
        if len(others) == 1:
            return str(others[0])
        raise SpecError(
            f"evaluate needs to know the condition to predict from; there are {listing(others, 8) or 'none'}. "
            f"Pass --source {columns[0]}={(others or ['control'])[0]}."
        )
    if sorted(chosen) != sorted(columns) or any(len(v) != 1 for v in chosen.values()):
        wanted = " ".join(f"--source {c}=VALUE" for c in columns)
        raise SpecError(f"--source needs one value for each of {listing(columns)}; found {listing(given) or 'none'}. Pass {wanted}.")
    splits.matching(obs, {c: v[0] for c, v in chosen.items()})
    return " / ".join(str(chosen[c][0]) for c in columns)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w+-]+", "_", text).strip("_") or "group"
