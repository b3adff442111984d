"""The converted store: the same cells in another order, and nothing where something went wrong."""

from __future__ import annotations

import os
import tracemalloc
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import typer
import zarr
from data_cases import study
from typer.testing import CliRunner

from trifold.cli.commands.converting import convert as command
from trifold.cli.show import readable
from trifold.data import Cells, Schema, Shuffled, open, reading
from trifold.data import convert as converting
from trifold.data.convert import convert
from trifold.errors import CheckpointError, SchemaError, SpecError, TrifoldError, TrifoldWarning

N, G = 400, 12


def read_zarr(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr on consolidated metadata
        return anndata.io.read_zarr(path)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(converting, "_BUCKET", 300)  # several files to shuffle, several shards


@pytest.mark.parametrize("form", ["memory", "h5ad", "dense", "uint8", "list"])
def test_rows_mapped_back_by_name_are_those_that_went_in(tmp_path, form):
    a = study(N, G)
    want = a.X.toarray()
    a.var["length"] = np.arange(G)
    if form == "dense":
        a.X = want
    if form == "uint8":
        a.X = a.X.astype(np.uint8)
    data = a
    if form in ("h5ad", "dense"):
        a.write_h5ad(tmp_path / "a.h5ad")
        data = tmp_path / "a.h5ad"
    if form == "list":
        data = [a[:150].copy(), a[150:].copy()]
    out = convert(data, tmp_path / "out.zarr", shard=64, chunk=16)
    b = read_zarr(out)
    assert b.X.dtype == np.uint8
    assert list(b.obs_names) != list(a.obs_names)
    assert sorted(b.obs_names) == sorted(a.obs_names)
    at = a.obs_names.get_indexer(b.obs_names)
    assert (b.X.toarray() == want[at]).all()
    pd.testing.assert_frame_equal(b.obs[a.obs.columns].astype(str), a.obs.iloc[at].astype(str))
    assert (b.var["length"] == np.arange(G)).all()
    first = b.obs["source"].cat.categories[0]
    rows = b.obs["source_row"].to_numpy() + np.where(b.obs["source"] == first, 0, 150)
    assert (rows == at).all()
    assert len(b.obs["source"].cat.categories) == (2 if form == "list" else 1)
    source = open(out)
    assert (source.rows(np.arange(N)[::-3]).toarray() == want[at][::-3]).all()
    assert source.block == 2048
    assert os.listdir(tmp_path) == sorted(p for p in os.listdir(tmp_path) if not p.startswith("."))


def test_training_reads_the_same_minibatches_from_the_store(tmp_path):
    a = study(N, G)
    schema = Schema.of(a, condition="drug", spurious=["donor", "dose"])
    cells = Cells(convert(a, tmp_path / "out.zarr", shard=64, chunk=16), schema)
    place = a.obs_names.get_indexer(cells.names)
    memory = Cells(a, schema)
    epoch = Shuffled(np.arange(N), 32, block=cells.block, window=cells.window).epoch(0)
    for index, batch in zip(epoch, reading.batches(cells, epoch), strict=True):
        want = memory.batch(place[index])
        assert all(x.equal(y) for x, y in zip((*batch.rows.csr(), batch.size), (*want.rows.csr(), want.size), strict=True))
        assert all(batch.design[r].equal(want.design[r]) for r in schema.roles)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([[0, 255.0]]), "uint8"),
        (np.array([[0, 256.0]], dtype=np.float32), "uint16"),
        (np.array([[1, 70_000]], dtype=np.int64), "uint32"),
        (np.array([[1, -1]], dtype=np.int32), "int32"),
        (np.array([[1, 0.5]], dtype=np.float32), "float32"),
        (np.array([[1, np.nan]]), "float64"),
        (np.array([[np.inf, 2.0]]), "float64"),
        (np.array([[True, False]]), "bool"),
        (np.zeros((1, 2), dtype=np.int8), "uint8"),
    ],
)
def test_counts_are_kept_in_the_smallest_integers_and_other_values_as_they_are(tmp_path, values, dtype):
    out = convert(values, tmp_path / "out.zarr", shuffle=False)
    source = open(out)
    assert source.dtype.name == dtype
    np.testing.assert_array_equal(source.take(np.array([0])).toarray(), values)


def test_the_order_is_that_of_the_seed_and_without_shuffling_that_of_the_files(tmp_path):
    a = study(N, G)
    names = [list(open(convert(a, tmp_path / f"{k}.zarr", seed=s)).names) for k, s in enumerate((0, 0, 1))]
    assert names[0] == names[1] != names[2]
    plain = open(convert(a, tmp_path / "plain.zarr", shuffle=False))
    assert list(plain.names) == list(a.obs_names)
    assert (plain.rows(np.arange(N)).toarray() == a.X.toarray()).all()
    assert plain.block <= 256


@pytest.mark.parametrize("x", ["counts", "raw"])
def test_a_layer_keeps_its_name(tmp_path, x):
    a = study(20, G)
    a.layers["counts"] = a.X * 2
    a.raw = a.copy()
    a = a[:, :5].copy()
    out = convert(a, tmp_path / "out.zarr", x=x)
    source = open(out, x)
    assert len(source.genes) == (5 if x == "counts" else G)
    full = study(20, G).X.toarray()
    want = full[:, :5] * 2 if x == "counts" else full
    assert (source.rows(np.arange(20)).toarray() == want[[int(n[1:]) for n in source.names]]).all()
    assert read_zarr(out).X is None
    a.write_h5ad(tmp_path / "a.h5ad")
    again = open(convert(tmp_path / "a.h5ad", tmp_path / "again.zarr", x=x), x)
    assert (again.rows([3]).toarray() == source.rows([3]).toarray()).all()


