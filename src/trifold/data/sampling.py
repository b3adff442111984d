"""The order of cells in an epoch, as pure functions of (seed, epoch): resuming needs two integers, and how many minibatches to skip."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from trifold.data.matrix import Array
from trifold.errors import DataError, ShapeError

_BLOCKS = 16  # blocks in a window, unless the window is given


class Sampler(ABC):
    """Minibatches of an epoch, put together from as many streams as there are parts.

    Args:
        index: [n] positions of cells.
        batch: Cells in a minibatch, over all parts; a last minibatch of one cell (a part) is merged into the one before.
        seed: Of the order.
        block: None: any cell may follow any other. Else blocks of so many neighbours come in random order and cells are shuffled in windows
            of some blocks, so that data on disk are read in pieces.
        window: Cells in a window, with ``block``, rounded down to whole minibatches: ``cells.window``. None: 16 blocks.
        parts: Streams, for as many processes: :meth:`share` is one of them. With ``block`` each stream is a run of neighbours that no other
            stream reads; without, the cells of a minibatch do not depend on ``parts``.

    Raises:
        DataError: No cells, a batch below one or below ``parts``, or fewer cells than parts.
    """

    def __init__(self, index: Array, batch: int, seed: int = 0, *, block: int | None = None, window: int | None = None, parts: int = 1):
        self.index, self.batch, self.seed = _index(index, batch, block, window, parts), int(batch), seed
        self.block, self.window, self.parts = block, window, int(parts)

    @property
    def steps(self) -> int:
        """Minibatches in an epoch."""
        return len(self._edges) - 1

    @property
    def sizes(self) -> list[int]:
        """Cells in each minibatch of an epoch, over all parts."""
        return np.diff(self._edges).tolist()  # type: ignore[no-any-return]

    def epoch(self, k: int) -> list[Array]:
        """The minibatches of epoch k, counted from 0: positions of cells."""
        if self.block is None:
            return np.split(self._stream(k, 0, 1), self._edges[1:-1])
        shares = [self.share(k, part) for part in range(self.parts)]
        return shares[0] if self.parts == 1 else [np.concatenate(pieces) for pieces in zip(*shares, strict=True)]

    def share(self, k: int, part: int) -> list[Array]:
        """What one part adds to each minibatch of epoch k: put together in the order of parts they are ``epoch(k)``.

        Args:
            k: The epoch.
            part: From 0 to ``parts`` - 1.

        Raises:
            DataError: No such part.
        """
        if not 0 <= part < self.parts:
            raise DataError(f"part must lie in 0 to {self.parts - 1}, since parts={self.parts}; found {part}.")
        if self.block is None:
            return _pieces(self.epoch(k), self._edges, part, self.parts)
        return np.split(self._stream(k, part, self.parts), _share(self._edges, part, self.parts)[1:-1])

    @property
    def _edges(self) -> Array:
        """Where minibatches begin and end; a last one of fewer than two cells a part is merged into the one before."""
        n = len(self.index)
        edges = np.append(np.arange(0, n, self.batch), n)
        few = len(edges) > 2 and edges[-1] - edges[-2] < min(self.batch, 2 * self.parts)
        return np.delete(edges, -2) if few else edges

    def _span(self, streams: int) -> int:
        """Cells of a window in each of several streams; all together are whole minibatches, so that a reader that holds them reads once."""
        if self.window is None:
            return _BLOCKS * (self.block or 1)
        return max(1, self.window // self.batch) * self.batch // streams

    @abstractmethod
    def _stream(self, k: int, part: int, parts: int) -> Array:
        """All cells that a part sees in epoch k, in order."""


class Shuffled(Sampler):
    """Every cell once an epoch, in random order. Arguments as of :class:`Sampler`."""

    def _stream(self, k: int, part: int, parts: int) -> Array:
        own = _run(self.index, part, parts)
        return own[_order(_rng(self.seed, k, part, parts), len(own), self.block, self._span(parts))]


class Balanced(Sampler):
    """Equal shares of every condition in each minibatch; as many cells an epoch as there are.

    Small conditions are drawn again within the epoch, each of their cells as often as any other (to one); of large ones each cell comes at
    most once (with ``block`` and ``parts``: but for one a part). With more conditions than cells in a minibatch, conditions take turns.

    Args:
        index, batch, seed: As of :class:`Sampler`.
        codes: [n] condition of each entry of index: ``cells.code["condition"][index]``.
        block, window: As of :class:`Sampler`; blocks are of neighbours within a condition.
        parts: As of :class:`Sampler`. With ``block`` each condition is shared among the streams; all of them draw from one that has fewer
            cells than there are parts.

    Raises:
        DataError: As of :class:`Sampler`.
        ShapeError: Codes of another length than index.
    """

    def __init__(
        self,
        index: Array,
        codes: Array,
        batch: int,
        seed: int = 0,
        *,
        block: int | None = None,
        window: int | None = None,
        parts: int = 1,
    ):
        super().__init__(index, batch, seed, block=block, window=window, parts=parts)
        self.codes = np.asarray(codes)
        if self.codes.shape != self.index.shape:
            raise ShapeError(
                f"codes must have one entry for each of the {len(self.index)} cells of index; found shape {self.codes.shape}. "
                "Pass codes=cells.code[role][index]."
            )
        _, inverse = np.unique(self.codes, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        self._groups = np.split(self.index[order], np.cumsum(np.bincount(inverse))[:-1])

    def _stream(self, k: int, part: int, parts: int) -> Array:
        rng = _rng(self.seed, k, part, parts)
        n = int(_share(np.array(len(self.index)), part, parts))
        turn = rng.permutation(len(self._groups))[np.arange(n) % len(self._groups)]  # condition of each place
        window = self._span(parts * len(self._groups))
        out = np.empty(n, dtype=self.index.dtype)
        for g, group in enumerate(self._groups):
            own = _run(group, part, parts) if len(group) >= parts else group
            places = np.flatnonzero(turn == g)
            rounds = -(-len(places) // len(own))
            drawn = [own[_order(rng, len(own), self.block, window)] for _ in range(rounds)] or [own[:0]]
            out[places] = np.concatenate(drawn)[: len(places)]
        return out


def _order(rng: np.random.Generator, n: int, block: int | None, window: int) -> Array:
    """[n] a random order; with blocks, one in which blocks are in random order and windows of them are shuffled."""
    if block is None or block >= n:
        return rng.permutation(n)
    blocks = rng.permutation(-(-n // block))
    order = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    order = order[order < n]
    window = max(window, block)
    return np.concatenate([rng.permutation(order[i : i + window]) for i in range(0, n, window)])


def _rng(seed: int, k: int, part: int, parts: int) -> np.random.Generator:
    return np.random.default_rng([seed, k] if parts == 1 else [seed, k, part])


def _share(edges: Array, part: int, parts: int) -> Array:
    """The edges as one part counts them: it has every ``parts``-th cell, so shares differ by one cell at most."""
    return (edges + parts - 1 - part) // parts


def _run(index: Array, part: int, parts: int) -> Array:
    """The neighbours that belong to a part: as many as its share."""
    sizes = [int(_share(np.array(len(index)), p, parts)) for p in range(parts)]
    start = sum(sizes[:part])
    return index[start : start + sizes[part]]


def _pieces(minibatches: list[Array], edges: Array, part: int, parts: int) -> list[Array]:
    """One part's piece of each minibatch."""
    counts = np.stack([np.diff(_share(edges, p, parts)) for p in range(part + 1)])
    start, stop = counts[:part].sum(0), counts.sum(0)
    return [m[a:b] for m, a, b in zip(minibatches, start.tolist(), stop.tolist(), strict=True)]


def _index(index: Array, batch: int, block: int | None, window: int | None, parts: int) -> Array:
    index = np.asarray(index)
    if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu":
        raise DataError(
            f"A sampler needs at least one cell; found index of shape {index.shape} and dtype {index.dtype}. "
            "Pass index=numpy.arange(cells.n)."
        )
    for name, value in (("batch", batch), ("block", block), ("window", window)):
        if value is not None and value < 1:
            raise DataError(f"{name} must be at least 1 cell; found {value}.")
    if not 1 <= parts <= min(batch, len(index)):
        raise DataError(
            f"parts must lie between 1 and the cells of a minibatch ({batch}) and of an epoch ({len(index)}); found {parts}. "
            "Use fewer processes, or a larger batch."
        )
    return index
