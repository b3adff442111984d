"""Answers that are written to a file piece by piece: the numbers of memory, in bounded memory, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import anndata
import block_cases
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import trifold
from trifold import inference, results
from trifold.data import Cells
from trifold.errors import CheckpointError, DataError, SpecError
from trifold.results import Dense, Sparse

STATUS = Path("/proc/self/status")
ASKED = {
    "latent": lambda m, a, **out: m.latent(a, **out),
    "block": lambda m, a, **out: m.latent(a, block="spurious", **out),
    "rectified": lambda m, a, **out: m.latent(a, block="invariant", rectified=True, **out),
    "expression": lambda m, a, **out: m.expression(a, **out),
    "corrected": lambda m, a, **out: m.expression(a, corrected=True, **out),
    "mean": lambda m, a, **out: m.predict(a, {"batch": "b"}, where={"batch": "a"}, **out),
    "sample": lambda m, a, **out: m.predict(a, {"batch": "b"}, kind="sample", **out),
    "residual": lambda m, a, **out: m.predict(a, {"batch": "b"}, where={"kind": ["x", "z"]}, kind="residual", **out),
}


@pytest.fixture
def small(monkeypatch):
    """Pieces of 64 cells, so that 420 make seven."""
    monkeypatch.setattr(inference, "_MOST", 64)


@pytest.fixture(scope="module")
def on_disk(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    some = cells.copy()
    some.X = sp.csr_matrix(some.X)
    some.write_h5ad(path)
    return path


def dense(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def read(path: Path) -> anndata.AnnData:
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("name", ASKED)
def test_a_file_holds_the_numbers_that_memory_holds_bit_for_bit(blocks, cells, on_disk, tmp_path, small, name: str, suffix: str):
    ask, out = ASKED[name], tmp_path / f"new/{name}{suffix}"
    whole = ask(blocks, cells)
    assert ask(blocks, on_disk, out=out) == out
    found = read(out)
    x = whole.X if isinstance(whole, anndata.AnnData) else whole
    assert sp.issparse(found.X) == sp.issparse(x)
    assert found.X.dtype == x.dtype == np.float32
    np.testing.assert_array_equal(dense(found.X), dense(x))
    if isinstance(whole, anndata.AnnData):
        pd.testing.assert_frame_equal(found.obs, whole.obs, check_dtype=False, check_categorical=False)
        assert list(found.var_names) == list(whole.var_names)
        assert found.uns["trifold"]["to"] == whole.uns["trifold"]["to"]
    else:
        pd.testing.assert_frame_equal(found.obs, cells.obs)
        names = list(cells.var_names) if found.n_vars == block_cases.GENES else [f"{found.uns['trifold']['block'] or 'latent'}_0"]
        assert list(found.var_names)[: len(names)] == names
    source = trifold.open(out)
    np.testing.assert_array_equal(dense(source.rows(np.arange(source.n))), dense(x))
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("ask", [ASKED["latent"], ASKED["expression"], lambda m, a, **out: m.predict(a, {"batch": "b"}, **out)])
def test_averages_over_what_is_not_known_come_in_order_and_are_those_of_memory(told, cells, tmp_path, monkeypatch, ask):
    some = cells.copy()
    lost = np.random.default_rng(0).random(some.n_obs) < 0.3
    for column, at in (("kind", lost), ("batch", np.roll(lost, 7))):
        some.obs[column] = some.obs[column].astype(object).where(~at, "new").astype("category")

    def asked(**out):
        found = ask(told, some, unknown="marginalise", **out)
        return found.X if isinstance(found, anndata.AnnData) else found

    at_once = asked()
    monkeypatch.setattr(inference, "_MOST", 32)
    whole = asked()
    np.testing.assert_array_equal(anndata.read_h5ad(asked(out=tmp_path / "x.h5ad")).X, whole)
    np.testing.assert_allclose(whole, at_once, rtol=1e-4, atol=1e-4)
    known = np.flatnonzero(~lost & ~np.roll(lost, 7))
    sure = ask(told, cells)
    np.testing.assert_allclose(whole[known], (sure.X if isinstance(sure, anndata.AnnData) else sure)[known], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, DataError])
def test_nothing_is_left_after_an_error_or_ctrl_c_and_what_was_there_stays(blocks, cells, tmp_path, small, monkeypatch, suffix, stop):
    out = tmp_path / f"x{suffix}"
    before = blocks.latent(cells, out=out)
    seen, decode = [], blocks.vae.decode

    def failing(z, batch):
        seen.append(batch.n)
        if len(seen) == 3:
            raise stop("on the way")
        return decode(z, batch)

    monkeypatch.setattr(blocks.vae, "decode", failing)
    for path in (out, tmp_path / f"y{suffix}"):
        seen.clear()
        with pytest.raises(stop):
            blocks.expression(cells, out=path, overwrite=True)
        assert [p.name for p in tmp_path.iterdir()] == [out.name]
    monkeypatch.undo()
    np.testing.assert_array_equal(read(before).X, blocks.latent(cells))


def test_a_full_disk_is_a_checkpoint_error_and_nothing_is_left(blocks, cells, tmp_path, small, monkeypatch):
    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results._DenseOnDisk, "_put", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        blocks.expression(cells, out=tmp_path / "x.h5ad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [".h5ad", ".zarr"])
def test_a_file_that_exists_is_refused_before_the_work_and_replaced_on_request(blocks, cells, tmp_path, old: str):
    out = blocks.latent(cells, out=tmp_path / f"x{old}")
    for ask in ASKED.values():
        with pytest.raises(CheckpointError, match="pass overwrite=True"):
            ask(blocks, "there is no such file.h5ad", out=out)
    blocks.expression(cells, out=out, overwrite=True)
    assert read(out).n_vars == block_cases.GENES
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_name_that_cannot_be_written_is_refused_with_one_that_can(blocks, cells, tmp_path):
    for name in ("x.csv", "x.h5", "x"):
        with pytest.raises(SpecError, match=r"ends in \.h5ad or \.zarr.*out='.*x\.h5ad'"):
            blocks.latent(cells, out=tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a folder"):
        blocks.latent(cells, out=tmp_path / "file" / "x.h5ad")


def test_a_file_of_drawn_counts_can_be_opened_backed(blocks, cells, tmp_path, small):
    out = blocks.predict(cells, {"batch": "b"}, kind="sample", out=tmp_path / "x.h5ad")
    backed = anndata.read_h5ad(out, backed="r")
    again = blocks.predict(cells, {"batch": "b"}, kind="sample").X
    assert (backed.X[100:105] != again[100:105]).nnz == 0
    assert backed.obs["seen"].all()
    backed.file.close()


@pytest.mark.parametrize("values", [1, 39, 40, 2**15, 2**40])
def test_pieces_are_powers_of_two_of_bounded_size(blocks, cells, monkeypatch, values: int):
    monkeypatch.setattr(inference, "_VALUES", values)
    step = inference.step_of(inference.values_of(Cells(cells, blocks.schema), decoded=True))
    assert step & (step - 1) == 0
    assert step == 1 or step * block_cases.GENES <= values
    assert 1 <= step <= 4096


def test_rows_of_any_number_of_pieces_make_one_array_or_matrix():
    x = np.random.default_rng(0).poisson(0.3, (17, 5)).astype(np.float32)
    for cuts in ([], [3], [1, 2, 16]):
        array, matrix = Dense(17), Sparse(17)
        for part in np.split(x, cuts):
            array.put(part)
            matrix.put(part)
        np.testing.assert_array_equal(array.values, x)
        np.testing.assert_array_equal(matrix.values.toarray(), x)


@pytest.mark.skipif(not STATUS.exists(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_MOST", 128)
    rng, g = np.random.default_rng(0), 2_000
    x = sp.random_array((6_000, g), density=0.01, rng=rng, format="csr", dtype=np.float32)
    x.data[:] = rng.integers(1, 5, x.nnz)
    obs = pd.DataFrame({"batch": np.tile(["a", "b"], 3_000)}, index=[str(i) for i in range(6_000)])
    a = anndata.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(g)]))
    paths = {n: tmp_path / f"{n}.h5ad" for n in (1_500, 6_000)}
    for n, path in paths.items():
        a[:n].copy().write_h5ad(path)
    some = a[:2_000]
    model = trifold.invae(trifold.Schema.of(some, spurious="batch"), hidden=(8,)).fit(
        some, epochs=1, batch=500, validation=0.0, **block_cases.QUICK
    )

    def peak(n: int) -> float:
        """MiB at most resident above what was resident before."""
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        model.predict(paths[n], {"batch": "b"}, out=tmp_path / "out.h5ad", overwrite=True)
        return resident("VmHWM") - before

    peak(1_500)
    assert peak(6_000) < peak(1_500) + 15  # the difference of the answers is 34 MiB
    assert read(tmp_path / "out.h5ad").shape == (1_500, g)


def resident(what: str) -> float:
    """MiB."""
    return int(STATUS.read_text().split(f"{what}:")[1].split()[0]) / 2**10
