"""Reliability items 1 to 22: faults of counts and matrices. What needs a trained model is tested elsewhere."""

from __future__ import annotations

import time
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from fault_cases import CELLS, GENES, counts, obs, raw_bytes, study, unchanged, with_value

from trifold.data import Cells, Schema, open
from trifold.data.matrix import gather, is_canonical, require_indices
from trifold.errors import DataError, DtypeError, SchemaError, TrifoldWarning


def refused(a: anndata.AnnData, *words: str, error: type = DataError, **options: object) -> str:
    start = time.perf_counter()
    with unchanged(a), pytest.raises(error) as caught:
        Schema.of(a, "counts", **options)
    assert time.perf_counter() - start < 5
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    return str(caught.value)


def batch_of(data: object, schema: Schema, index: np.ndarray, **options: object):
    return Cells(data, schema, **options).batch(index)


def equal(a, b) -> bool:
    if a.rows.sparse != b.rows.sparse or a.rows.shape != b.rows.shape:
        return False
    parts = zip(a.rows.csr(), b.rows.csr(), strict=True) if a.rows.sparse else [(a.rows.dense, b.rows.dense)]
    return all(u.dtype == v.dtype and u.equal(v) for u, v in [*parts, (a.size, b.size)])


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kind", [None, "counts", "real"])
def test_item_01_a_nan_is_refused_by_layer_row_and_gene(sparse, kind):
    refused(with_value(np.nan, sparse=sparse), "layers['counts']", "row 17", "'GENE3'", "1 value", "NaN", kind=kind)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_item_02_an_infinite_value_is_refused_by_layer_row_and_gene(value):
    refused(with_value(value, dtype=np.float64), "layers['counts']", "row 17", "'GENE3'", "1 value", "infinite")


@pytest.mark.parametrize("kind", [None, "counts"])
def test_item_03_one_negative_count_is_refused_by_cell_and_gene(kind):
    refused(with_value(-3), "layers['counts']", "row 17", "'GENE3'", "-3", "negative", "kind=", kind=kind)


def test_item_04_negative_values_are_accepted_as_real_values():
    x = np.random.default_rng(0).normal(size=(CELLS, GENES))
    assert Schema.of(study(x), "counts").kind == "real"
    assert Schema.of(with_value(-3), "counts", kind="real").kind == "real"


def test_item_05_fractional_counts_are_refused_with_their_share_and_accepted_on_request():
    x = np.tile(counts(), (5, 1))
    x[[7, 130, 290], 0] = 0.5
    a = anndata.AnnData(sp.csr_matrix(x), var=pd.DataFrame(index=[f"GENE{j}" for j in range(GENES)]))
    for kind in (None, "counts"):
        with pytest.raises(DataError, match=r"3 values in 3 cells in 1 % of the cells are not whole .*row 7, gene 'GENE0', 0\.5"):
            Schema.of(a, kind=kind)
    schema = Schema.of(a, fractional="allow")
    assert schema.kind == "counts"
    assert Cells(a, schema).batch([7]).rows.to_dense()[0, 0] == 0.5


def test_item_06_log_normalised_values_as_counts_are_refused_with_a_hint():
    x = counts() / counts().sum(1, keepdims=True) * 1e4
    refused(study(sp.csr_matrix(np.log1p(x))), "looks like log1p", "10,000", kind="counts")
    refused(study(sp.csr_matrix(np.log1p(counts()))), "looks like log1p", kind="counts")


def test_item_07_scaled_values_as_counts_are_refused_with_a_hint():
    x = np.log1p(counts())
    refused(study((x - x.mean(0)) / x.std(0)), "looks scaled", kind="counts")


def test_item_08_an_empty_cell_is_refused_dropped_or_kept_as_asked():
    x = counts()
    x[[4, 9]] = 0
    a = study(sp.csr_matrix(x))
    refused(a, "2 of 60 cells", "rows 4, 9", "empty='drop'")
    with pytest.warns(TrifoldWarning, match="2 of 60 cells .* rows 4, 9"):
        dropped = Cells(a, Schema.of(a, "counts", empty="drop"))
    assert dropped.n == 58
    assert not set(dropped.kept) & {4, 9}
    assert list(dropped.names) == [n for k, n in enumerate(a.obs_names) if k not in (4, 9)]
    kept = Cells(a, Schema.of(a, "counts", empty="keep"))
    assert kept.n == 60
    assert np.isfinite(np.log(kept.size)).all()


