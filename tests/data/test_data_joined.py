"""Several files as one: genes by name, covariates one below the other, rows in any order."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from data_cases import study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trifold.data import Cells, Schema, Shuffled, open, reading
from trifold.data.joined import JoinedSource
from trifold.errors import DataError, SchemaError, TrifoldWarning


def pieces():
    """The same 60 cells as three pieces: as they are, with genes in another order, and dense in float64."""
    a = study(60)
    parts = [a[:25].copy(), a[25:40, ::-1].copy(), a[40:].copy()]
    parts[2].X = parts[2].X.toarray().astype(np.float64)
    return a, parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("joined")
    for k, part in enumerate(pieces()[1]):
        part.write_h5ad(where / f"{k}.h5ad")
    (where / ".hidden.h5ad").write_bytes(b"not an h5ad file")
    (where / "notes.txt").write_text("not cells")
    return where


def dense(rows):
    return rows.toarray() if sp.issparse(rows) else rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.lists(st.integers(0, 59), max_size=40), which=st.sampled_from(["memory", "files", "mixed", "dense"]))
def test_rows_of_several_equal_those_of_one_in_the_order_asked_for(folder, index, which):
    a, parts = pieces()
    given = {
        "memory": parts,
        "files": [folder / f"{k}.h5ad" for k in range(3)],
        "mixed": [parts[0], str(folder / "1.h5ad"), open(parts[2])],
        "dense": [anndata.AnnData(p.X.toarray() if sp.issparse(p.X) else p.X, p.obs, p.var) for p in parts],
    }[which]
    source = open(given)
    assert isinstance(source, JoinedSource)
    assert source.genes == tuple(a.var_names)
    assert list(source.names) == list(a.obs_names)
    assert source.rows(index).dtype == np.float32
    assert (dense(source.rows(index)) == a.X.toarray()[np.asarray(index, dtype=int)]).all()
    assert (source.block is None) == (which in ("memory", "dense"))
    assert source.sparse == (which != "dense")
    if which == "memory":
        assert source.stored(slice(10, 50)) == source.stored(np.arange(10, 50)) == a.X[10:40].nnz + 10 * 12
    blocks = [dense(block) for _, block in source.chunks(17)]
    assert (np.concatenate(blocks) == a.X.toarray()).all()


@pytest.mark.parametrize("way", ["list", "folder", "pattern"])
def test_a_model_reads_a_collection_as_it_reads_one_file(folder, way):
    a, _ = pieces()
    data = {"list": sorted(folder.glob("[0-9].h5ad")), "folder": folder, "pattern": str(folder / "?.h5ad")}[way]
    schema, joined = (Schema.of(d, condition="drug", invariant="cell_type", spurious=["donor", "dose"]) for d in (a, data))
    assert joined == schema
    one, many = Cells(a, schema), Cells(data, schema)
    epoch = Shuffled(np.arange(60), 7, block=4).epoch(0)
    for index, batch in zip(epoch, reading.batches(many, epoch), strict=True):
        want = one.batch(index)
        assert all(x.equal(y) for x, y in zip((*batch.rows.csr(), batch.size), (*want.rows.csr(), want.size), strict=True))
        assert all(batch.design[r].equal(want.design[r]) and batch.code[r].equal(want.code[r]) for r in schema.roles)
    pd.testing.assert_frame_equal(many.obs.astype(str), a.obs.astype(str))
    assert list(many.obs["drug"].cat.categories) == ["none", "A", "B"]


def test_categories_that_only_some_files_have_become_one_set():
    a, b = study(6), study(6)
    a.obs["k"] = pd.Categorical(["x", "y"] * 3, categories=["y", "x", "unused"])
    b.obs["k"] = pd.Categorical(["z", "x", None] * 2)
    a.obs["t"], b.obs["t"] = pd.Categorical(["u"] * 6), ["v"] * 6
    a.obs["o"] = b.obs["o"] = pd.Categorical(["low", "high"] * 3, categories=["low", "high"], ordered=True)
    b.obs_names = [f"other{k}" for k in range(6)]
    obs = open([a, b]).obs
    assert list(obs["k"].cat.categories) == ["y", "x", "unused", "z"]
    assert list(obs["k"])[:4] == ["x", "y", "x", "y"]
    assert list(obs["k"].iloc[6:8]) == ["z", "x"]
    assert obs["k"].isna().sum() == 2
    assert list(obs["t"]) == ["u"] * 6 + ["v"] * 6
    assert obs["o"].cat.ordered
    assert not obs["k"].cat.ordered


def test_a_column_that_only_some_files_have_is_missing_in_the_others_with_a_notice():
    a, b = study(6), study(6)
    b.obs_names = [f"other{k}" for k in range(6)]
    a.obs["age"], a.obs["seen"], a.obs["note"], a.obs["kind"] = 1, True, "text", pd.Categorical(["k"] * 6)
    with pytest.warns(TrifoldWarning) as said:
        obs = open([a, b]).obs
    assert sorted(str(w.message).split("'")[1] for w in said) == ["age", "kind", "note", "seen"]
    assert "obs has no column 'age' in X" in str(said[0].message)
    for name in ("age", "seen", "note", "kind"):
        assert obs[name].isna().tolist() == [False] * 6 + [True] * 6
    assert obs["age"].dtype == np.float64
    assert obs["seen"].iloc[:6].all()
    with pytest.warns(TrifoldWarning), pytest.raises(SchemaError, match="'kind'"):
        Schema.of([a, b], condition="kind")


def test_missing_genes_are_refused_by_file_and_extra_ones_left_out_with_a_notice(tmp_path):
    a, b = study(6), study(6)
    b.obs_names = [f"other{k}" for k in range(6)]
    b[:, 2:].copy().write_h5ad(tmp_path / "few.h5ad")
    with pytest.raises(DataError, match=r"X of few\.h5ad lacks 2 of 12: g0, g1 "):
        open([a, tmp_path / "few.h5ad"])
    with pytest.warns(TrifoldWarning, match="2 genes of X are not in X of few.h5ad and are left out: g0, g1"):
        source = open([tmp_path / "few.h5ad", b])
    assert (source.rows([7, 0]).toarray() == a.X.toarray()[[1, 0], 2:]).all()


def test_names_of_cells_that_repeat_over_files_are_warned_of_as_in_one():
    with pytest.warns(TrifoldWarning, match="12 names of cells occur more than once: c0, c1"):
        Cells([study(12), study(12)], Schema.of(study(12)))


def test_collections_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"No file matches '.*\*\.h5ad'"):
        open(tmp_path / "*.h5ad")
    with pytest.raises(DataError, match="zarr"):
        open(tmp_path)
    with pytest.raises(DataError, match="found list"):
        open([1, 2])
    with pytest.raises(SchemaError, match="has its own obs"):
        open([study(6)], obs=study(6).obs)
    with pytest.raises(SchemaError, match="no layer, raw or obsm named 'counts'"):
        open([study(6), study(6)], "counts")
    one = open([study(6)])
    assert not isinstance(one, JoinedSource)
    assert one.n == 6
