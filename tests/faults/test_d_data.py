"""Reliability items 57 to 60 of data files: what could open other files, run code, go in circles or fill the memory is refused first."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from fault_cases import CELLS, study
from hostile_cases import FORMATS, describe, refused

from trifold.data import open, preflight
from trifold.data.convert import convert
from trifold.errors import DataError, TrifoldError


@pytest.mark.parametrize("name", FORMATS)
def test_plain_files_of_every_kind_are_read(files, name):
    assert np.array_equal(open(files / name).rows(np.arange(CELLS)).toarray(), study().X.toarray())


# -- code ----------------------------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_item_57_a_pickle_codec_of_zarr_is_refused_by_name_and_nothing_is_run(files, tmp_path):
    canary = tmp_path / "canary"
    payload = pickle.dumps(Bomb(canary))
    kind = {
        "dtype": "|O",
        "filters": [{"id": "pickle", "protocol": 5}],
        "compressor": None,
        "fill_value": base64.b64encode(payload).decode(),
    }
    for array in ("obs/donor", "obs/_index", "obs/condition/categories", "uns/planted"):
        folder = Path(shutil.copytree(files / "v2", tmp_path / array.replace("/", "_") / "v2"))
        (folder / array).mkdir(exist_ok=True)
        (folder / array / ".zarray").write_text(json.dumps({"zarr_format": 2, "shape": [CELLS], "chunks": [CELLS], "order": "C", **kind}))
        (folder / array / "0").write_bytes(payload)
        describe(folder, array)
        refused(folder, "'pickle'", array, "run code")
    describe(files / "v3", "obs/dose", codecs=[{"name": "numcodecs.pickle", "configuration": {}}])
    refused(files / "v3", "'numcodecs.pickle'", "obs/dose")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr", "a.pt"])
def test_item_57_a_pickle_that_is_named_as_data_is_refused_and_not_run(tmp_path, name):
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(canary)))
    refused(tmp_path / name, name)
    assert not canary.exists()


def test_codecs_that_are_unknown_are_refused_by_name_also_within_shards(files):
    describe(files / "v2", "obs/dose", compressor={"id": "mystery"})
    refused(files / "v2", "'mystery'", "obs/dose")
    inner = [{"name": "bytes"}, {"name": "mystery"}]
    shard = {"name": "sharding_indexed", "configuration": {"chunk_shape": [1], "codecs": inner, "index_codecs": [{"name": "bytes"}]}}
    describe(files / "v3", "obs/dose", codecs=[shard])
    refused(files / "v3", "'mystery'", "obs/dose")


def test_an_h5ad_filter_that_is_not_there_is_refused_by_name(files):
    with h5py.File(files / "h5ad", "r+") as f:
        packed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        packed.set_chunk((10,))
        packed.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        packed.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(f["obs"].id, b"packed", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((CELLS,)), packed)
    refused(files / "h5ad", "/obs/packed", "zstd", "hdf5plugin")


# -- other files ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["obs/planted", "layers/planted", "uns/planted", "planted"])
def test_item_59_links_to_other_files_are_refused_by_name(files, place):
    with h5py.File(files / "h5ad", "r+") as f:
        f[place] = h5py.ExternalLink("/etc/hostname", "/x")
    refused(files / "h5ad", f"/{place}", "link to another file", "/etc/hostname")
    with pytest.raises(DataError, match="another file"):
        convert(files / "h5ad", files / "out.zarr")
    with pytest.raises(DataError, match="another file"):
        open([files / "v3", files / "h5ad"])


@pytest.mark.parametrize("kind", ["storage", "virtual"])
def test_item_59_values_in_other_files_are_refused_by_name(files, kind):
    secret = files / "secret"
    secret.write_bytes(b"\1" * 8 * CELLS)
    with h5py.File(files / "h5ad", "r+") as f:
        if kind == "storage":
            f["obs"].create_dataset("planted", (CELLS,), "f8", external=[(str(secret), 0, 8 * CELLS)])
        else:
            layout = h5py.VirtualLayout((CELLS,), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "x", (CELLS,))
            f["obs"].create_virtual_dataset("planted", layout)
    refused(files / "h5ad", "/obs/planted", "another file")


def test_item_59_a_backed_anndata_is_looked_at_too(files):
    (files / "secret").write_bytes(b"\1" * 4 * 20 * CELLS)
    with h5py.File(files / "h5ad", "r+") as f:
        del f["X"]
        made = f.create_dataset("X", (CELLS, 20), "f4", external=[(str(files / "secret"), 0, 4 * 20 * CELLS)])
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    a = anndata.read_h5ad(files / "h5ad", backed="r")
    with pytest.raises(DataError, match="another file"):
        open(a)
    a.file.close()


def test_links_in_circles_and_to_nothing_are_refused_and_those_to_arrays_are_read(files):
    def planted(name: str, target: object) -> Path:
        path = files / name
        shutil.copy(files / "h5ad", path)
        with h5py.File(path, "r+") as f:
            f[f"obs/{name}"] = f[target[1:]] if isinstance(target, str) and target.startswith("=") else h5py.SoftLink(target)
        return path

    refused(planted("hard", "=obs"), "/obs/hard", "no end")
    refused(planted("up", "/obs"), "/obs/up", "'/obs'")
    refused(planted("root", "/"), "/obs/root")
    refused(planted("self", "/obs/self"), "/obs/self", "not in the file")
    refused(planted("nowhere", "/absent"), "/obs/nowhere", "not in the file")
    path = files / "h5ad"
    with h5py.File(path, "r+") as f:
        f["layers/again"] = h5py.SoftLink("/X")
    assert np.array_equal(open(path, "again").rows([3]).toarray(), open(path).rows([3]).toarray())


def test_a_file_that_unfolds_to_millions_of_groups_is_refused(files):
    with h5py.File(files / "h5ad", "r+") as f:
        for k in range(25):
            f.create_group(f"uns/g{k}")
        for k in range(24):
            f[f"uns/g{k}/a"] = f[f"uns/g{k}/b"] = f[f"uns/g{k + 1}"]
    start = time.process_time()
    refused(files / "h5ad", "100,000 groups")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_item_58_links_that_lead_out_of_a_zarr_folder_are_refused_by_name(files, name):
    folder = files / name
    chunk = next(p for p in (folder / "obs" / "dose").rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr")))
    secret = files / "secret"
    chunk.rename(secret)
    chunk.symlink_to(secret)
    refused(folder, chunk.name, "link out of the zarr folder")
    chunk.unlink()
    os.mkfifo(chunk)
    refused(folder, chunk.name, "device")
    chunk.unlink()
    secret.rename(chunk)
    (folder / "obs" / "planted").symlink_to(files)
    refused(folder, "planted")
    (folder / "obs" / "planted").unlink()
    files.joinpath("link.zarr").symlink_to(folder)
    assert open(files / "link.zarr").n == CELLS


def test_item_58_descriptions_cannot_name_what_is_outside(files):
    path = files / "v2" / ".zmetadata"
    said = json.loads(path.read_text())
    said["metadata"]["obs/../../secret/.zarray"] = said["metadata"]["obs/dose/.zarray"]
    path.write_text(json.dumps(said))
    refused(files / "v2", "../", "outside the folder")


def test_item_58_devices_and_pipes_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.h5ad")
    refused(tmp_path / "a.h5ad", "pipe")
    refused(Path("/dev/zero"), "device")


def test_item_58_a_zip_store_is_refused_and_nothing_is_unpacked(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as z:
        z.writestr("../../evil", "x")
        z.write(files / "v3" / "zarr.json", "zarr.json")
    before = sorted(tmp_path.rglob("*"))
    refused(tmp_path / "a.zarr.zip", "zip archive")
    assert sorted(tmp_path.rglob("*")) == before


def test_item_58_an_address_of_this_machine_is_looked_at_like_a_path(files):
    pytest.importorskip("fsspec")
    assert open(f"file://{files / 'v3'}").n == CELLS
    (files / "v3" / "obs" / "planted").symlink_to(files)
    with pytest.raises(DataError, match="planted"):
        open(f"file://{files / 'v3'}")


def test_a_zarr_folder_at_an_address_is_looked_at_while_it_is_read(files):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    try:
        describe(files / "v2", "obs/dose", filters=[{"id": "pickle"}])
        memory.put(str(files / "v2"), "/planted.zarr", recursive=True)
        memory.put(str(files / "v3"), "/long.zarr", recursive=True)
        memory.pipe("/long.zarr/zarr.json", b" " * (preflight.LONGEST + 1) + b"{}")
        with pytest.raises(DataError, match="'pickle'"):
            open("memory://planted.zarr")
        with pytest.raises(DataError, match="longer than"):
            open("memory://long.zarr")
    finally:
        memory.rm("/", recursive=True)


# -- cost and damage -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_look_takes_little_time_and_memory(files, name):
    with h5py.File(files / "h5ad", "r") as f:
        look = (lambda: preflight.require_h5(f, "h5ad")) if name == "h5ad" else (lambda: preflight.require_zarr(str(files / name)))
        look()
        seconds = []
        for _ in range(5):
            start = time.thread_time()
            look()
            seconds.append(time.thread_time() - start)
        tracemalloc.start()
        look()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert min(seconds) < 0.05
    assert most < 2**20


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("times", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_one_flipped_bit_anywhere_in_a_data_file_is_read_or_refused_by_our_errors(files, name, times):
    path, rng = files / name, np.random.default_rng(1)
    parts = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    sizes = np.array([p.stat().st_size for p in parts], dtype=float)
    for _ in range(times):
        part = parts[rng.choice(len(parts), p=sizes / sizes.sum())]
        whole = part.read_bytes()
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        part.write_bytes(bytes(broken))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                source = open(path)
                source.rows(np.arange(source.n))
            except TrifoldError:
                pass
        part.write_bytes(whole)
