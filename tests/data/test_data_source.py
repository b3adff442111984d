"""Sources: rows in the order asked for, from memory and from disk; files that must not be read."""

from __future__ import annotations

import itertools
import os
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from data_cases import sparse_counts, study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trifold.data import Shuffled, open, stored
from trifold.data.matrix import is_canonical, pick_columns, to_csr
from trifold.data.source import PickedSource
from trifold.data.stored import H5adSource
from trifold.errors import DataError, SchemaError

N, G = 300, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("stored")
    a = study(N, G)
    a.write_h5ad(where / "csr.h5ad", compression="gzip")
    a.X = a.X.toarray()
    a.write_h5ad(where / "dense.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata on the version of the zarr format
        a.write_zarr(where / "dense.zarr")
    return where


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.lists(st.integers(0, N - 1), max_size=50), name=st.sampled_from(["csr.h5ad", "dense.h5ad", "dense.zarr"]))
def test_any_rows_from_disk_equal_those_of_memory(folder, index, name):
    rows = open(folder / name).rows(index)
    rows = rows.toarray() if sp.issparse(rows) else rows
    assert rows.dtype == np.float32
    assert rows.shape == (len(index), G)
    assert (rows == sparse_counts(N, G).toarray()[np.asarray(index, dtype=int)]).all()


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 50))
def test_chunks_together_are_the_whole_matrix_in_order(size):
    x = sparse_counts()
    for data in (x, x.toarray()):
        blocks = list(open(data).chunks(size))
        assert [s for s, _ in blocks] == list(range(0, 40, size))
        assert (np.concatenate([b.toarray() if sp.issparse(b) else b for _, b in blocks]) == x.toarray()).all()


def test_rows_outside_the_data_are_refused():
    source = open(sparse_counts())
    for index in ([40], [-1], [0.5], [[1, 2]], np.ones(40, dtype=bool)):
        with pytest.raises(DataError, match="Rows"):
            source.rows(index)
    assert source.rows([]).shape == (0, 12)


def test_a_source_passes_through_and_refuses_another_x():
    source = open(study())
    assert open(source) is source
    with pytest.raises(SchemaError, match="x='counts'"):
        open(source, "counts")


def test_things_that_hold_no_cells_are_refused():
    with pytest.raises(DataError, match=r"no file or folder 'nowhere.h5ad'"):
        open("nowhere.h5ad")
    with pytest.raises(DataError, match="found dict"):
        open({"a": 1})
    with pytest.raises(DataError, match="two axes"):
        open(np.zeros(3))
    with pytest.raises(SchemaError, match="leave x out"):
        open(np.zeros((3, 2)), "counts")
    with pytest.raises(DataError, match="40 rows but obs has 3"):
        open(sparse_counts(), obs=pd.DataFrame(index=range(3)))
    with pytest.raises(SchemaError, match="has its own obs"):
        open(study(), obs=pd.DataFrame(index=range(40)))


def test_an_x_that_names_two_matrices_is_refused():
    a = study()
    a.layers["raw"] = a.X.copy()
    a.raw = a.copy()
    with pytest.raises(SchemaError, match=r"both layers\['raw'\] and raw"):
        open(a, "raw")


