"""Counts for speed.py and scaling.py: a pool of simulated cells, and any number of cells drawn from it, chunk by chunk.

A cell of the pool has one of ten types and one of two batches; its counts are negative binomial with a mean of its library size
(log-normal) times a share of each gene that depends on type, batch and a small random step of its own. The mean count is set so that a
given share of the values is not zero. Larger sets repeat the pool in a new random order each time: what a step costs does not depend on
that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

TYPES, BATCHES, STATES = 10, 2, 6
_BLOCK = 4_000_000  # values of the dense rates held at once


@dataclass(frozen=True)
class Pool:
    """Simulated cells.

    Args:
        counts: [n, g] CSR, uint16.
        kind: [n] type of each cell.
        batch: [n] batch of each cell.
    """

    counts: sp.csr_matrix
    kind: np.ndarray
    batch: np.ndarray


def pool(cells: int, genes: int, *, filled: float, seed: int = 0, batches: int = BATCHES) -> Pool:
    """Cells of ten types in some batches.

    Args:
        cells, genes: How many.
        filled: Share of the values that is not zero, in (0, 1); met to about a hundredth of itself.
        seed: Of everything.
        batches: Number of batches, of equal size.
    """
    rng = np.random.default_rng([seed, 29])
    base = rng.normal(0, 1.5, genes)
    shift = rng.normal(0, 0.9, (TYPES, genes)) * (rng.random((TYPES, genes)) < 0.3)
    technique = rng.normal(0, 0.3, (batches, genes))
    loadings = rng.normal(0, 0.25, (STATES, genes)) * (rng.random((STATES, genes)) < 0.3)
    theta = rng.lognormal(np.log(3.0), 0.7, genes).astype(np.float32)
    kind = rng.integers(TYPES, size=cells)
    batch = rng.permutation(np.arange(cells) % batches)
    state = rng.normal(size=(cells, STATES))
    library = rng.lognormal(0, 0.35, cells)

    def shares(at: np.ndarray) -> np.ndarray:
        log = base + shift[kind[at]] + technique[batch[at]] + state[at] @ loadings
        share = np.exp(log - log.max(1, keepdims=True))
        return (library[at, None] * share / share.sum(1, keepdims=True)).astype(np.float32)

    some = np.arange(min(cells, 200))
    depth = _depth(shares(some), theta, filled)
    size = max(1, _BLOCK // genes)
    parts = []
    for at in (np.arange(start, min(cells, start + size)) for start in range(0, cells, size)):
        rate = depth * shares(at) / theta
        drawn = rng.poisson(rng.standard_gamma(np.broadcast_to(theta, rate.shape), dtype=np.float32) * rate)
        drawn[np.arange(len(at)), rng.integers(genes, size=len(at))] += drawn.sum(1) == 0  # no empty cell
        parts.append(sp.csr_matrix(np.minimum(drawn, np.iinfo(np.uint16).max).astype(np.uint16)))
    return Pool(sp.vstack(parts, format="csr"), kind, batch)


def _depth(share: np.ndarray, theta: np.ndarray, filled: float) -> float:
    """Mean counts per cell at which a negative binomial leaves the wanted share of values other than zero."""
    low, high = 0.0, 1.0
    while _nonzero(high * share, theta) < filled:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _nonzero(middle * share, theta) < filled else (low, middle)
    return high


def _nonzero(mean: np.ndarray, theta: np.ndarray) -> float:
    return float((1 - (theta / (theta + mean)) ** theta).mean())


def repeated(source: Pool, cells: int, *, seed: int = 0) -> Iterator[Pool]:
    """The given number of cells, in chunks of at most the pool's size, each a new random order of the pool."""
    rng = np.random.default_rng([seed, 31])
    for start in range(0, cells, source.counts.shape[0]):
        at = rng.permutation(source.counts.shape[0])[: cells - start]
        yield Pool(source.counts[at], source.kind[at], source.batch[at])


def write(folder: Path, made: Pool) -> None:
    """``counts.npz`` (scipy's CSR) and ``obs.csv`` (cell, batch, condition, cell_type; the condition is the batch): what all sides read."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    sp.save_npz(folder / "counts.npz", made.counts, compressed=False)
    batch = [f"batch_{b}" for b in made.batch]
    obs = {"batch": batch, "condition": batch, "cell_type": [f"type_{k}" for k in made.kind]}
    pd.DataFrame(obs, index=[f"cell_{i}" for i in range(len(made.batch))]).to_csv(folder / "obs.csv", index_label="cell")


def read(folder: Path) -> Any:
    """AnnData of what ``write`` wrote, X as float32 CSR, as most users hold it; the columns of obs are categorical."""
    import anndata as ad
    import pandas as pd

    counts = sp.load_npz(folder / "counts.npz").astype(np.float32)
    obs = pd.read_csv(folder / "obs.csv", index_col="cell", dtype=str).astype("category")
    obs.index = obs.index.astype(str)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene_{j}" for j in range(counts.shape[1])]))


class Data:
    """Folders of simulated counts, each written once.

    Args:
        folder: That holds them.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, cells: int, genes: int, *, filled: float = 0.08, batches: int = BATCHES) -> str:
        """The folder with counts.npz and obs.csv of so many cells and genes."""
        at = self.folder / f"{cells}_{genes}_{filled}_{batches}"
        if not (at / "obs.csv").exists():
            print(f"writing {cells} cells x {genes} genes, {100 * filled:g} % filled, {batches} batches", flush=True)
            write(at, pool(cells, genes, filled=filled, batches=batches))
        return str(at)


def halves(cells: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of training cells and of held-out ones; the same on every side of a comparison (numpy's PCG64)."""
    order = np.random.default_rng([seed, 37]).permutation(cells)
    out = round(share * cells)
    return np.sort(order[out:]), np.sort(order[:out])