def test_a_store_can_be_converted_again_and_says_where_its_columns_went(tmp_path):
    one = convert(study(20, G), tmp_path / "one.zarr")
    with pytest.warns(TrifoldWarning) as said:
        two = convert(one, tmp_path / "two.zarr", seed=1)
    assert "obs has a column 'source' already; where cells come from is in 'source_'." in [str(w.message) for w in said]
    b = open(two).obs
    assert (open(one).names[b["source_row_"]] == b.index).all()
    assert list(b["source_"].cat.categories) == ["one.zarr"]


def test_text_and_truth_that_some_files_lack_survive(tmp_path):
    a, b = study(6, G), study(6, G)
    b.obs_names = [f"other{k}" for k in range(6)]
    a.obs["note"], a.obs["seen"], a.obs["age"] = "text", True, 3
    with pytest.warns(TrifoldWarning, match="obs has no column"):
        obs = open(convert([a, b], tmp_path / "out.zarr")).obs
    for name in ("note", "seen", "age"):
        assert (obs[name].isna() == obs.index.str.startswith("other")).all()


def test_chunks_and_shards_have_the_rows_asked_for(tmp_path):
    out = convert(study(N, G), tmp_path / "out.zarr", shard=128, chunk=32)
    data = zarr.open_group(out, mode="r")["X/data"]
    width = data.shape[0] / N
    assert data.chunks[0] == int(32 * width)
    assert data.shards[0] == 4 * data.chunks[0]
    assert len(list((out / "X" / "data" / "c").iterdir())) == -(-data.shape[0] // data.shards[0])


def test_what_is_there_is_replaced_only_when_asked_and_kept_when_writing_fails(tmp_path, monkeypatch):
    out = convert(study(20, G), tmp_path / "out.zarr")
    with pytest.raises(CheckpointError, match="exists"):
        convert(study(30, G), out)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(converting, "_write", full)
        with pytest.raises(CheckpointError, match=r"disk is full \(No space left on device\)\. [\d,]+ bytes are free"):
            convert(study(30, G), out, overwrite=True)
        patch.setattr(converting, "_write", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(study(30, G), tmp_path / "new.zarr")
    assert os.listdir(tmp_path) == ["out.zarr"]
    assert open(out).n == 20
    assert open(convert(study(30, G), out, overwrite=True)).n == 30
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_a_damaged_input_leaves_nothing(tmp_path):
    bad = sp.csr_matrix(np.eye(4, dtype=np.float32))
    a = anndata.AnnData(bad)
    a.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        f["X/indices"][2] = 99
    with pytest.raises(TrifoldError, match="indices of X"):
        convert(tmp_path / "a.h5ad", tmp_path / "out.zarr")
    assert os.listdir(tmp_path) == ["a.h5ad"]


def test_odd_arguments_are_refused(tmp_path):
    with pytest.raises(SpecError, match="chunk=8 and shard=4"):
        convert(study(), tmp_path / "a.zarr", chunk=8, shard=4)
    with pytest.raises(CheckpointError, match="is an address"):
        convert(study(), "memory://a.zarr")
    with pytest.raises(SchemaError, match="no layer"):
        convert(study(), tmp_path / "a.zarr", x="counts")
    assert not os.listdir(tmp_path)


def test_memory_does_not_grow_with_the_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "_BUCKET", 80_000)
    monkeypatch.setattr(converting, "_SHARD_VALUES", 80_000)
    monkeypatch.setattr("trifold.data.source._SPARSE", 40_000)
    convert(study(), tmp_path / "warm.zarr")
    peaks = []
    for n in (2_000, 8_000, 8_000):  # twice, for in one of them Python may enlarge its table of interned names by megabytes
        x = sp.random(n, 500, 0.4, format="csr", rng=np.random.default_rng(0), dtype=np.float32)
        anndata.AnnData(x).write_h5ad(tmp_path / "a.h5ad")
        tracemalloc.start()
        convert(tmp_path / "a.h5ad", tmp_path / "out.zarr", overwrite=True, shard=512)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert min(peaks[1:]) - peaks[0] < 0.4 * (6_000 * 200 * 8)  # what is added for each cell is its name, not its values


def test_the_command_writes_a_store_and_says_what_is_in_it(tmp_path):
    app = typer.Typer()
    app.command()(readable(command))
    for k, part in enumerate((study(20)[:8].copy(), study(20)[8:].copy())):
        part.write_h5ad(tmp_path / f"{k}.h5ad")
    files = [str(tmp_path / f"{k}.h5ad") for k in range(2)]
    told = CliRunner().invoke(app, [*files, str(tmp_path / "out.zarr"), "--chunk", "4", "--shard", "8", "--seed", "3"])
    assert told.exit_code == 0, told.output
    assert "20 cells in random order, 12 genes, values as uint8" in " ".join(told.output.split())
    assert open(tmp_path / "out.zarr").n == 20
    again = CliRunner().invoke(app, [*files, str(tmp_path / "out.zarr")])
    assert again.exit_code == 1
    assert "pass --force" in " ".join(again.output.split())
    told = CliRunner().invoke(app, [files[0], str(tmp_path / "out.zarr"), "--force", "--no-shuffle"])
    assert told.exit_code == 0, told.output
    assert list(open(tmp_path / "out.zarr").names) == [f"c{k}" for k in range(8)]
    wrong = CliRunner().invoke(app, [files[0], str(tmp_path / "out.h5ad")])
    assert "ends in .zarr" in " ".join(wrong.output.split())
