"""Findings against numpy, and the hints on what a matrix looks like."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from data_cases import sparse_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from trifold.data import check, open
from trifold.data.check import look
from trifold.data.source import Source
from trifold.errors import DataError, SchemaError


class InChunks(Source):
    """A source that gives few rows at a time."""

    def __init__(self, source: Source, size: int):
        self.__dict__.update(source.__dict__)
        self._source, self._size = source, size

    def take(self, index):
        return self._source.take(index)

    def chunks(self, size=None):
        return super().chunks(self._size)


values = st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 0.5, -1.0, -0.5, np.nan, np.inf, -np.inf, 1e7])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), sparse=st.booleans(), size=st.integers(1, 6), dtype=st.sampled_from([np.float32, np.float64]))
def test_findings_equal_a_look_at_the_whole_matrix(data, sparse, size, dtype):
    n, g = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    x = np.array(data.draw(st.lists(values, min_size=n * g, max_size=n * g)), dtype=dtype).reshape(n, g)
    found = check(InChunks(open(sp.csr_matrix(x) if sparse else x), size))
    finite = np.isfinite(x)
    for tally, mask in [
        (found.nan, np.isnan(x)),
        (found.inf, np.isinf(x)),
        (found.negative, (x < 0) & finite),
        (found.fractional, finite & (np.rint(np.where(finite, x, 0)) != np.where(finite, x, 0))),
    ]:
        assert tally.values == mask.sum()
        assert tally.cells == mask.any(1).sum()
        if mask.any():
            row, col = (int(k) for k in np.argwhere(mask)[0])
            assert tally.first[:2] == (row, f"gene_{col}")
    assert found.nonzeros == (x != 0).sum()
    assert (found.filled == (x != 0).sum(0)).all()
    assert found.empty_cells.tolist() == np.flatnonzero((x == 0).all(1)).tolist()
    assert found.empty_genes.tolist() == np.flatnonzero((x == 0).all(0)).tolist()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.library, x.astype(np.float64).sum(1))
    assert found.ones == bool(np.isin(x, [0, 1]).all())


def test_kind_follows_from_the_values():
    x = sparse_counts()
    assert check(open(x)).kind() == "counts"
    assert check(open(x.astype(bool))).kind() == "binary"
    assert check(open(x.multiply(0.3).tocsr())).kind() == "real"
    assert check(open(x.multiply(0.3).tocsr())).kind(fractional="allow") == "counts"
    few = x.copy()
    few.data[5] = 0.5
    with pytest.raises(DataError, match="or pass kind='real' to model the values as they are"):
        check(open(few)).kind()
    with pytest.raises(DataError, match="0 and 1"):
        check(open(x), kind="binary")
    with pytest.raises(SchemaError, match=r"kind must be one of 'counts', 'real', 'binary'; found 'count'. Did you mean 'counts'"):
        check(open(x), kind="count")


def test_real_values_may_have_empty_cells():
    x = np.random.default_rng(0).normal(size=(5, 4))
    x[2] = 0
    check(open(x), kind="real")


def test_hints_tell_what_was_done_to_counts():
    x = sparse_counts(60, 30).toarray().astype(float)
    assert look(x) == ""
    assert "looks normalised to 1,000,000 per cell" in look(x / x.sum(1, keepdims=True) * 1e6)
    assert "log1p of counts normalised to 10,000" in look(np.log1p(x / x.sum(1, keepdims=True) * 1e4))
    assert "scaled" in look((x - x.mean(0)) / x.std(0))
    assert look(x - 2 * (np.arange(30) == 4)) == ""


def test_density_and_size_do_not_depend_on_stored_zeros():
    x = sparse_counts()
    padded = x.copy()
    padded.data[:4] = 0
    assert check(open(padded)).nonzeros == x.nnz - 4
    assert check(open(padded)).density == (x.nnz - 4) / (40 * 12)
