"""A perturbation study whose truth is known: what every cell would have expressed under every condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from trifold.data.matrix import Array
from trifold.errors import SpecError, suggest

if TYPE_CHECKING:
    from anndata import AnnData

_CHUNK = 1024  # cells whose n x g rates are held at once


@dataclass(frozen=True)
class Truth:
    """The parameters that made a study. Sizes: n cells, g genes, d latent, k conditions, r programmes.

    Args:
        latent: [n, d] state of each cell, before any condition.
        library: [n] expected counts of each cell.
        base: [g] log rate at latent 0.
        loadings: [d, g] change of the log rate per unit of latent.
        theta: [g] inverse dispersion of the negative binomial.
        directions: [k, d, r] and
        offsets: [k, r] of the programmes' activity, sigmoid(latent @ directions + offset), in (0, 1).
        effects: [k, r, g] change of the log rate at full activity; zero for the first condition, and for genes that do not respond.
        condition: [n] position of each cell's condition.
    """

    latent: Array
    library: Array
    base: Array
    loadings: Array
    theta: Array
    directions: Array
    offsets: Array
    effects: Array
    condition: Array

    def activity(self, index: Array, condition: int) -> Array:
        """[m, r] activity of a condition's programmes in some cells, in (0, 1)."""
        return 1.0 / (1.0 + np.exp(-(self.latent[index] @ self.directions[condition] + self.offsets[condition])))

    def shift(self, index: Array, condition: int) -> Array:
        """[m, g] change of the log rate (before normalisation) that a condition makes in some cells."""
        return self.activity(index, condition) @ self.effects[condition]

    def rate(self, index: Array, condition: int) -> Array:
        """[m, g] share of each gene in the counts of some cells under a condition; rows sum to 1."""
        log = self.base + self.latent[index] @ self.loadings + self.shift(index, condition)
        log -= log.max(1, keepdims=True)
        share = np.exp(log)
        return share / share.sum(1, keepdims=True)


@dataclass(frozen=True)
class Study:
    """A simulated study.

    Args:
        adata: [n, g] CSR float32 counts in X; obs: condition, cell_type.
        truth: What made it.
        conditions: Names, the first is the control.
    """

    adata: AnnData
    truth: Truth
    conditions: tuple[str, ...]

    def mean(self, index: Sequence[int] | Array, condition: str | None = None) -> Array:
        """[m, g] true mean counts of some cells under a condition, at their library size.

        Args:
            index: [m] positions of cells.
            condition: Its name; None: each cell's own.
        """
        index = np.asarray(index, dtype=np.int64)
        out = np.empty((len(index), len(self.truth.base)))
        under = self._under(index, condition)
        for c in np.unique(under):
            rows = np.flatnonzero(under == c)
            for part in np.split(rows, np.arange(_CHUNK, len(rows), _CHUNK)):
                out[part] = self.truth.library[index[part], None] * self.truth.rate(index[part], int(c))
        return out

    def sample(self, index: Sequence[int] | Array, condition: str | None = None, seed: int = 0) -> sp.csr_matrix:
        """[m, g] float32 counts drawn for some cells under a condition, at their library size.

        Args:
            index: [m] positions of cells.
            condition: Its name; None: each cell's own.
            seed: Of the draw.
        """
        index = np.asarray(index, dtype=np.int64)
        return _draw(self.truth, index, self._under(index, condition), np.random.default_rng([seed, 23]))

    def _under(self, index: Array, condition: str | None) -> Array:
        if condition is None:
            return self.truth.condition[index]
        if condition not in self.conditions:
            raise SpecError(
                f"The study has no condition {condition!r}.{suggest(condition, self.conditions)} It has: {', '.join(self.conditions)}."
            )
        return np.full(len(index), self.conditions.index(condition))


