"""The order of cells in an epoch, as pure functions of (seed, epoch): resuming needs two integers only."""

from __future__ import annotations

import numpy as np

from trifold.data.matrix import Array
from trifold.errors import DataError, ShapeError


class Shuffled:
    """Every cell once an epoch, in random order.

    Args:
        index: [n] positions of cells.
        batch: Cells in a minibatch; a last minibatch of one cell is merged into the one before.
        seed: Of the order.
        block: None: any cell may follow any other. Else blocks of so many neighbours come in random order and cells are shuffled in windows
            of 16 blocks, so that data on disk are read in pieces.

    Raises:
        DataError: No cells, or a batch below one.
    """

    def __init__(self, index: Array, batch: int, seed: int = 0, *, block: int | None = None):
        self.index, self.batch, self.seed, self.block = _index(index, batch, block), int(batch), seed, block

    @property
    def steps(self) -> int:
        """Minibatches in an epoch."""
        return len(_cuts(len(self.index), self.batch)) + 1

    def epoch(self, k: int) -> list[Array]:
        """The minibatches of epoch k, counted from 0: positions of cells."""
        rng = np.random.default_rng([self.seed, k])
        n = len(self.index)
        return np.split(self.index[_order(rng, n, self.block)], _cuts(n, self.batch))


class Balanced:
    """Equal shares of every condition in each minibatch; as many cells an epoch as there are.

    Small conditions are drawn again within the epoch, each of their cells as often as any other (to one); of large ones each cell comes at
    most once. With more conditions than cells in a minibatch, conditions take turns.

    Args:
        index: [n] positions of cells.
        codes: [n] condition of each entry of index: ``cells.code["condition"][index]``.
        batch: Cells in a minibatch; a last minibatch of one cell is merged into the one before.
        seed: Of the order.
        block: As for :class:`Shuffled`, within each condition.

    Raises:
        DataError: No cells, or a batch below one.
        ShapeError: Codes of another length than index.
    """

    def __init__(self, index: Array, codes: Array, batch: int, seed: int = 0, *, block: int | None = None):
        self.index, self.codes = _index(index, batch, block), np.asarray(codes)
        self.batch, self.seed, self.block = int(batch), seed, block
        if self.codes.shape != self.index.shape:
            raise ShapeError(f"codes must have one entry for each of the {len(self.index)} cells of index; found shape {self.codes.shape}.")
        _, inverse = np.unique(self.codes, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        self._groups = np.split(self.index[order], np.cumsum(np.bincount(inverse))[:-1])

    @property
    def steps(self) -> int:
        """Minibatches in an epoch."""
        return len(_cuts(len(self.index), self.batch)) + 1

    def epoch(self, k: int) -> list[Array]:
        """The minibatches of epoch k, counted from 0: positions of cells."""
        rng = np.random.default_rng([self.seed, k])
        n = len(self.index)
        turn = rng.permutation(len(self._groups))[np.arange(n) % len(self._groups)]  # condition of each place
        out = np.empty(n, dtype=self.index.dtype)
        for g, group in enumerate(self._groups):
            places = np.flatnonzero(turn == g)
            rounds = -(-len(places) // len(group))
            out[places] = np.concatenate([group[_order(rng, len(group), self.block)] for _ in range(rounds)] or [group[:0]])[: len(places)]
        return np.split(out, _cuts(n, self.batch))


def _order(rng: np.random.Generator, n: int, block: int | None) -> Array:
    """[n] a random order; with blocks, one in which windows of 16 blocks are shuffled."""
    if block is None or block >= n:
        return rng.permutation(n)
    blocks = rng.permutation(-(-n // block))
    order = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    order = order[order < n]
    window = 16 * block
    return np.concatenate([rng.permutation(order[i : i + window]) for i in range(0, n, window)])


def _index(index: Array, batch: int, block: int | None) -> Array:
    index = np.asarray(index)
    if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu":
        raise DataError(f"A sampler needs at least one cell; found index of shape {index.shape} and dtype {index.dtype}.")
    if batch < 1:
        raise DataError(f"batch must be at least 1 cell; found {batch}.")
    if block is not None and block < 1:
        raise DataError(f"block must be at least 1 cell; found {block}.")
    return index


def _cuts(n: int, batch: int) -> Array:
    """Where minibatches begin, but for the first; a last one of a single cell is merged into the one before."""
    cuts = np.arange(batch, n, batch)
    return cuts[:-1] if len(cuts) and n - cuts[-1] == 1 and batch > 1 else cuts