def test_a_truncated_or_foreign_file_is_refused(tmp_path, folder):
    whole = (folder / "csr.h5ad").read_bytes()
    for k, part in enumerate((whole[:100], whole[: len(whole) // 2], b"hello", b"")):
        path = tmp_path / f"{k}.h5ad"
        path.write_bytes(part)
        with pytest.raises(DataError, match="cannot be opened"):
            open(path)
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["a"] = 1
    with pytest.raises(DataError, match="not an AnnData file"):
        open(tmp_path / "other.h5")
    os.mkdir(tmp_path / "empty.zarr")
    with pytest.raises(DataError, match="zarr"):
        open(tmp_path / "empty.zarr")


def test_a_file_whose_values_lie_in_another_file_is_refused(tmp_path):
    a = study()
    a.X = a.X.toarray()
    for k, make in enumerate((external_link, external_storage, virtual)):
        path = tmp_path / f"{k}.h5ad"
        a.write_h5ad(path)
        with h5py.File(path, "r+") as f:
            make(f, tmp_path)
        with pytest.raises(DataError, match=r"/(layers|uns)/secret .*another file"):
            open(path)


def external_link(f, folder):
    f["uns"]["secret"] = h5py.ExternalLink("/etc/hostname", "/x")


def external_storage(f, folder):
    (folder / "bytes").write_bytes(b"\0" * 4 * 480)
    f["layers"].create_dataset("secret", (40, 12), "f4", external=[(str(folder / "bytes"), 0, 4 * 480)])


def virtual(f, folder):
    layout = h5py.VirtualLayout((40, 12), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (40, 12))
    f["layers"].create_virtual_dataset("secret", layout)


def test_a_matrix_that_claims_more_than_it_holds_is_refused(tmp_path):
    a = study()
    a.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        del f["X"]
        f.create_dataset("X", (40, 2**30), "f4", chunks=(40, 1024)).attrs["encoding-type"] = "array"
    with pytest.raises(DataError, match=r"gene names|GiB"):
        open(tmp_path / "a.h5ad")


def test_a_damaged_matrix_on_disk_is_refused_when_it_is_read(tmp_path):
    study().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        f["X/indices"][7] = 10**6
    source = open(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match=r"indices of X of a\.h5ad .* found 1000000 in row"):
        source.rows(np.arange(40))
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        f["X/indptr"][5] = 10**6
    with pytest.raises(DataError, match="indptr of X"):
        open(tmp_path / "a.h5ad")


def test_no_file_stays_open(folder):
    source = open(folder / "csr.h5ad")
    assert isinstance(source, H5adSource)
    source.rows([1, 2])
    os.rename(folder / "csr.h5ad", folder / "moved.h5ad")
    with h5py.File(folder / "moved.h5ad", "r+") as f:
        f.attrs["written"] = 1
    os.rename(folder / "moved.h5ad", folder / "csr.h5ad")


def test_shuffling_in_blocks_reads_a_file_in_few_pieces(folder, monkeypatch):
    source = open(folder / "csr.h5ad")
    pieces = []
    read = stored.read_pieces
    monkeypatch.setattr(stored, "read_pieces", lambda v, a, b, **k: pieces.append(len(a)) or read(v, a, b, **k))
    for batch in Shuffled(np.arange(N), 32, block=16).epoch(0):
        source.rows(batch)
    assert sum(pieces) < 2 * N
    assert source.block == 64
    assert open(study()).block is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_picked_columns_equal_numpy_indexing_for_sparse_and_dense(data):
    seed = data.draw(st.integers(0, 1000))
    columns = np.array(data.draw(st.lists(st.integers(0, 11), unique=True, min_size=1)))
    holes = data.draw(st.integers(0, 3))
    columns = np.random.default_rng(seed).permutation(np.concatenate([columns, np.full(holes, -1)]))
    x = sparse_counts(20, 12, seed)
    want = np.where(columns >= 0, x.toarray()[:, columns], 0)
    names = [f"n{k}" for k in range(len(columns))]
    for form in (x, x.toarray()):
        got = PickedSource(open(form), columns=columns, genes=names).rows(np.arange(20))
        assert (np.asarray(got.toarray() if sp.issparse(got) else got) == want).all()
        if sp.issparse(got):
            assert is_canonical(got.indptr, got.indices)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_canonical_means_strictly_increasing_indices_in_each_row(data):
    rows = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=6))
    indptr = np.cumsum([0] + [len(r) for r in rows])
    indices = np.array([v for r in rows for v in r], dtype=np.int32)
    assert is_canonical(indptr, indices) == all(a < b for r in rows for a, b in itertools.pairwise(r))
    m = sp.csr_matrix((np.ones(len(indices), dtype=np.uint8), indices, indptr), shape=(len(rows), 6))
    p, i, v, shape = to_csr(m, "X")
    assert is_canonical(p, i)
    want = np.zeros((len(rows), 6))
    for k, r in enumerate(rows):
        np.add.at(want[k], r, 1)
    assert (sp.csr_matrix((v, i, p), shape=shape).toarray() == want).all()


def test_pick_columns_keeps_the_dtype():
    block = sp.csr_matrix(np.eye(3, dtype=np.int16))
    assert pick_columns(block, np.array([2, 0]), np.array([1, -1, 0])).dtype == np.int16


def test_a_file_and_the_anndata_it_came_from_have_the_same_names(folder):
    a, source = anndata.read_h5ad(folder / "csr.h5ad"), open(folder / "csr.h5ad")
    assert source.genes == tuple(a.var_names)
    assert list(source.names) == list(a.obs_names)
    pd.testing.assert_frame_equal(source.obs, a.obs)