def simulate(
    cells: int = 2000,
    genes: int = 500,
    *,
    types: int = 5,
    conditions: int | Sequence[str] = 2,
    latent: int = 6,
    programmes: int = 3,
    responding: float = 0.15,
    strength: float = 1.2,
    depth: float = 0.35,
    seed: int = 0,
) -> Study:
    """Negative binomial counts of cells of several types under several conditions, with effects that depend on the cell's state.

    log rate of a gene = base + loadings · latent + sum over programmes of effect × sigmoid(direction · latent + offset).
    The response of a cell depends smoothly on where it is, so that a mean shift cannot be right for all types, but a model that learns the
    dependence can.

    Args:
        cells: Number of cells.
        genes: Number of genes.
        types: Number of cell types; one cell in six lies on the way from its type to another.
        conditions: Their names or number; the first is the control. Cells of each type are spread evenly over them.
        latent: Dimensions of the cells' state.
        programmes: Response programmes of each condition.
        responding: Share of genes that respond to a condition, two in three of them upwards.
        strength: Median change of the log rate of a responding gene at full activity, in nats; some go beyond three times this.
        depth: Mean counts per cell and gene; library sizes are log-normal around depth × genes.
        seed: Of everything.

    Returns:
        The study, with adata and truth.

    Raises:
        SpecError: Fewer than one cell, gene or type, or fewer than two conditions.
    """
    names = tuple(f"condition_{k}" if k else "control" for k in range(conditions)) if isinstance(conditions, int) else tuple(conditions)
    for name, value, least in (
        ("cells", cells, 1),
        ("genes", genes, 2),
        ("types", types, 1),
        ("conditions", len(names), 2),
        ("latent", latent, 1),
    ):
        if value < least:
            raise SpecError(f"{name} must be at least {least}; found {value}.")
    if not 0 < responding <= 1:
        raise SpecError(f"responding must be a share of the genes in (0, 1]; found {responding}. Pass responding=0.15.")
    rng = np.random.default_rng([seed, 17])
    centre = rng.normal(0, 1.3, (types, latent))
    kind = rng.choice(types, cells, p=rng.dirichlet(np.full(types, 6.0)))
    other = rng.integers(types, size=cells)
    way = np.where(rng.random(cells) < 1 / 6, rng.uniform(0, 0.45, cells), 0.0)[:, None]
    state = (1 - way) * centre[kind] + way * centre[other] + rng.normal(0, 0.4, (cells, latent))
    directions = rng.normal(size=(len(names), latent, programmes))
    directions *= 1.4 / np.linalg.norm(directions, axis=1, keepdims=True)
    truth = Truth(
        latent=state,
        library=depth * genes * rng.lognormal(0, 0.35, cells),
        base=np.maximum(rng.normal(0, 1.5, genes), -2.5),
        loadings=rng.normal(0, 0.5, (latent, genes)) * (rng.random((latent, genes)) < 0.4),
        theta=rng.lognormal(np.log(3.0), 0.7, genes),
        directions=directions,
        offsets=rng.normal(0, 0.3, (len(names), programmes)) - np.einsum("d,kdr->kr", centre.mean(0), directions),
        effects=_effects(rng, len(names), programmes, genes, responding, strength),
        condition=_even(rng, kind, len(names)),
    )
    return Study(_adata(truth, kind, names, rng), truth, names)


def _effects(rng: np.random.Generator, conditions: int, programmes: int, genes: int, responding: float, strength: float) -> Array:
    out = np.zeros((conditions, programmes, genes))
    for k in range(1, conditions):
        chosen = rng.choice(genes, max(1, round(responding * genes)), replace=False)
        size = np.minimum(strength * rng.lognormal(0, 0.6, len(chosen)), 4.0)
        sign = np.where(rng.random(len(chosen)) < 2 / 3, 1.0, -1.0)
        out[k, rng.integers(programmes, size=len(chosen)), chosen] = sign * size
    return out


def _even(rng: np.random.Generator, kind: Array, conditions: int) -> Array:
    """[n] condition of each cell: within each type, in turn and in random order."""
    order = rng.permutation(len(kind))
    order = order[np.argsort(kind[order], kind="stable")]
    out = np.empty(len(kind), dtype=np.int64)
    out[order] = np.arange(len(kind)) % conditions
    return out


def _draw(truth: Truth, index: Array, under: Array, rng: np.random.Generator) -> sp.csr_matrix:
    blocks = []
    for start in range(0, len(index), _CHUNK):
        rows, cs = index[start : start + _CHUNK], under[start : start + _CHUNK]
        mean = np.empty((len(rows), len(truth.base)))
        for c in np.unique(cs):
            mean[cs == c] = truth.library[rows[cs == c], None] * truth.rate(rows[cs == c], int(c))
        shape = np.broadcast_to(truth.theta.astype(np.float32), mean.shape)
        rate = rng.standard_gamma(shape, dtype=np.float32) * (mean / truth.theta)
        blocks.append(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sp.vstack(blocks, format="csr") if blocks else sp.csr_matrix((0, len(truth.base)), dtype=np.float32)


def _adata(truth: Truth, kind: Array, names: tuple[str, ...], rng: np.random.Generator) -> AnnData:
    import anndata
    import pandas as pd

    n, g = len(kind), len(truth.base)
    counts = _draw(truth, np.arange(n), truth.condition, rng)
    types = [f"type_{t}" for t in range(int(kind.max()) + 1)]
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(truth.condition, categories=list(names)),
            "cell_type": pd.Categorical.from_codes(kind, categories=types).remove_unused_categories(),
        },
        index=[f"cell_{i}" for i in range(n)],
    )
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{j}" for j in range(g)]))
