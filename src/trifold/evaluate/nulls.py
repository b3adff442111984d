"""Five predictions that have learned nothing: what a model must beat before it is said to have learned anything.

Each is ``null(x, groups, *, conditions, held, source, target, seed=0) -> [n, g]`` in score space, one row per control cell
of the held group: ``x`` [m, g] training cells in score space, ``groups`` and ``conditions`` their labels, ``held`` the group
whose cells under ``target`` are to be predicted, ``source`` the condition that stands for "no change", ``seed`` for the one
null that draws. Other groups count with equal weight, whatever their size, if they have cells under both conditions.

Raised by each: :class:`EvaluationError`, where x holds the very cells that are to be predicted, where the held group has no
control cell, or where no other group has both conditions.

The three shifts can make values negative. The benchmark's convention leaves them; ``functools.partial(similar_shift,
clip=True)`` is a null with a little more Pearson and a little more energy distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifold.errors import EvaluationError
from trifold.evaluate.genes import labels, paired_means
from trifold.evaluate.space import Matrix, Values, dense, fit_pca

Null = Callable[..., Values]


def control(x: Matrix, groups: Any, *, conditions: Any, held: Any, source: Any, target: Any, seed: int = 0) -> Values:
    """[n, g] the held group's control cells as they are: nothing changes."""
    return _known(x, groups, conditions, held, source, target).control


def other_groups(x: Matrix, groups: Any, *, conditions: Any, held: Any, source: Any, target: Any, seed: int = 0) -> Values:
    """[n, g] real cells of the other groups under the target, each group drawn equally often: the held group is like the rest.

    Cells and not their mean repeated, so that it is a fair null for distributions too; as many as the held group has
    controls, so that its mean carries the noise of that many draws. Without replacement where a group has enough cells.
    """
    known = _known(x, groups, conditions, held, source, target)
    groups, conditions = labels(groups), labels(conditions)
    rng = np.random.default_rng(seed)
    n, k = len(known.control), len(known.names)
    share = np.full(k, n // k) + (rng.permutation(k) < n % k)
    rows = [
        _draw(np.flatnonzero((groups == name) & (conditions == target)), size, rng) for name, size in zip(known.names, share, strict=True)
    ]
    return dense(x[rng.permutation(np.concatenate(rows))])


def mean_shift(
    x: Matrix, groups: Any, *, conditions: Any, held: Any, source: Any, target: Any, seed: int = 0, clip: bool = False
) -> Values:
    """[n, g] control plus the mean over the other groups of their shift of the mean; ``clip`` puts values below zero to zero."""
    known = _known(x, groups, conditions, held, source, target)
    return _clipped(known.control + known.shift.mean(0).astype(known.control.dtype), clip)


def pca_shift(
    x: Matrix, groups: Any, *, conditions: Any, held: Any, source: Any, target: Any, seed: int = 0, clip: bool = False, components: int = 30
) -> Values:
    """[n, g] control reduced to principal components of x, shifted there by the mean of the other groups, and mapped back.

    What lies outside of the ``components`` is lost, as in the "PCA and vector arithmetic" baseline of the scGen paper.
    """
    known = _known(x, groups, conditions, held, source, target)
    pca = fit_pca(x, components, seed=0)
    moved = pca.transform(known.control) + known.shift.mean(0) @ pca.components_.T
    return _clipped(np.asarray(pca.inverse_transform(moved), dtype=known.control.dtype), clip)


def similar_shift(
    x: Matrix, groups: Any, *, conditions: Any, held: Any, source: Any, target: Any, seed: int = 0, clip: bool = False, components: int = 30
) -> Values:
    r"""[n, g] control plus the other groups' shifts, each weighted by how near its control mean is.

    .. math:: w_t \propto \exp(-\|P(\bar c_t) - P(\bar c_{held})\|)

    with P the projection on ``components`` principal components of x, and weights that sum to one. The strongest of the five.
    """
    known = _known(x, groups, conditions, held, source, target)
    pca = fit_pca(x, components, seed=0)
    away = np.linalg.norm((known.source - known.control.mean(0, dtype=np.float64)) @ pca.components_.T, axis=1)
    weight = np.exp(away.min() - away)
    shift = (weight / weight.sum()) @ known.shift
    return _clipped(known.control + shift.astype(known.control.dtype), clip)


NULLS: Mapping[str, Null] = MappingProxyType(
    {"control": control, "other groups": other_groups, "mean shift": mean_shift, "pca shift": pca_shift, "similar shift": similar_shift}
)
DRAWN = frozenset({"other groups"})  # the nulls that differ from seed to seed


@dataclass(frozen=True)
class _Known:
    """What a null may know: control cells [n, g] of the held group; names [k], source means and shifts [k, g] of the others."""

    control: Values
    names: NDArray[Any]
    source: NDArray[np.float64]
    shift: NDArray[np.float64]


def _known(x: Matrix, groups: Any, conditions: Any, held: Any, source: Any, target: Any) -> _Known:
    groups, conditions = labels(groups), labels(conditions)
    names, at_source, at_target = paired_means(x, groups, conditions=conditions, source=source, target=target, held=held)
    leaked = int(((groups == held) & (conditions == target)).sum())
    if leaked:
        raise EvaluationError(
            f"Training cells must not hold {held!r} under {target!r}, which is to be predicted; found {leaked} such cells. "
            "Pass x[train] and the labels of the training cells."
        )
    own = (groups == held) & (conditions == source)
    if not own.any():
        raise EvaluationError(f"A null needs control cells of {held!r} under {source!r}; found none. Check held= and source=.")
    return _Known(dense(x[np.flatnonzero(own)]), names, at_source, at_target - at_source)


def _clipped(cells: Values, clip: bool) -> Values:
    return np.maximum(cells, 0) if clip else cells


def _draw(rows: NDArray[np.intp], size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(rows, size=int(size), replace=bool(size > len(rows)))
