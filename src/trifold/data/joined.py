"""Several sources as one: genes matched by name to the first, covariates one below the other with categories unified."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from trifold.data.matrix import Array, below, take_rows
from trifold.data.source import PickedSource, Source
from trifold.errors import DataError, TrifoldWarning, listing


class JoinedSource(Source):
    """The cells of several sources, one after the other.

    Args:
        sources: At least one. The genes are those of the first; others may have them in another order and have more, which are left out
            with a notice. Columns of obs that only some sources have are missing values in the others, with a notice.

    Raises:
        DataError: A source lacks genes of the first.
    """

    def __init__(self, sources: Sequence[Source]):
        first = sources[0]
        self._sources = [first, *(_aligned(source, first) for source in sources[1:])]
        self.starts = np.concatenate([[0], np.cumsum([s.n for s in self._sources])]).astype(np.int64)
        self.n = int(self.starts[-1])
        self.genes, self.x = first.genes, first.x
        self.where = first.where + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
        self.wheres = tuple(s.where for s in self._sources)
        self.dtype = np.result_type(*(s.dtype for s in self._sources))
        self.sparse = any(s.sparse for s in self._sources)
        blocks = [s.block for s in self._sources if s.block is not None]
        self.block = min(blocks) if blocks else None
        self.other = {k: tuple(dict.fromkeys(name for s in sources for name in s.other.get(k, ()))) for k in first.other}
        self.obs = _stacked([s.obs for s in self._sources], self.wheres)

    def take(self, index: Array | slice) -> Any:
        """The rows asked for, in the order asked for; each source is read once, from first to last."""
        if isinstance(index, slice):
            index = np.arange(index.start, index.stop)
        owner = np.searchsorted(self.starts, index, side="right") - 1
        present = np.unique(owner)
        blocks = [self._part(int(k), index[owner == k] - self.starts[k]) for k in present] or [self._part(0, index)]
        if len(blocks) == 1:
            return blocks[0]
        block = below(blocks) if self.sparse else np.concatenate(blocks)
        order = np.argsort(owner, kind="stable")  # of the cells asked for, as they lie in the block
        if np.array_equal(order, np.arange(len(order))):
            return block
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return take_rows(block, back) if self.sparse else block[back]

    def stored(self, index: Array | slice) -> int:
        """How many values are stored for some cells."""
        if isinstance(index, slice):
            cuts = np.clip(self.starts, index.start, index.stop)
            spans = [slice(int(a), int(b)) for a, b in zip(cuts[:-1] - self.starts[:-1], cuts[1:] - self.starts[:-1], strict=True)]
            return sum(s.stored(span) for s, span in zip(self._sources, spans, strict=True) if span.stop > span.start)
        owner = np.searchsorted(self.starts, index, side="right") - 1
        return sum(s.stored(index[owner == k] - self.starts[k]) for k, s in enumerate(self._sources))

    def _part(self, k: int, index: Array) -> Any:
        neighbours = len(index) > 0 and index[-1] - index[0] + 1 == len(index) and bool((np.diff(index) == 1).all())
        block = self._sources[k].take(slice(int(index[0]), int(index[-1]) + 1) if neighbours else index)
        if self.sparse and not sp.issparse(block):
            block = sp.csr_matrix(block)
        return block.astype(self.dtype, copy=False)


def _aligned(source: Source, first: Source) -> Source:
    """The source with the genes of the first, in their order."""
    if source.genes == first.genes:
        return source
    at = {gene: j for j, gene in enumerate(source.genes)}
    columns = np.array([at.get(gene, -1) for gene in first.genes], dtype=np.int64)
    absent = [first.genes[j] for j in np.flatnonzero(columns < 0)]
    if absent:
        raise DataError(
            f"Joined files must have the genes of the first, {first.where}; {source.where} lacks {len(absent)} of {len(first.genes)}: "
            f"{listing(absent)} (it has {listing(source.genes, 3)}). Add them, or put the file with the fewest genes first."
        )
    extra = len(source.genes) - len(columns)
    if extra > 0:
        wanted = set(first.genes)
        names = [gene for gene in source.genes if gene not in wanted]
        _say(f"{extra} genes of {source.where} are not in {first.where} and are left out: {listing(names)}.")
    return PickedSource(source, columns=columns, genes=first.genes)


def _stacked(frames: Sequence[pd.DataFrame], wheres: Sequence[str]) -> pd.DataFrame:
    """Covariates one below the other; categories in the order of the files, a category that one file has is one of all."""
    names = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    for name in names:
        lacking = [where for frame, where in zip(frames, wheres, strict=True) if name not in frame.columns]
        if lacking:
            _say(f"obs has no column {name!r} in {listing(lacking)}, where its values are missing.")
    index = np.concatenate([np.asarray(frame.index, dtype=object) for frame in frames])
    return pd.DataFrame({name: _column([f.get(name) for f in frames], [len(f) for f in frames]) for name in names}, index=pd.Index(index))


def _column(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """[n] one column of all frames; None where a frame lacks it."""
    found = [part for part in parts if part is not None]
    if any(_categorical(part) for part in found):
        known = [p.cat.categories if _categorical(p) else pd.Index(pd.unique(p.dropna())) for p in found]
        values = list(dict.fromkeys(value for one in known for value in one))
        ordered = all(_categorical(p) and p.cat.ordered and list(p.cat.categories) == values for p in found)
        alike = len({one.dtype for one in known}) == 1
        union = pd.CategoricalDtype(pd.Index(values, dtype=known[0].dtype if alike else object), ordered)
        codes = [np.full(k, -1) if p is None else pd.Categorical(p, dtype=union).codes for p, k in zip(parts, sizes, strict=True)]
        return pd.Categorical.from_codes(np.concatenate(codes).astype(np.int64), dtype=union)
    if len(found) < len(parts) and all(pd.api.types.is_bool_dtype(p.dtype) for p in found):
        found = [p.astype("boolean") for p in found]  # numpy's has no missing value
    numbers = all(pd.api.types.is_numeric_dtype(p.dtype) and p.dtype.kind in "iuf" for p in found)
    rest = iter(found)
    blank = np.float64 if numbers else found[0].dtype if isinstance(found[0].dtype, pd.api.extensions.ExtensionDtype) else object
    filled = [
        pd.Series([np.nan if numbers else None] * k, dtype=blank) if p is None else next(rest) for p, k in zip(parts, sizes, strict=True)
    ]
    return pd.concat(filled, ignore_index=True).array


def _categorical(part: Any) -> bool:
    return isinstance(part.dtype, pd.CategoricalDtype)


def _say(notice: str) -> None:
    warnings.warn(notice, TrifoldWarning, stacklevel=5)