def test_item_09_an_empty_gene_is_named_in_a_warning():
    x = counts()
    x[:, [2, 5]] = 0
    with pytest.warns(TrifoldWarning, match="2 of 20 genes .* GENE2, GENE5"):
        assert Schema.of(study(sp.csr_matrix(x)), "counts").kind == "counts"


def test_item_10_a_constant_gene_is_accepted():
    x = counts()
    x[:, 2] = 3
    assert Schema.of(study(x), "counts").kind == "counts"


def test_item_11_a_library_size_above_2_to_the_24_is_exact():
    x = counts().astype(np.float64)
    x[3, 4], x[3, 5] = 1e7, 1e7
    a = study(sp.csr_matrix(x.astype(np.float32)))
    cells = Cells(a, Schema.of(a, "counts"))
    assert cells.library[3] == x[3].sum() > 2**24
    assert cells.size[3, 0] == np.float32(x[3].sum())
    assert cells.batch([3]).rows.to_dense()[0, 4] == 1e7


def test_item_12_float16_counts_are_refused():
    refused(study(counts().astype(np.float16)), "float16", "65,504", "layers['counts']", error=DtypeError)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int64", "uint64", "bool"])
@pytest.mark.parametrize("sparse", [True, False])
def test_item_13_whole_dtypes_are_promoted_to_the_same_rows(dtype, sparse):
    x = (counts() > 0 if dtype == "bool" else counts()).astype(dtype)
    a = study(sp.csr_matrix(x) if sparse else x)
    with unchanged(a):
        schema = Schema.of(a, "counts")
        rows = Cells(a, schema).batch(np.arange(CELLS)).rows
    assert schema.kind == ("binary" if dtype == "bool" else "counts")
    assert rows.to_dense().numpy().dtype == np.float32
    assert (rows.to_dense().numpy() == x.astype(np.float32)).all()


def test_item_13_object_dtype_is_refused_by_name():
    refused(study(counts().astype(object)), "object", "layers['counts']", error=DtypeError)
    with pytest.raises(DtypeError, match="column 'b'"):
        open(pd.DataFrame({"a": [1, 2], "b": [1, "x"]}))


@pytest.mark.parametrize(("dtype", "name"), [(np.complex64, "complex64"), ("U8", "text")])
def test_item_14_a_matrix_of_complex_numbers_or_text_is_a_type_error(dtype, name):
    with pytest.raises(TypeError, match=name):
        open(counts().astype(dtype))
    assert issubclass(DtypeError, TypeError)


@pytest.mark.parametrize("bad", [-1, GENES, 2**30, -(2**31)])
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "view", "raw"])
def test_item_15_an_index_outside_the_matrix_is_refused_before_anything_reads_it(bad, form):
    x = {"csc": sp.csc_matrix, "coo": sp.coo_matrix}.get(form, sp.csr_matrix)(counts())
    if form == "coo":
        x.col[5] = bad
        with pytest.raises(DataError, match="indices of the matrix"):
            open(x)
        return
    if form == "csc":
        x.indices[5] = bad if bad != GENES else CELLS
        with pytest.raises(DataError, match="indices of the matrix"):
            open(x)
        return
    a = study(x)
    if form == "raw":
        a.raw = a.copy()
        a.raw.X.indices[5] = bad
        with pytest.raises(DataError, match=r"indices of raw\.X"):
            Schema.of(a, "raw")
        return
    a.layers["counts"].indices[5] = bad
    with pytest.raises(DataError, match=r"indices of layers\['counts'\] must lie in 0 to 19 .*found " + str(bad)):
        Schema.of(a[10:50] if form == "view" else a, "counts")


