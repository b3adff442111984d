"""The response benchmark: hold out each combination of group and condition, predict it, and score it beside nulls and a ceiling."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trifold.errors import EvaluationError, TrifoldWarning, listing
from trifold.evaluate.ceilings import ceiling, halves
from trifold.evaluate.folds import Fold, column, make_fold, mask_of, needs
from trifold.evaluate.nulls import DRAWN, NULLS, Null
from trifold.evaluate.ranking import discrimination
from trifold.evaluate.score import score
from trifold.evaluate.space import Kind, Values, dense, kind_of, matrix, mean, to_score

Predict = Callable[..., Any]
COLUMNS = ["group", "target", "seed", "method", "kind", "metric", "value"]
Means = dict[tuple[str, str, int], dict[Any, tuple[NDArray[np.float64], NDArray[np.float64]]]]


@dataclass(frozen=True)
class InScoreSpace:
    """What a ``predict`` returns when its values are already in score space: ``InScoreSpace(matrix or AnnData)``."""

    values: Any


def leave_combinations_out(
    adata: Any,
    predict: Predict | Mapping[str, Predict],
    *,
    condition: str,
    group: str,
    source: Any,
    target: Any,
    seeds: Sequence[int] = (0, 1, 2),
    groups: Sequence[Any] | None = None,
    score_mask: Any = None,
    n_top_genes: int = 2000,
    top: Sequence[int] = (20, 100),
    components: int = 30,
    de: Sequence[int] = (100,),
    splits: int = 5,
    nulls: Mapping[str, Null] = NULLS,
    min_cells: int = 10,
    kind: Kind | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Hold out each group under the target, predict it from the group's controls, and score it beside nulls and a ceiling.

    Variable and top genes are chosen on training cells only. Everything is scored on the same genes in the same space:
    10,000 counts per cell over the chosen genes and log1p, or real values as they are.

    Args:
        adata: AnnData of counts or real values; never changed.
        predict: ``predict(train, controls, seed) -> AnnData or matrix``, or a dictionary name -> such a callable (empty: nulls
            and ceiling only). ``train`` is an AnnData without the held-out combination and ``controls`` the held group's
            cells under the source, both with the chosen genes and in the data's own units, as the answer must be: any number
            of cells, two at least, x the same genes. Wrap the answer in :class:`InScoreSpace` if it is log-normalised
            already. With several targets it is also given ``target=``.
        condition, group: Columns of obs.
        source: Condition that is known of every group.
        target: Condition to predict, or a list of them: each is then held out on its own, and with five or more
            ``discrimination`` is scored too.
        seeds: Seeds given to ``predict``, to the null that draws, and to the ceiling's splits.
        groups: Values of the group column to hold out in turn; None takes all that have enough cells.
        score_mask: [n] booleans: cells whose labels are trusted. Others are trained on but not scored, nor seen by nulls.
        n_top_genes: How many variable genes.
        top: Sizes of the lists of top genes.
        components: Principal components in which distances are taken.
        de: Sizes of the lists of differentially expressed genes; empty for none.
        splits: Random halves of the ceiling per seed; 0 leaves it out.
        nulls: Name -> null.
        min_cells: Cells that a group needs under source and under target to be scored.
        kind: ``"counts"`` or ``"real"``; None looks at the values.
        layer: Layer with the values; None is X. Predictions are read from their X all the same.

    Returns:
        Tidy table: group, target, seed, method, kind (model, null model, ceiling), metric, value. See :func:`summary`.

    Raises:
        EvaluationError: A column or value is absent, no group can be scored, or a prediction has the wrong genes or values.

    Warns:
        TrifoldWarning: Groups are left out because they have too few cells.
    """
    methods = {"model": predict} if callable(predict) else dict(predict)
    targets = list(target) if pd.api.types.is_list_like(target) else [target]
    _check_names(methods, nulls, seeds, targets)
    kind = kind_of(matrix(adata, layer=layer)) if kind is None else kind
    chosen = _scorable(
        adata, condition=condition, group=group, source=source, targets=targets, groups=groups, mask=score_mask, least=min_cells
    )
    rows: list[tuple[Any, ...]] = []
    for held, own in chosen.items():
        means: Means = {}
        for aim in own:
            fold = make_fold(
                adata, condition=condition, group=group, source=source, target=aim, held=held, targets=own, score_mask=score_mask,
                n_top_genes=n_top_genes, top=top, components=components, kind=kind, layer=layer,
            )  # fmt: skip
            extra = {"target": aim} if len(targets) > 1 else {}
            for method, sort, seed, values, pairs in _scored(fold, methods, nulls, seeds, splits, de, source, extra):
                rows += [(held, aim, seed, method, sort, metric, value) for metric, value in values.items()]
                means.setdefault((method, sort, seed), {})[aim] = pairs
        if len(own) >= 5:
            rows += _told_apart(held, means)
    return pd.DataFrame(rows, columns=COLUMNS)


