"""What is written is there whole or not at all, also where the disk is full in the middle of an HDF5 file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from full_disk import limited
from trifold.data.convert import convert
from trifold.errors import CheckpointError, DataError
from trifold.outputs import Kept, h5_file, replacing, write_h5ad, writing
from trifold.results import stored

FULL = r"could not be written: the disk is full \(File too large\)\..* [\d,]+ (bytes )?are free there\. What was there before is untouched"


def study(n: int = 200, g: int = 50) -> anndata.AnnData:
    x = sp.csr_matrix(np.random.default_rng(0).poisson(0.5, (n, g)).astype(np.float32))
    obs = pd.DataFrame({"type": ["B", "T"] * (n // 2)}, index=[f"cell{i}" for i in range(n)])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(g)]))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("refused_at", [None, 0, 5_000])
def test_a_kept_file_gives_back_whatever_was_written_with_and_without_room(tmp_path, refused_at):
    """Against a bytearray, at random positions, sizes and lengths."""
    rng, truth = np.random.default_rng(1), bytearray()
    with limited(10**9 if refused_at is None else refused_at), Kept(tmp_path / "a") as kept:
        for _ in range(500):
            at, data = int(rng.integers(0, 9_000)), rng.bytes(int(rng.integers(0, 300)))
            truth.extend(bytes(max(0, at - len(truth))) if data else b"")
            truth[at : at + len(data)] = data
            kept.seek(at)
            assert kept.write(data) == len(data)
            where, many = int(rng.integers(0, 9_000)), int(rng.integers(0, 300))
            kept.seek(where)
            assert kept.read(many) == bytes(truth[where : where + many])
            assert kept.seek(0, os.SEEK_END) == len(truth)
            assert kept.seek(-1, os.SEEK_CUR) == len(truth) - 1
        assert (kept.error is None) == (refused_at is None)
        if refused_at is not None:
            with pytest.raises(OSError, match="File too large"):
                kept.require()
    if refused_at is None:
        assert (tmp_path / "a").read_bytes() == truth


def test_a_file_is_shortened_and_lengthened_with_zeros(tmp_path):
    with Kept(tmp_path / "a") as kept:
        kept.write(b"abcdef")
        assert kept.truncate(3) == 3
        kept.seek(0)
        assert kept.read(9) == b"abc"
        kept.truncate(5)
        kept.seek(0)
        assert kept.read(9) == b"abc\0\0"
    assert (tmp_path / "a").read_bytes() == b"abc\0\0"


@pytest.mark.parametrize("size", [0, 100, 5_000, 60_000, 200_000])
def test_hdf5_that_finds_the_disk_full_ends_in_an_error_and_the_process_lives(tmp_path, size):
    """Plain h5py ends the process with a segmentation fault here."""

    def write() -> None:
        with h5_file(tmp_path / "a.h5") as (file, _):
            for k in range(20):
                file.create_dataset(f"x{k}", data=np.random.default_rng(k).random((50, 50)))
                file.create_dataset(f"names{k}", data=["gene"] * 50, dtype=h5py.string_dtype())

    with limited(size), pytest.raises(OSError, match="File too large"):
        write()


def test_an_anndata_is_written_as_its_own_method_writes_it(tmp_path):
    a = study()
    a.obsm["pca"], a.uns["note"], a.layers["dense"] = np.ones((200, 3)), {"a": [1, 2], "b": "text"}, a.X.toarray()
    write_h5ad(a, tmp_path / "ours.h5ad")
    a.write_h5ad(tmp_path / "theirs.h5ad")
    ours, theirs = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    assert str(ours) == str(theirs)
    assert (ours.X != theirs.X).nnz == 0
    np.testing.assert_array_equal(ours.layers["dense"], theirs.layers["dense"])
    assert ours.uns["note"]["b"] == theirs.uns["note"]["b"] == "text"
    with h5py.File(tmp_path / "ours.h5ad") as f, h5py.File(tmp_path / "theirs.h5ad") as g:
        assert dict(f.attrs) == dict(g.attrs)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("sparse", [True, False])
def test_an_answer_that_fills_the_disk_on_the_way_stops_there_and_the_earlier_one_stays(tmp_path, suffix, sparse):
    out, a = tmp_path / f"x{suffix}", study(800)
    rows, put = np.random.default_rng(0).random((20, 5_000), dtype=np.float32), 0

    def write(times: int) -> None:
        nonlocal put
        put = 0
        with stored(out, 20 * times, obs=a.obs.iloc[: 20 * times], names=[f"g{j}" for j in range(5_000)], about={}, sparse=sparse) as to:
            for _ in range(times):
                to.put(rows)
                put += 1

    write(1)
    before = (anndata.read_h5ad if suffix == ".h5ad" else anndata.io.read_zarr)(out)
    with limited(100_000), pytest.raises(CheckpointError, match=FULL):
        write(40)
    assert put < 40
    assert names(tmp_path) == [out.name]
    after = (anndata.read_h5ad if suffix == ".h5ad" else anndata.io.read_zarr)(out)
    assert after.shape == before.shape == (20, 5_000)


def test_errors_of_who_writes_are_his_own_and_nothing_is_left(tmp_path):
    def answer() -> None:
        with stored(tmp_path / "x.h5ad", 4, obs=study().obs.iloc[:4], names=["g"], about={}) as to:
            to.put(np.ones((2, 1), dtype=np.float32))
            raise OSError("the source is gone")

    def folder() -> None:
        with replacing(tmp_path / "y") as part, writing(tmp_path / "y"):
            part.write_text("half")
            raise DataError("damaged")

    with pytest.raises(OSError, match="the source is gone"):
        answer()
    with pytest.raises(DataError, match="damaged"):
        folder()
    assert names(tmp_path) == []


def test_a_folder_replaces_a_folder_and_a_file(tmp_path):
    out = tmp_path / "out"
    for text in ("first", "second"):
        with replacing(out) as part:
            part.mkdir()
            (part / text).touch()
        assert names(out) == [text]
    with replacing(out) as part:
        part.write_text("third")
    assert out.read_text() == "third"
    with replacing(out) as part:
        part.mkdir()
    assert out.is_dir()
    assert names(tmp_path) == ["out"]


def test_a_folder_into_which_another_thread_still_writes_is_removed_too(tmp_path):
    over = threading.Event()

    def go_on(part: Path) -> None:
        for k in range(20):
            (part / "c").mkdir(parents=True, exist_ok=True)
            (part / "c" / str(k)).touch()
            time.sleep(0.01)
        over.set()

    def fail() -> None:
        with replacing(tmp_path / "z.zarr") as part:
            threading.Thread(target=go_on, args=(part,)).start()
            time.sleep(0.02)
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    over.wait(5)
    assert names(tmp_path) == []


def test_a_conversion_that_finds_the_disk_full_leaves_nothing_and_the_earlier_store(tmp_path):
    out = convert(study(20), tmp_path / "out.zarr")
    for size in (100, 2_000):
        with limited(size), pytest.raises(CheckpointError, match=FULL):
            convert(study(), out, overwrite=True)
        assert names(tmp_path) == ["out.zarr"]
    assert anndata.io.read_zarr(out).n_obs == 20


COMMAND = """
import resource, sys
from trifold.cli.files import write
from trifold.outputs import write_h5ad
import anndata, numpy as np
a = anndata.AnnData(np.random.default_rng(0).random((500, 300), dtype=np.float32))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)
from pathlib import Path
try:
    write(Path(sys.argv[1]), lambda p: write_h5ad(a, p))
except Exception as error:
    print(type(error).__name__, "disk is full" in str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set with RLIMIT_FSIZE")
def test_a_command_whose_output_does_not_fit_says_so_and_ends_in_good_order(tmp_path):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMMAND, str(tmp_path / "x.h5ad")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "CheckpointError True\n"), done.stderr
    assert names(tmp_path) == []
