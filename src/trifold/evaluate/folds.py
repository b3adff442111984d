"""One held-out combination of group and condition: what is trained on, what is scored, and in which genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from trifold.errors import EvaluationError, listing, suggest
from trifold.evaluate.genes import labels, paired_means, top_genes, variable_genes
from trifold.evaluate.space import Index, Kind, Matrix, Values, dense, fit_pca, kind_of, matrix, to_score


@dataclass(frozen=True)
class Fold:
    """A held-out (group, target) and all that is needed to predict and to score it. Genes are the chosen ones throughout.

    Args:
        group, target: What is held out.
        train: AnnData of every cell but those of the group under the target, in the data's own units.
        controls: AnnData of the group's scored cells under the source; they are in ``train`` too.
        x: Training cells with trusted labels in score space, for nulls.
        groups, conditions: Labels of the rows of x.
        real: [m, g] held-out cells in score space.
        control: [l, g] the controls in score space.
        top: Size -> index of top genes, from training groups.
        centroid: [g] mean over the other groups of their target means.
        pca: 30 principal components of all real cells, training and held out; it only measures.
        kind: ``"counts"`` or ``"real"``.
    """

    group: Any
    target: Any
    train: Any
    controls: Any
    x: Matrix
    groups: NDArray[Any]
    conditions: NDArray[Any]
    real: Values
    control: Values
    top: Mapping[int, Index]
    centroid: NDArray[np.float64]
    pca: PCA
    kind: Kind


def make_fold(
    adata: Any,
    *,
    condition: str,
    group: str,
    source: Any,
    target: Any,
    held: Any,
    targets: Sequence[Any] = (),
    score_mask: Any = None,
    n_top_genes: int = 2000,
    top: Sequence[int] = (20, 100),
    components: int = 30,
    kind: Kind | None = None,
    layer: str | None = None,
) -> Fold:
    """Hold out the cells of group ``held`` under ``target``. The AnnData is not changed.

    Variable genes and top genes are chosen without the held-out cells, counts are then brought to 10,000 per cell over the
    chosen genes and log1p is taken.

    Args:
        adata: AnnData with the two columns.
        condition, group: Columns of obs.
        source, target: Values of the condition.
        held: Value of the group.
        targets: Other targets of a study; with several, genes are chosen without any of the held group's target cells, so
            that they are the same for all targets of the group.
        score_mask: [n] booleans: cells whose labels are trusted. Others are trained on (the held-out combination never is),
            but neither scored nor shown to nulls. None trusts all.
        n_top_genes: How many variable genes.
        top: Sizes of the lists of top genes.
        components: Principal components to measure distances in.
        kind: ``"counts"`` or ``"real"``; None looks at the values.
        layer: Layer with the values; None is X.

    Raises:
        EvaluationError: A column or value is absent, or too few cells are left.
    """
    groups, conditions = column(adata, group), column(adata, condition)
    trusted = mask_of(score_mask, adata.n_obs)
    for name, col, value in ((group, groups, held), (condition, conditions, source), (condition, conditions, target)):
        needs(name, col, value)
    if source == target:
        raise EvaluationError(f"source and target must differ; both are {source!r}. Pass target= another value of {condition!r}.")
    own = groups == held
    out = own & (conditions == target)
    real, control = np.flatnonzero(out & trusted), np.flatnonzero(own & (conditions == source) & trusted)
    if len(real) < 2 or len(control) < 2:
        raise EvaluationError(
            f"{held!r} needs two cells or more under source and target to be scored; found {len(control)} under {source!r} and "
            f"{len(real)} under {target!r}. Leave this group out of groups=."
        )
    if kind is None:
        kind = kind_of(matrix(adata, layer=layer))
    seen = ~(own & np.logical_or.reduce([conditions == t for t in (target, *targets)]))
    genes = variable_genes(adata[seen], n_top_genes, kind=kind, layer=layer)
    x = to_score(matrix(adata, layer=layer)[:, genes], kind=kind)
    shown = ~out & trusted
    kept = seen & trusted
    names = {"conditions": conditions[kept], "source": source, "target": target, "held": held}
    best = top_genes(x[kept], groups[kept], k=max(top, default=1), **names)
    centroid = paired_means(x[kept], groups[kept], **names)[2].mean(0)
    return Fold(
        group=held,
        target=target,
        train=adata[~out, genes].copy(),
        controls=adata[control][:, genes].copy(),
        x=x[shown],
        groups=groups[shown],
        conditions=conditions[shown],
        real=dense(x[real]),
        control=dense(x[control]),
        top={k: best[:k] for k in top},
        centroid=centroid,
        pca=fit_pca(x[trusted], components),
        kind=kind,
    )


def column(adata: Any, name: str) -> NDArray[Any]:
    """[n] labels of a column of obs.

    Raises:
        EvaluationError: There is no such column.
    """
    if name not in adata.obs:
        raise EvaluationError(f"obs has no column {name!r}.{suggest(name, adata.obs.columns)} It has: {listing(adata.obs.columns)}.")
    return labels(adata.obs[name])


def needs(name: str, values: NDArray[Any], value: Any) -> None:
    """Check that a column holds a value.

    Raises:
        EvaluationError: It does not.
    """
    if not (values == value).any():
        found = sorted({str(v) for v in values if v is not None})
        raise EvaluationError(f"obs[{name!r}] has no {value!r}.{suggest(value, found)} It has: {listing(found)}.")


def mask_of(score_mask: Any, n: int) -> NDArray[np.bool_]:
    """[n] booleans from a mask; all true for None.

    Raises:
        EvaluationError: It is not one boolean per cell.
    """
    if score_mask is None:
        return np.ones(n, dtype=bool)
    mask = np.asarray(score_mask)
    if mask.shape != (n,) or mask.dtype != bool:
        raise EvaluationError(
            f"score_mask needs one boolean for each of {n} cells; found {mask.dtype} of shape {mask.shape}. "
            "Pass score_mask=(adata.obs['label_source'] == 'GEO').to_numpy()."
        )
    return mask
