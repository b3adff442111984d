"""Splits and samplers: proportions, balance, and orders that follow from seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifold.data import Balanced, Shuffled, by_fraction, held_out
from trifold.data.splits import matching
from trifold.errors import DataError, SchemaError, ShapeError


@settings(max_examples=80, deadline=None)
@given(codes=st.lists(st.integers(-1, 4), min_size=2, max_size=200), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 5))
def test_a_split_is_a_partition_with_the_share_of_every_stratum(codes, fraction, seed):
    codes = np.array(codes)
    train, validation = by_fraction(codes, fraction, seed=seed)
    assert sorted([*train, *validation]) == list(range(len(codes)))
    assert len(train)
    assert len(validation)
    for c in np.unique(codes):
        size, taken = (codes == c).sum(), (codes[validation] == c).sum()
        assert abs(taken - fraction * size) <= 1 + 1e-9
        assert taken < size or len(np.unique(codes)) > 1


def test_a_split_depends_on_the_seed_only():
    a, b, c = by_fraction(100, 0.2, seed=1), by_fraction(100, 0.2, seed=1), by_fraction(100, 0.2, seed=2)
    assert (a[1] == b[1]).all()
    assert len(a[1]) == 20
    assert (a[1] != c[1]).any()
    state = np.random.get_state()[1].copy()
    by_fraction(100, 0.2)
    assert (np.random.get_state()[1] == state).all()


def test_no_validation_and_bad_shares():
    train, validation = by_fraction(10, 0)
    assert (len(train), len(validation)) == (10, 0)
    for fraction in (1.0, -0.1, 7, float("nan")):
        with pytest.raises(DataError, match="share"):
            by_fraction(10, fraction)
    with pytest.raises(DataError, match="one code for each"):
        by_fraction(10, 0.1, stratify=np.zeros(3))


def test_held_out_cells_match_all_entries():
    obs = pd.DataFrame({"a": ["x", "x", "y", "y"], "b": [1, 2, 1, 2], "c": [True, False, True, False]})
    assert held_out(obs, {"a": "x", "b": 2}).tolist() == [False, True, False, False]
    assert held_out(obs, {"a": ["x", "y"], "b": [1]}).tolist() == [True, False, True, False]
    assert held_out(obs, {"c": True}).tolist() == [True, False, True, False]
    with pytest.raises(SchemaError, match="no cell with 1"):
        held_out(obs, {"c": 1})
    with pytest.raises(SchemaError, match="at least one column"):
        held_out(obs, {})
    assert matching(obs, {"a": ["x", "y"]}).all()


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), batch=st.integers(1, 40), block=st.one_of(st.none(), st.integers(1, 30)), k=st.integers(0, 3))
def test_an_epoch_of_shuffled_has_every_cell_once(n, batch, block, k):
    index = np.arange(n) * 3
    sampler = Shuffled(index, batch, seed=1, block=block)
    epoch = sampler.epoch(k)
    assert sorted(np.concatenate(epoch)) == index.tolist()
    assert len(epoch) == sampler.steps == (-(-n // batch) - (n > batch > 1 and n % batch == 1))
    assert all(len(b) == batch for b in epoch[:-1])
    assert all((a == b).all() for a, b in zip(epoch, Shuffled(index, batch, seed=1, block=block).epoch(k), strict=True))


def test_epochs_and_seeds_differ():
    orders = [np.concatenate(Shuffled(np.arange(50), 10, seed=s).epoch(k)).tolist() for s in (0, 1) for k in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4


def test_blocks_keep_neighbours_within_a_window():
    n, block = 10_000, 10
    order = np.concatenate(Shuffled(np.arange(n), 100, block=block).epoch(0))
    for start in range(0, n, 16 * block):
        assert len(np.unique(order[start : start + 16 * block] // block)) == 16 if start + 160 <= n else True
    assert np.abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.2


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    batch=st.integers(1, 40),
    seed=st.integers(0, 3),
    block=st.sampled_from([None, 1, 4]),
)
def test_balanced_minibatches_hold_equal_shares_of_every_condition(sizes, batch, seed, block):
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    index = np.arange(len(codes)) + 5
    sampler = Balanced(index, codes, batch, seed=seed, block=block)
    epoch = sampler.epoch(2)
    assert sum(map(len, epoch)) == len(codes)
    assert len(epoch) == sampler.steps
    for b in epoch:
        shares = np.bincount(codes[b - 5], minlength=len(sizes))
        assert shares.max() - shares.min() <= 1
    drawn = np.bincount(np.concatenate(epoch) - 5, minlength=len(codes))
    for c in range(len(sizes)):
        assert drawn[codes == c].max() - drawn[codes == c].min() <= 1


def test_samplers_refuse_what_they_cannot_sample():
    with pytest.raises(DataError, match="at least one cell"):
        Shuffled(np.arange(0), 10)
    with pytest.raises(DataError, match="batch must be at least 1"):
        Shuffled(np.arange(5), 0)
    with pytest.raises(DataError, match="block must be at least 1"):
        Shuffled(np.arange(5), 2, block=0)
    with pytest.raises(ShapeError, match="codes"):
        Balanced(np.arange(5), np.arange(4), 2)