def test_item_15_a_check_of_20_million_indices_takes_under_a_second():
    indices = np.zeros(20_000_000, dtype=np.int32)
    start = time.perf_counter()
    require_indices(indices, 1, where="X")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("fault", ["decreasing", "short", "long", "start", "values"])
def test_item_16_pointers_that_do_not_fit_are_refused(fault):
    a = study()
    m = a.layers["counts"]
    if fault == "decreasing":
        m.indptr[5] = m.indptr[7] + 3
    elif fault == "short":
        m.indptr[-1] -= 2
    elif fault == "long":
        m.indptr[-1] += 2
    elif fault == "start":
        m.indptr[0] = -3
    else:
        m.data = m.data[:-3]
    with pytest.raises(DataError, match=r"layers\['counts'\].*(damaged|values)"):
        Schema.of(a, "counts")


def test_item_17_unsorted_and_repeated_indices_give_the_same_rows_from_a_copy():
    x = sp.csr_matrix(counts())
    twisted = x.copy()
    for i in range(CELLS):
        part = slice(x.indptr[i], x.indptr[i + 1])
        twisted.indices[part], twisted.data[part] = x.indices[part][::-1], x.data[part][::-1]
    row = np.repeat(np.arange(CELLS), np.diff(x.indptr))
    doubled = sp.csr_matrix((np.repeat(x.data / 2, 2), np.repeat(x.indices, 2), 2 * x.indptr.astype(np.int32)), shape=x.shape)
    assert len(row) == x.nnz
    schema = Schema.of(study(x), "counts")
    want = batch_of(study(x), schema, np.arange(CELLS))
    for m in (twisted, doubled):
        a = study(m)
        with unchanged(a):
            assert equal(batch_of(a, schema, np.arange(CELLS)), want)
    small = sp.csr_matrix((np.array([200, 100], dtype=np.uint8), np.array([1, 1]), np.array([0, 2])), shape=(1, 3))
    assert open(small).rows([0]).toarray().tolist() == [[0, 300, 0]]


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # numpy says this of np.matrix
def test_item_18_every_form_of_a_matrix_gives_bit_equal_batches():
    x, names = counts(), [f"GENE{j}" for j in range(GENES)]
    schema = Schema.of(pd.DataFrame(x, columns=names))
    want = batch_of(pd.DataFrame(x, columns=names), schema, np.arange(CELLS))
    explicit = sp.csr_matrix(x)
    explicit.data[3] = 0
    assert explicit.nnz == sp.csr_matrix(x).nnz
    forms = [
        sp.csr_matrix,
        sp.csc_matrix,
        sp.csr_array,
        sp.csc_array,
        sp.coo_matrix,
        sp.lil_matrix,
        sp.bsr_matrix,
        sp.dok_matrix,
        np.asmatrix,
    ]
    for form in [*forms, np.asfortranarray]:
        source = open(form(x))
        source.genes = tuple(names)
        assert equal(batch_of(source, schema, np.arange(CELLS)), want), form
    source = open(explicit)
    source.genes = tuple(names)
    assert equal(
        batch_of(source, schema, np.arange(CELLS)), batch_of(pd.DataFrame(explicit.toarray(), columns=names), schema, np.arange(CELLS))
    )


def test_item_19_more_than_2_to_the_31_values_do_not_wrap():
    indptr = np.array([0, 2**31 + 5, 2**31 + 8, 2**31 + 8, 2**31 + 9], dtype=np.int64)
    crow, at = gather(indptr, np.array([3, 1, 2]))
    assert crow.tolist() == [0, 1, 4, 4]
    assert at.tolist() == [2**31 + 8, 2**31 + 5, 2**31 + 6, 2**31 + 7]


def test_item_19_int64_pointers_and_indices_give_the_same_rows():
    x = sp.csr_matrix(counts())
    wide = sp.csr_matrix(x.shape, dtype=np.float32)
    wide.data, wide.indices, wide.indptr = x.data, x.indices, x.indptr.astype(np.int64)
    schema = Schema.of(study(x), "counts")
    index = np.array([5, 2, 2, 50])
    assert equal(batch_of(study(wide), schema, index), batch_of(study(x), schema, index))
    wide.indices = wide.indices.astype(np.int64)
    assert equal(batch_of(study(wide), schema, index), batch_of(study(x), schema, index))


