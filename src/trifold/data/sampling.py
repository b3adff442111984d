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
        self.index, self.batch, self.seed, self.block = _index(index, batch), int(batch), seed, block
        if block is not None and block < 1:
            raise DataError(f"block must be at least 1 cell; found {block}.")

    @property
    def steps(self) -> int:
        """Minibatches in an epoch."""
        return len(_cuts(len(self.index), self.batch)) + 1

    def epoch(self, k: int) -> list[Array]:
        """The minibatches of epoch k, counted from 0: positions of cells."""
        rng = np.random.default_rng([self.seed, k])
        n = len(self.index)
        if self.block is None or self.block >= n:
            return np.split(self.index[rng.permutation(n)], _cuts(n, self.batch))
        blocks = rng.permutation(-(-n // self.block))
        order = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
        order = order[order < n]
        window = 16 * self.block
        mixed = np.concatenate([rng.permutation(order[i : i + window]) for i in range(0, n, window)])
        return np.split(self.index[mixed], _cuts(n, self.batch))


class Balanced:
    """Equal shares of every condition in each minibatch; as many cells an epoch as there are.

    Small conditions are drawn again within the epoch, each of their cells as often as any other (to one); of large ones each cell comes at
    most once. With more conditions than cells in a minibatch, conditions take turns.

    Args:
        index: [n] positions of cells.
        codes: [n] condition of each entry of index: ``cells.code["condition"][index]``.
        batch: Cells in a minibatch; a last minibatch of one cell is merged into the one before.
        seed: Of the order.

    Raises:
        DataError: No cells, or a batch below one.
        ShapeError: Codes of another length than index.
    """

    def __init__(self, index: Array, codes: Array, batch: int, seed: int = 0):
        self.index, self.codes, self.batch, self.seed = _index(index, batch), np.asarray(codes), int(batch), seed
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
            out[places] = np.concatenate([rng.permutation(group) for _ in range(rounds)] or [group[:0]])[: len(places)]
        return np.split(out, _cuts(n, self.batch))


def _index(index: Array, batch: int) -> Array:
    index = np.asarray(index)
    if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu":
        raise DataError(f"A sampler needs at least one cell; found index of shape {index.shape} and dtype {index.dtype}.")
    if batch < 1:
        raise DataError(f"batch must be at least 1 cell; found {batch}.")
    return index


def _cuts(n: int, batch: int) -> Array:
    """Where minibatches begin, but for the first; a last one of a single cell is merged into the one before."""
    cuts = np.arange(batch, n, batch)
    return cuts[:-1] if len(cuts) and n - cuts[-1] == 1 and batch > 1 else cuts
