"""Cells that lie on the device as a whole give the minibatches of ``Cells.batch``, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from data_cases import sparse_counts, study

from trifold.data import Cells, Schema, Shuffled, resident
from trifold.data.resident import Resident, expected_bytes, fits, free_bytes
from trifold.data.source import MemorySource
from trifold.errors import DataError, DeviceError, TrifoldWarning

ROLES = {"condition": ["drug", "dose"], "spurious": "donor", "label": "cell_type"}


def same(a, b):
    assert a.rows.shape == b.rows.shape
    assert a.rows.sparse == b.rows.sparse
    assert list(a.design) == list(b.design)
    assert list(a.code) == list(b.code)
    pairs = zip(a.rows.csr(), b.rows.csr(), strict=True) if a.rows.sparse else [(a.rows.dense, b.rows.dense)]
    for u, v in [*pairs, (a.size, b.size), *((a.design[r], b.design[r]) for r in a.design), *((a.code[r], b.code[r]) for r in a.code)]:
        assert u.dtype == v.dtype
        assert u.shape == v.shape
        assert u.equal(v)
        assert u.is_contiguous()


def cells_of(matrix, **more) -> Cells:
    adata = study()
    adata.X = matrix
    return Cells(adata, Schema.of(adata, **ROLES, **more))


def changed(value: float, dtype: type = np.float32) -> sp.csr_matrix:
    x = sparse_counts().astype(dtype)
    x.data[-3] = value
    return x


MATRICES = {
    "counts of a byte": (changed(255), {}),
    "one count of two bytes": (changed(256), {}),
    "the largest count of two bytes": (changed(65_535), {}),
    "a large count": (changed(65_536), {}),
    "counts in float64": (changed(1e6 + 1, np.float64), {}),
    "fractional counts": (changed(0.3), {"fractional": "allow"}),
    "zeros that are stored": (changed(0), {"empty": "keep"}),
    "dense counts": (sparse_counts().toarray(), {}),
    "mostly filled counts": (sparse_counts(density=0.9), {}),
    "binary": (changed(1).astype(bool), {}),
    "real": (np.random.default_rng(0).normal(size=(40, 12)), {"kind": "real"}),
}


@pytest.mark.parametrize("name", MATRICES)
def test_minibatches_are_those_of_the_cells_bit_for_bit(name):
    matrix, more = MATRICES[name]
    cells = cells_of(matrix, **more)
    held = Resident(cells, "cpu")
    for index in (np.arange(40), np.random.default_rng(0).permutation(40)[:17], [5, 5, 0], np.array([39]), np.array([], dtype=int)):
        same(held.batch(index), cells.batch(index))
    same(held.batch(torch.tensor([3, 1])), cells.batch([3, 1]))


def test_an_epoch_gives_the_minibatches_of_its_indices_in_turn():
    cells = cells_of(sparse_counts())
    held, order = Resident(cells, "cpu"), Shuffled(np.arange(3, 40), 8, seed=1).epoch(2)
    found = list(held.epoch(order))
    assert len(found) == len(order)
    for batch, index in zip(found, order, strict=True):
        same(batch, cells.batch(index))
    assert list(held.epoch([])) == []


@pytest.mark.parametrize("matrix", ["counts of a byte", "real"])
def test_the_sizes_of_minibatches_are_known_without_asking_the_device(matrix):
    values, more = MATRICES[matrix]
    cells = cells_of(values, **more)
    held = Resident(cells, "meta")  # has shapes but no values, and refuses to give any
    for batch, index in zip(held.epoch([[3, 1, 2], np.arange(20)]), ([3, 1, 2], np.arange(20)), strict=True):
        there = cells.batch(index)
        assert batch.rows.shape == there.rows.shape
        if there.rows.sparse:
            assert [t.shape for t in batch.rows.csr()] == [t.shape for t in there.rows.csr()]
        assert {r: t.shape for r, t in batch.design.items()} == {r: t.shape for r, t in there.design.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_a_gpu_within_an_epoch():
    cells = cells_of(sparse_counts())
    held = Resident(cells, "cuda")
    found = held.epoch([[3, 1], [2, 7, 9]])
    first = next(found)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = next(found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    same(first.to("cpu"), cells.batch([3, 1]))
    same(second.to("cpu"), cells.batch([2, 7, 9]))


def test_subsets_dropped_cells_and_other_genes_are_held_as_the_cells_give_them():
    adata = study()
    x = adata.X.toarray()
    x[[2, 30]] = 0
    adata.X = sp.csr_matrix(x)
    with pytest.warns(TrifoldWarning):
        cells = Cells(adata, Schema.of(adata, **ROLES, empty="drop"))
    same(Resident(cells, "cpu").batch(np.arange(38)), cells.batch(np.arange(38)))
    some = cells.subset(np.array([30, 4, 4, 17, 0]))
    same(Resident(some, "cpu").batch([4, 0, 2, 1]), some.batch([4, 0, 2, 1]))
    with pytest.warns(TrifoldWarning):
        other = Cells(study()[:, ::-1][:, :9].copy(), Schema.of(study(), **ROLES), missing="zero")
    same(Resident(other, "cpu").batch([7, 1]), other.batch([7, 1]))


def test_unknown_categories_and_absent_columns_are_zeros_as_in_the_cells():
    adata, schema = study(), Schema.of(study(), **ROLES)
    adata.obs["donor"] = np.where(np.arange(40) % 4 == 0, "d9", "d1")
    adata.obs = adata.obs.drop(columns=["cell_type", "dose"])
    with pytest.warns(TrifoldWarning):
        cells = Cells(adata, schema, unknown="zero")
    batch = Resident(cells, "cpu").batch(np.arange(40))
    same(batch, cells.batch(np.arange(40)))
    assert (batch.code["spurious"] == -1).any()
    none = Cells(study(), Schema.of(study()))
    same(Resident(none, "cpu").batch([1]), none.batch([1]))


@pytest.mark.parametrize("matrix", ["one count of two bytes", "dense counts"])
def test_cells_on_disk_are_read_once_in_windows_in_the_order_of_the_file(matrix, tmp_path, monkeypatch):
    adata = study()
    adata.X = MATRICES[matrix][0]
    adata.write_h5ad(tmp_path / "a.h5ad")
    cells = Cells(tmp_path / "a.h5ad", Schema.of(adata, **ROLES)).subset(np.random.default_rng(0).permutation(40))
    asked, take = [], cells._source.take
    monkeypatch.setattr(type(cells), "window", property(lambda _: 16))
    monkeypatch.setattr(cells._source, "take", lambda index: (asked.append(index), take(index))[1])
    held = Resident(cells, "cpu")
    assert [len(index) for index in asked] == [16, 16, 8]
    assert np.concatenate(asked).tolist() == list(range(40))
    monkeypatch.undo()
    same(held.batch([30, 2, 8]), cells.batch([30, 2, 8]))


def test_values_and_genes_take_the_fewest_bytes_that_hold_them():
    def of(matrix, **more):
        adata = study()
        adata.X = matrix
        return Resident(Cells(adata, Schema.of(adata, condition="drug", **more)), "cpu")

    x = sparse_counts()
    few, more, large = (of(m) for m in (changed(255), changed(256), changed(65_536)))
    room = len(few._value.held)
    covariates = 40 * (4 + 4 + 8)  # size, code, and the place and value of one column
    assert (few.nbytes, more.nbytes, large.nbytes) == tuple(covariates + room * (1 + b) for b in (1, 2, 4))
    assert x.nnz <= room <= 1.05 * x.nnz + 1
    wide = MemorySource(sp.csr_matrix(np.eye(3, 300, 297, dtype=np.float32)))
    with pytest.warns(TrifoldWarning):
        cells = Cells(wide, Schema.of(wide))
    assert Resident(cells, "cpu").nbytes == 3 * 4 + 4 * (1 + 2)
    same(Resident(cells, "cpu").batch([2, 0]), cells.batch([2, 0]))


def test_genes_beyond_65_536_are_held():
    wide = MemorySource(sp.csr_matrix(np.eye(3, 70_000, 69_997, dtype=np.float32)))
    with pytest.warns(TrifoldWarning):
        cells = Cells(wide, Schema.of(wide))
    assert Resident(cells, "cpu").batch([1]).rows.csr()[1].tolist() == [69_998]


def test_data_that_are_fuller_than_those_of_training_make_the_arrays_grow():
    adata = study(density=0.9)
    cells = Cells(adata, Schema.of(study(density=0.05), **ROLES))
    same(Resident(cells, "cpu").batch(np.arange(40)), cells.batch(np.arange(40)))


def test_whether_cells_fit_is_told_without_reading_them(monkeypatch):
    cells = cells_of(sparse_counts())
    monkeypatch.setattr(cells._source, "take", None)
    needed = expected_bytes(cells)
    for free, expected in ((2 * needed, True), (2 * needed - 2, False)):
        monkeypatch.setattr(resident, "free_bytes", lambda device, free=free: free)
        assert fits(cells, "cpu", share=0.5) == expected
    monkeypatch.undo()
    assert Resident(cells, "cpu").nbytes <= needed
    for share in (0, 1.5):
        with pytest.raises(DataError, match="share must lie above 0"):
            fits(cells, "cpu", share=share)


@pytest.mark.parametrize("name", MATRICES)
def test_the_expected_size_is_that_of_the_arrays_or_a_byte_or_two_per_value_off(name):
    matrix, more = MATRICES[name]
    cells = cells_of(matrix, **more)
    held = Resident(cells, "cpu")
    assert abs(expected_bytes(cells) - held.nbytes) <= 3 * len(held._value.held)


def test_the_free_memory_of_this_machine_is_more_than_none():
    assert free_bytes(torch.device("cpu")) > 1 << 20


def test_positions_outside_the_cells_are_refused_before_the_first_minibatch():
    held = Resident(cells_of(sparse_counts()), "cpu")
    with pytest.raises(DataError, match="Rows must lie in 0 to 39; found 40"):
        held.batch([40])
    with pytest.raises(DataError, match="found -1"):
        next(held.epoch([[0], [-1]]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(DeviceError, match=r"device='cuda' was asked for and is not there: .* Pass device='cpu'"):
        Resident(cells_of(sparse_counts()), "cuda")