def test_item_20_memory_layouts_give_the_same_rows_and_are_not_changed(tmp_path):
    x = counts()
    schema = Schema.of(study(x), "counts")
    want = batch_of(study(x), schema, np.arange(CELLS))
    np.save(tmp_path / "x.npy", x)
    frozen = x.copy()
    frozen.setflags(write=False)
    swapped = sp.csr_matrix(x)
    swapped.data = swapped.data.astype(">f4")
    for form in (
        np.asfortranarray(x),
        frozen,
        x.astype(">f4"),
        x.astype(">i2"),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        x[::-1][::-1],
        swapped,
    ):
        a = study()
        a.layers["counts"] = form
        before = raw_bytes(a)
        assert equal(batch_of(a, schema, np.arange(CELLS)), want)
        assert raw_bytes(a) == before


@pytest.fixture(params=["csr", "dense", "csc"])
def on_disk(request, tmp_path):
    x = {"csr": sp.csr_matrix, "dense": np.asarray, "csc": sp.csc_matrix}[request.param](counts())
    a = study(x)
    a.X = x
    a.raw = a.copy()
    a.obsm["emb"] = counts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.write_h5ad(tmp_path / "a.h5ad")
        a.write_zarr(tmp_path / "a.zarr")
    return request.param, tmp_path


@pytest.mark.parametrize("x", [None, "counts", "raw", "emb"])
def test_item_21_backed_zarr_and_memory_give_the_same_batches_in_the_order_asked_for(on_disk, x):
    form, folder = on_disk
    memory = anndata.read_h5ad(folder / "a.h5ad")
    schema = Schema.of(memory, x, condition="condition")
    index = np.array([40, 3, 3, 59, 0, 17, 41])
    want = batch_of(memory, schema, index)
    backed = anndata.read_h5ad(folder / "a.h5ad", backed="r")
    for data in (folder / "a.h5ad", str(folder / "a.zarr"), backed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if form == "csc" else "error", TrifoldWarning)
            got = batch_of(data, schema, index)
        assert equal(got, want)
        assert got.code["condition"].tolist() == [0, 1, 1, 1, 0, 1, 1]
    backed.file.close()


def test_item_21_a_view_of_a_backed_file_keeps_its_order(on_disk):
    form, folder = on_disk
    memory = anndata.read_h5ad(folder / "a.h5ad")
    backed = anndata.read_h5ad(folder / "a.h5ad", backed="r")
    rows, genes = [40, 3, 17, 59, 4], [5, 2, 19, 0]
    schema = Schema.of(memory[rows][:, genes].copy())
    want = batch_of(memory[rows][:, genes].copy(), schema, np.arange(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if form == "csc" else "error", TrifoldWarning)
        cells = Cells(backed[rows, genes], schema)
    assert equal(cells.batch(np.arange(5)), want)
    assert cells.obs["dose"].tolist() == rows
    backed.file.close()


def test_item_22_a_view_is_read_and_its_parent_is_not_changed():
    a = study()
    view = a[[30, 2, 2, 7], 3:15]
    with unchanged(a):
        with pytest.warns(TrifoldWarning):
            schema = Schema.of(view, "counts", condition="condition", empty="keep")
        with pytest.warns(TrifoldWarning, match="names of cells"):
            got = batch_of(view, schema, np.arange(4))
        assert view.is_view
    assert (got.rows.to_dense().numpy() == counts()[[30, 2, 2, 7], 3:15]).all()


def test_a_canonical_matrix_is_shared_and_not_copied():
    x = sp.csr_matrix(counts())
    block = open(x).take(slice(0, CELLS))
    assert np.shares_memory(block.data, x.data)
    assert is_canonical(x.indptr, x.indices)


def test_a_layer_that_is_not_there_is_named_with_a_suggestion():
    with pytest.raises(SchemaError, match=r"no layer, raw or obsm named 'count'\. Did you mean 'counts'"):
        Schema.of(study(), "count")
    assert obs().shape == (CELLS, 4)