def _scored(
    fold: Fold,
    methods: Mapping[str, Predict],
    nulls: Mapping[str, Null],
    seeds: Sequence[int],
    splits: int,
    de: Sequence[int],
    source: Any,
    extra: Mapping[str, Any],
) -> Iterator[tuple[str, str, int, dict[str, float], tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """(method, kind, seed, scores, means of prediction and truth) of every method on one fold."""
    kept: dict[str, Any] = {"top": fold.top, "pca": fold.pca, "centroid": fold.centroid, "de": de}
    truth = mean(fold.real)
    for name, predict in methods.items():
        for seed in seeds:
            cells = _answer(predict(fold.train.copy(), fold.controls.copy(), seed, **extra), fold, name)
            yield name, "model", seed, score(cells, fold.real, fold.control, **kept), (mean(cells), truth)
    for name, null in nulls.items():
        done: tuple[dict[str, float], tuple[NDArray[np.float64], NDArray[np.float64]]] | None = None
        for seed in seeds:
            if done is None or name in DRAWN:
                cells = null(fold.x, fold.groups, conditions=fold.conditions, held=fold.group, source=source, target=fold.target, seed=seed)
                done = score(cells, fold.real, fold.control, **kept), (mean(cells), truth)
            yield name, "null model", seed, *done
    for seed in seeds if splits > 0 and len(fold.real) >= 4 else ():
        table = ceiling(fold.real, fold.control, splits=splits, seed=seed, **kept)
        a, b = next(halves(len(fold.real), splits=1, seed=seed))
        scores = {str(k): float(v) for k, v in table.mean().items()}
        yield "ceiling", "ceiling", seed, scores, (mean(fold.real[a]), mean(fold.real[b]))


def _answer(answer: Any, fold: Fold, name: str) -> Values:
    """[n, g] predicted cells in score space, checked."""
    values = answer.values if isinstance(answer, InScoreSpace) else answer
    if hasattr(values, "var_names"):
        wanted = list(fold.train.var_names)
        missing = set(wanted) - set(values.var_names)
        if missing:
            raise EvaluationError(
                f"The prediction of {name!r} needs all {len(wanted)} genes of the training cells; it lacks {listing(sorted(missing))}. "
                "Return an AnnData with the var_names of train."
            )
        values = values[:, wanted] if list(values.var_names) != wanted else values
    try:
        out = dense(values if isinstance(answer, InScoreSpace) else to_score(values, kind=fold.kind))
    except EvaluationError as error:
        raise EvaluationError(f"The prediction of {name!r} for {fold.group!r} cannot be scored: {error}") from error
    if out.shape[1] != fold.real.shape[1] or len(out) < 2:
        raise EvaluationError(
            f"The prediction of {name!r} for {fold.group!r} needs two cells or more x {fold.real.shape[1]} genes; found shape {out.shape}. "
            "Return one row per control cell with the genes of train."
        )
    return out


def _told_apart(held: Any, means: Means) -> Iterator[tuple[Any, ...]]:
    """Rows of discrimination over the targets of one group."""
    for (method, sort, seed), pairs in means.items():
        if len(pairs) >= 5:
            values = discrimination(np.stack([p for p, _ in pairs.values()]), np.stack([r for _, r in pairs.values()]))
            for aim, value in zip(pairs, values, strict=True):
                yield held, aim, seed, method, sort, "discrimination", float(value)


def _scorable(
    adata: Any, *, condition: str, group: str, source: Any, targets: Sequence[Any], groups: Sequence[Any] | None, mask: Any, least: int
) -> dict[Any, list[Any]]:
    """Group -> targets that have enough trusted cells."""
    of_group, of_condition = column(adata, group), column(adata, condition)
    trusted = mask_of(mask, adata.n_obs)
    for value in (source, *targets):
        needs(condition, of_condition, value)
    for value in groups or ():
        needs(group, of_group, value)
    names = sorted({v for v in of_group if v is not None}, key=str) if groups is None else list(groups)

    def count(name: Any, value: Any) -> int:
        return int(((of_group == name) & (of_condition == value) & trusted).sum())

    chosen = {v: [t for t in targets if min(count(v, source), count(v, t)) >= max(2, least)] for v in names}
    thin = [f"{v} ({count(v, source)} and {', '.join(str(count(v, t)) for t in targets)})" for v in names if len(chosen[v]) < len(targets)]
    chosen = {v: own for v, own in chosen.items() if own}
    if thin and (groups is not None or not chosen):
        raise EvaluationError(
            f"To score a group, {least} trusted cells under source and under target are needed; found too few in {listing(thin)}. "
            "Lower min_cells=, or leave these out of groups=."
        )
    if thin:
        warnings.warn(
            f"Left out, with under {least} trusted cells under source or target: {listing(thin)}. Name groups= to choose them yourself.",
            TrifoldWarning,
            stacklevel=3,
        )
    return chosen


def _check_names(methods: Mapping[str, Any], nulls: Mapping[str, Any], seeds: Sequence[int], targets: Sequence[Any]) -> None:
    taken = set(nulls) | {"ceiling"}
    clash = sorted(set(methods) & taken)
    if clash:
        raise EvaluationError(
            f"predict needs names of methods that are not those of nulls and ceiling; found {listing(clash)}. Rename them."
        )
    if not len(seeds) or not len(targets):
        raise EvaluationError(
            f"seeds and target need one value or more each; found {len(seeds)} and {len(targets)}. "
            "Pass seeds=(0, 1, 2), target='stimulated'."
        )
