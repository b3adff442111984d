"""Reading ahead: the same minibatches as one at a time, in bounded memory, and a thread that always ends."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import warnings
import weakref

import anndata
import fsspec
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from data_cases import sparse_counts, study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trifold.data import Balanced, Cells, Schema, Shuffled, open, reading
from trifold.data.cells import rows_of
from trifold.data.pieces import ranges, read_pieces
from trifold.data.source import MemorySource, Source
from trifold.errors import DataError

N, G = 300, 12
FILES = ["csr.h5ad", "gzip.h5ad", "dense.h5ad", "csr2.zarr", "csr3.zarr", "dense3.zarr"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("stream")
    a = study(N, G)
    a.write_h5ad(where / "csr.h5ad")
    a.write_h5ad(where / "gzip.h5ad", compression="gzip")
    write_zarr(a, where / "csr2.zarr", 2)
    write_zarr(a, where / "csr3.zarr", 3)
    a.X = a.X.toarray()
    a.write_h5ad(where / "dense.h5ad")
    write_zarr(a, where / "dense3.zarr", 3)
    return where


def write_zarr(a, where, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata on the version of the format
        with anndata.settings.override(zarr_write_format=form):
            a.write_zarr(where)


@pytest.fixture(scope="module")
def cells(folder):
    schema = Schema.of(study(N, G), condition="drug", invariant="cell_type", spurious=["donor", "dose"])
    assert schema.sparse
    return {name: Cells(folder / name, schema) for name in FILES} | {"memory": Cells(study(N, G), schema)}


def require_equal(a, b):
    assert a.rows.shape == b.rows.shape
    parts = [(a.size, b.size), *((getattr(a.rows, k), getattr(b.rows, k)) for k in ("dense", "crow", "col", "val"))]
    parts += [(x[r], y[r]) for x, y in ((a.design, b.design), (a.code, b.code)) for r in (*x, *y)]
    for x, y in parts:
        assert (x is None) == (y is None)
        assert x is None or (x.dtype == y.dtype and x.shape == y.shape and x.equal(y))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_minibatches_read_ahead_equal_those_of_memory_bit_for_bit(cells, data):
    indices = data.draw(st.lists(st.lists(st.integers(0, N - 1), max_size=40), max_size=12))
    window, ahead = data.draw(st.integers(1, 100)), data.draw(st.integers(0, 3))
    name = data.draw(st.sampled_from([*FILES, "memory"]))
    got = list(reading.batches(cells[name], [np.asarray(i, dtype=int) for i in indices], window=window, ahead=ahead))
    assert len(got) == len(indices)
    for batch, index in zip(got, indices, strict=True):
        require_equal(batch, cells["memory"].batch(index))
        require_equal(batch, cells[name].batch(index))


@pytest.mark.parametrize("name", FILES)
def test_an_epoch_from_disk_gives_the_numbers_of_memory(cells, name):
    epoch = Shuffled(np.arange(N), 32, seed=3, block=16, window=100).epoch(1)
    got = list(reading.batches(cells[name].subset(np.arange(N)[::-1]), epoch))
    for batch, index in zip(got, epoch, strict=True):
        require_equal(batch, cells["memory"].batch(N - 1 - index))


def test_dense_and_wide_minibatches_are_equal_too(folder):
    a = study(N, G)
    a.obs["many"] = [f"v{k}" for k in range(N)]
    for data in (a, folder / "csr.h5ad", folder / "dense.h5ad"):
        real = Schema.of(data, kind="real")
        real = real.from_spec({**real.to_spec(), "density": 0.9})
        for batch, index in zip(reading.batches(Cells(data, real), two := [np.arange(9), np.arange(5, 60)]), two, strict=True):
            assert (batch.rows.dense.numpy() == a.X.toarray()[index]).all()
    wide = Cells(a, Schema.of(a, spurious="many"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trifold.data.cells._NARROW", 0)
        anew = Cells(a, wide.schema).batch([3, 299, 3])
    require_equal(anew, wide.batch([3, 299, 3]))
    require_equal(wide.subset([299, 3]).batch([1, 0, 1]), anew)


def test_explicit_zeros_are_no_values_wherever_they_lie():
    x = sparse_counts(N, G)
    x.data[::7] = 0
    assert (x.data == 0).any()
    one = Cells(x, Schema.of(sparse_counts(N, G), empty="keep"), empty="keep")
    rows = next(reading.batches(one, [np.arange(7, 99)])).rows
    assert (rows.val != 0).all()
    assert (rows.to_dense().numpy() == x.toarray()[7:99]).all()


class Watched(Source):
    """Cells 'on disk' that say when they are read, wait when told to, and fail when told to."""

    block = 8

    def __init__(self, n=N, fail=None, matrix=None):
        self._inner = MemorySource(sparse_counts(n, G) if matrix is None else matrix)
        self.n, self.genes, self.obs, self.x, self.where = n, self._inner.genes, self._inner.obs, None, "X"
        self.dtype, self.other, self.sparse = self._inner.dtype, {}, True
        self.began, self.alive, self.fail, self.threads, self.go = [], [], fail, set(), threading.Event()
        self.go.set()

    def stored(self, index):
        return self._inner.stored(index)

    def take(self, index):
        self.began.append(index)
        self.threads.add(threading.current_thread().name)
        if self.fail is not None and len(self.began) > self.fail[0]:
            raise self.fail[1]
        assert self.go.wait(20)
        out = self._inner.take(index)
        self.alive.append(weakref.ref(out.data))
        return out


def watched(**more):
    source = Watched(**more)
    found = Cells(source, Schema.of(source))
    source.began.clear()
    source.alive.clear()
    source.threads.clear()
    return source, found


def parts(k=10, size=30):
    return [np.arange(j * size, (j + 1) * size) for j in range(k)]


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("trifold-reader")]


def test_the_next_window_is_read_while_the_present_one_is_in_use():
    source, found = watched()
    stream = reading.batches(found, parts(), window=60)
    next(stream)
    for _ in range(2000):  # the second window is asked for before the first is used up
        if len(source.began) == 2:
            break
        threading.Event().wait(0.005)
    assert len(source.began) == 2
    assert not any(name == threading.current_thread().name for name in source.threads)
    assert len(list(stream)) == 9
    assert [len(i) for i in source.began] == [60] * 5


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_than_the_windows_ahead_and_the_present_one_are_in_memory(ahead):
    source, found = watched()
    most = 0
    for batch in reading.batches(found, parts(), window=60, ahead=ahead):
        del batch
        most = max(most, sum(ref() is not None for ref in source.alive))
    assert most <= ahead + 1
    assert len(source.began) == 5


def test_a_window_holds_no_more_values_than_memory_allows(monkeypatch):
    monkeypatch.setattr("trifold.data.source._WINDOW_VALUES", 300)
    source, found = watched()
    assert found.window == int(300 // found.width)
    list(reading.batches(found, parts(30, 10)))
    assert max(len(i) for i in source.began) <= found.window < 100
    assert len(source.began) >= 3


def test_a_window_of_full_cells_is_shorter_than_one_of_nearly_empty_ones():
    x = np.zeros((N, G), dtype=np.float32)
    x[:, 0] = 1
    x[280:] = 2
    source, found = watched(matrix=sp.csr_matrix(x))
    list(reading.batches(found, [np.array([j]) for j in range(N)], window=10))
    sizes = [source.stored(i) for i in source.began]
    assert max(sizes) <= 2 * 10 * found.width < 10 * G
    assert len(source.began[0]) == 10


def test_what_the_thread_raises_is_raised_where_batches_are_used():
    error = DataError("indices of X must lie in 0 to 11; found 99.")
    source, found = watched(fail=(10**6, error))
    source.fail = (2, error)
    got = []
    with pytest.raises(DataError, match=r"found 99\.$") as raised:
        got.extend(reading.batches(found, parts(), window=60))
    assert raised.value is error
    assert not readers()
    with pytest.raises(DataError, match="Rows must lie in 0 to 299; found 300"):
        list(reading.batches(found, [np.array([1, 300])]))


def test_a_damaged_file_is_named_as_without_the_reader(folder, tmp_path):
    study(N, G).write_h5ad(tmp_path / "a.h5ad")
    schema = Schema.of(tmp_path / "a.h5ad")
    found = Cells(tmp_path / "a.h5ad", schema)
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        f["X/indices"][f["X/indptr"][250]] = 10**6
    for ahead in (0, 1):
        with pytest.raises(DataError, match=r"indices of X of a\.h5ad .* found 1000000 in row 250 "):
            list(reading.batches(found, [np.arange(200, 230), np.array([260, 250, 220])], window=40, ahead=ahead))
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:  # nothing holds the file
        f.attrs["written"] = 1


def test_stopping_early_ends_the_thread_and_closes_the_file(cells, folder):
    stream = reading.batches(cells["csr.h5ad"], parts(), window=30)
    next(stream)
    stream.close()
    assert not readers()
    with h5py.File(folder / "csr.h5ad", "r+") as f:
        f.attrs["written"] = 1
    stream = reading.batches(cells["csr.h5ad"], parts(), window=30)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    assert not readers()
    for _ in reading.batches(cells["csr.h5ad"], parts(), window=30):
        break
    gc.collect()
    assert not readers()


def test_stopping_early_leaves_windows_unread():
    source, found = watched()
    stream = reading.batches(found, parts(), window=30, ahead=4)
    next(stream)
    source.go.clear()
    threading.Timer(0.2, source.go.set).start()
    before = len(source.began)
    stream.close()
    assert len(source.began) <= before + 1
    assert not readers()


def test_a_source_in_memory_has_no_thread(cells):
    stream = reading.batches(cells["memory"], parts())
    next(stream)
    assert not readers()


def test_odd_windows_are_refused(cells):
    with pytest.raises(DataError, match="window must be at least 1"):
        reading.batches(cells["memory"], [], window=0)
    with pytest.raises(DataError, match="ahead must be at least 0"):
        reading.batches(cells["memory"], [], ahead=-1)


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("trifold.data.source._WINDOW_VALUES", 20_000)
    monkeypatch.setattr("trifold.data.stored._PART", 5_000)
    peaks = []
    for n in (8_000, 32_000):
        anndata.AnnData(sp.random(n, 50, 0.2, format="csr", rng=np.random.default_rng(0), dtype=np.float32)).write_h5ad(tmp_path / "a.h5ad")
        found = Cells(tmp_path / "a.h5ad", Schema.of(tmp_path / "a.h5ad", kind="real"))
        epoch = Shuffled(np.arange(n), 100, block=found.block, window=found.window).epoch(0)
        few = np.arange(0, n, n // 800)  # scattered cells, as of a validation set: what lies between is read and let go
        list(reading.batches(found, epoch[:1]))
        tracemalloc.start()
        for batch in reading.batches(found, epoch):
            del batch
        whole = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found.values(few)
        peaks.append((whole, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    assert peaks[1][0] < 1.8 * peaks[0][0]  # of a file four times as large; how far the thread has come when a window is used up differs
    assert peaks[1][1] < 1.8 * peaks[0][1]
    assert peaks[1][0] < 0.5 * 32_000 * 10 * 8  # bytes of the file


@pytest.mark.parametrize("name", ["csr.h5ad", "csr3.zarr", "dense.h5ad"])
def test_scattered_rows_are_read_in_parts_and_equal(folder, monkeypatch, name):
    monkeypatch.setattr("trifold.data.stored._PART", 50)
    source = open(folder / name)
    for index in (np.arange(0, N, 7), np.arange(N), np.arange(N)[::-1], np.array([299, 0, 0, 150])):
        rows = source.rows(index)
        assert ((rows.toarray() if sp.issparse(rows) else rows) == sparse_counts(N, G).toarray()[index]).all()


def test_many_pieces_are_those_of_slices(tmp_path):
    values = np.arange(9000, dtype=">i4")
    starts = np.arange(0, 9000, 3)
    stops = starts + np.arange(3000) % 3
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("a", data=values, chunks=(700,))
        f.create_dataset("b", data=values.reshape(-1, 2).astype(bool))
        assert (read_pieces(f["a"], starts, stops) == values[ranges(starts, stops)]).all()
        assert read_pieces(f["a"], starts[:0], stops[:0]).shape == (0,)
        got = read_pieces(f["b"], np.array([3, 60]), np.array([9, 61]))
        assert got.dtype == bool
        assert (got == values.reshape(-1, 2).astype(bool)[[3, 4, 5, 6, 7, 8, 60]]).all()


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_object_storage_gives_the_rows_of_memory(folder, kind):
    files = fsspec.filesystem("memory")
    files.put(str(folder / f"csr{'3.zarr' if kind == 'zarr' else '.h5ad'}"), f"/bucket/a.{kind}", recursive=True)
    try:
        source = open(f"memory://bucket/a.{kind}")
        assert source.where == f"X of a.{kind}"
        index = [250, 3, 4, 3]
        assert (source.rows(index).toarray() == sparse_counts(N, G).toarray()[index]).all()
        a = study(N, G)
        schema = Schema.of(f"memory://bucket/a.{kind}", condition="drug")
        index = np.random.default_rng(0).permutation(N)
        for got, want in zip(
            reading.batches(Cells(source, schema), np.split(index, 6), window=99),
            reading.batches(Cells(a, schema), np.split(index, 6)),
            strict=True,
        ):
            require_equal(got, want)
        assert open("memory://bucket/*.*").n == N
    finally:
        files.rm("/bucket", recursive=True)


def test_addresses_that_cannot_be_read_say_what_to_do(monkeypatch):
    with pytest.raises(DataError, match=r"no file or folder 'memory://nothing/a.zarr'"):
        open("memory://nothing/a.zarr")
    with pytest.raises(DataError, match="Protocol not known: nowhere"):
        open("nowhere://a.h5ad")
    with pytest.raises(DataError, match=r"No file matches 'memory://nothing/\*.h5ad'"):
        open("memory://nothing/*.h5ad")

    def missing(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", missing)
    with pytest.raises(DataError, match=r"pip install 'trifold\[cloud\]' s3fs"):
        open("s3://bucket/a.zarr")


def test_zarrs_gives_the_numbers_of_zarr(folder):
    pytest.importorskip("zarrs")
    for name in ("csr3.zarr", "dense3.zarr", "csr2.zarr"):
        rows = open(folder / name).rows([7, 3, 299])
        assert ((rows.toarray() if sp.issparse(rows) else rows) == sparse_counts(N, G).toarray()[[7, 3, 299]]).all()


# -- samplers --------------------------------------------------------------------------------------------------------------------------


def sampler(kind, n, batch, seed=0, **more):
    index = np.sort(np.random.default_rng(9).permutation(2 * n)[:n])
    return Shuffled(index, batch, seed, **more) if kind == "shuffled" else Balanced(index, index % 3, batch, seed, **more)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["shuffled", "balanced"]),
    n=st.integers(1, 200),
    batch=st.integers(1, 40),
    parts=st.integers(1, 5),
    block=st.sampled_from([None, 1, 7, 64]),
    window=st.sampled_from([None, 1, 50]),
    k=st.integers(0, 3),
)
def test_shares_put_together_are_the_epoch(kind, n, batch, parts, block, window, k):
    parts = min(parts, batch, n)
    s = sampler(kind, n, batch, block=block, window=window, parts=parts)
    epoch = s.epoch(k)
    shares = [s.share(k, p) for p in range(parts)]
    assert {len(share) for share in shares} == {s.steps} == {len(epoch)}
    assert s.sizes == [len(minibatch) for minibatch in epoch]
    for j, minibatch in enumerate(epoch):
        assert (np.concatenate([share[j] for share in shares]) == minibatch).all()
        sizes = [len(share[j]) for share in shares]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1
    every = np.concatenate(epoch)
    assert len(every) == n
    assert set(every) <= set(s.index)
    if kind == "shuffled":
        assert (np.sort(every) == s.index).all()
    assert all(len(m) == batch for m in epoch[:-1])
    again = sampler(kind, n, batch, block=block, window=window, parts=parts)
    again.epoch(k + 1)  # no state: resuming in the middle of an epoch is leaving out its first minibatches
    assert all((a == b).all() for a, b in zip(again.epoch(k)[1:], epoch[1:], strict=True))


@pytest.mark.parametrize("kind", ["shuffled", "balanced"])
def test_in_memory_the_number_of_processes_does_not_change_the_minibatches(kind):
    one, four = (sampler(kind, 1000, 40, seed=5, parts=p) for p in (1, 4))
    for k in range(2):
        assert all((a == b).all() for a, b in zip(one.epoch(k), four.epoch(k), strict=True))


def test_in_memory_a_seed_gives_the_order_that_it_gave_before():
    want = np.random.default_rng([3, 2]).permutation(100)
    assert (np.concatenate(Shuffled(np.arange(100), 7, seed=3).epoch(2)) == want).all()


@pytest.mark.parametrize("kind", ["shuffled", "balanced"])
def test_on_disk_each_part_has_cells_of_its_own_and_its_own_stretch_of_the_file(kind):
    s = sampler(kind, 3000, 60, block=10, window=300, parts=3)
    for k in range(2):
        seen = [np.concatenate(s.share(k, p)) for p in range(3)]
        for a, b in ((0, 1), (1, 2)):
            assert seen[a].max() < seen[b].min() if kind == "shuffled" else len(np.intersect1d(seen[a], seen[b])) == 0
    assert not np.array_equal(s.share(0, 1)[0], s.share(1, 1)[0])


def test_balanced_streams_from_disk_hold_equal_shares_of_conditions_that_only_one_stretch_has():
    codes = np.repeat([0, 1, 2], [1000, 400, 2])
    s = Balanced(np.arange(1402), codes, 60, block=10, parts=4)
    for part in range(4):
        for minibatch in s.share(0, part):
            assert np.ptp(np.bincount(codes[minibatch], minlength=3)) <= 1
    drawn = np.bincount(np.concatenate(s.epoch(0)), minlength=1402)
    assert drawn[:1000].max() == 1
    assert drawn[1000:1400].max() <= 2


def test_each_block_of_a_file_is_read_once_an_epoch():
    source, found = watched(n=2000)
    epoch = Shuffled(np.arange(2000), 32, block=50, window=333).epoch(0)
    list(reading.batches(found, epoch, window=333))
    touched = np.concatenate([np.unique(i // 50) for i in source.began])
    assert len(touched) <= 40 + len(source.began)  # a block may lie across the end of a window


def test_shares_that_cannot_be_are_refused():
    with pytest.raises(DataError, match=r"part must lie in 0 to 1, since parts=2; found 2"):
        sampler("shuffled", 100, 10, parts=2).share(0, 2)
    with pytest.raises(DataError, match=r"parts must lie between 1 and the cells of a minibatch \(10\)"):
        sampler("shuffled", 100, 10, parts=11)
    with pytest.raises(DataError, match="window must be at least 1"):
        sampler("balanced", 100, 10, window=0, block=3)


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_between_are_those_rows(sparse):
    x = sp.random(7, 5, 0.4, format="csr", rng=np.random.default_rng(1), dtype=np.float32)
    rows = rows_of(x if sparse else x.toarray(), sparse=sparse)
    for start, stop in ((0, 7), (2, 5), (3, 3), (6, 7)):
        cut = rows.between(start, stop)
        assert cut.shape == (stop - start, 5)
        assert (cut.to_dense().numpy() == x.toarray()[start:stop]).all()
