"""Reliability item 60: small data files that claim, or unfold to, gigabytes are refused under a limit, on this machine and at addresses."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from fault_cases import CELLS, study
from hostile_cases import describe, refused

from trifold.data import open, packed
from trifold.data.watched import Described
from trifold.errors import DataError

ZEROS = zlib.compress(bytes(2**24), 9)
BOMB = {"zlib": zlib.compress(bytes(2**28), 9)}  # a quarter of a gigabyte in a quarter of a megabyte
BOMB["gzip"] = struct.pack("<4BI2B", 31, 139, 8, 0, 0, 2, 255) + BOMB["zlib"][2:-4] + struct.pack("<2I", zlib.crc32(bytes(2**28)), 2**28)
BOMB["zstd"] = numcodecs.Zstd().encode(bytes(2**28))
BOMB["zstd without size"] = struct.pack("<IBB", 0xFD2FB528, 0, 0x38) + b"\x02\0\x10\0" * 2**11 + b"\x03\0\x10\0"
BOMB["blosc"] = bytes(numcodecs.Blosc("zstd").encode(bytes(2**28)))
BOMB["lzf"] = b"\0\0" + b"\xe0\xff\0" * 2**20
COUNTLESS = numcodecs.Zstd().encode((2**31).to_bytes(4, "little") + bytes(8))  # two milliards of texts


def h5_bombs(files: Path) -> list[Path]:
    made = []

    def h5(name: str, place: str, *shape: int, **how: object) -> h5py.File:
        made.append(files / name)
        shutil.copy(files / "h5ad", files / name)
        f = h5py.File(files / name, "r+")
        f.pop(place, None)
        f.create_dataset(place, shape, **how)
        return f

    h5("wide", "X", CELLS, 2**40, dtype="f4", chunks=(1, 1024)).close()
    h5("column", "obs/dose", 2**40, dtype="f8", chunks=(1024,)).close()
    h5("chunk", "obs/dose", CELLS, dtype="f8", chunks=(2**28,), maxshape=(None,)).close()
    h5("crumbs", "obs/dose", 2**26, dtype="i1", chunks=(1,)).close()
    h5("pointers", "X/indptr", 2**34, dtype="i8", chunks=(1024,)).close()
    with h5("gzip", "obs/dose", 2**31, dtype="i1", chunks=(2**24,), compression="gzip") as f:
        for k in range(2**7):
            f["obs/dose"].id.write_direct_chunk((k * 2**24,), ZEROS)
    for how, codec in (("gzip", "zlib"), ("lzf", "lzf")):
        for name, place, size in (("dose", "obs/dose", CELLS), ("data", "X/data", 402), ("pointers", "X/indptr", CELLS + 1)):
            with h5py.File(files / "h5ad") as f:
                size = f[place].shape[0]
            with h5(f"{how} in {name}", place, size, dtype="f8" if name == "dose" else "i4", chunks=(size,), compression=how) as f:
                f[place].id.write_direct_chunk((0,), BOMB[codec])
                f[place].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return made


def packed_as(new: bool, codec: str) -> dict[str, object]:
    """What a description says of chunks that are packed with a codec of numcodecs."""
    settings: dict[str, object] = {"gzip": {"level": 9}, "zstd": {"level": 3, "checksum": False}, "zlib": {"level": 9}}.get(codec, {})
    if codec == "blosc":
        settings = {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle" if new else 0, "blocksize": 0} | ({"typesize": 8} if new else {})
    if not new:
        return {"filters": None, "compressor": {"id": codec} | {k: v for k, v in settings.items() if k != "checksum"}}
    name = "numcodecs.zlib" if codec == "zlib" else codec
    return {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": name, "configuration": settings}]}


def chunk_of(folder: Path, array: str, k: int = 0) -> Path:
    path = folder / array / (f"c/{k}" if folder.name == "v3" else str(k))
    path.parent.mkdir(exist_ok=True)
    return path


def zarr_bombs(files: Path) -> list[Path]:
    made = []
    for name in ("v2", "v3"):
        new = name == "v3"

        def fresh(kind: str, name: str = name) -> Path:
            made.append(Path(shutil.copytree(files / name, files / f"{kind}_{name}" / name)))
            return made[-1]

        for kind, shape, chunk in (("shape", 2**40, 2**20), ("chunk", CELLS, 2**40), ("crumbs", 2**26, 1), ("filled", 2**31, 2**24)):
            folder = fresh(kind)
            grid = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}}} if new else {"chunks": [chunk]}
            describe(folder, "obs/dose", shape=[shape], **grid, **(packed_as(new, "zlib") if kind == "filled" else {}))
            for k in range(2**7 if kind == "filled" else 0):
                chunk_of(folder, "obs/dose", k).write_bytes(ZEROS)
        for kind, data in BOMB.items():
            for array in ("obs/dose", "X/data") if kind != "lzf" else ():
                folder = fresh(f"{kind} in {array.replace('/', ' ')}")
                describe(folder, array, **packed_as(new, kind.split()[0]))
                chunk_of(folder, array).write_bytes(data)
        folder = fresh("texts")
        names = "obs/_index/values" if (folder / "obs" / "_index" / "values").is_dir() else "obs/_index"  # by pandas 3, and before
        if new:
            describe(folder, names, codecs=[{"name": "vlen-utf8"}, packed_as(new, "zstd")["codecs"][1]])
        else:
            describe(folder, names, compressor={"id": "zstd", "level": 0})
        chunk_of(folder, names).write_bytes(COUNTLESS)
        for kind, data in (("brackets", b"[" + b"[]," * 10**6 + b"[]]"), ("deep", b"[" * 150_000), ("long", b" " * 2**26 + b"{}")):
            (fresh(kind) / "obs" / ("zarr.json" if new else ".zattrs")).write_bytes(data)
    return made


CHILD = """
import resource, sys
io_open = open
import trifold.model, anndata, fsspec, h5py, zarr, numcodecs
from trifold.data import open
from trifold.errors import DataError
remote = sys.argv[1] == "remote"
memory = fsspec.filesystem("memory")
def place(path):
    if not remote:
        return path
    memory.rm("/", recursive=True) if memory.ls("/") else None
    memory.put(path, "/there/a", recursive=True)
    return "memory://there/a"
for path in sys.argv[2:4]:
    open(place(path)).rows([0])  # whatever is imported by that
held = int([line for line in io_open("/proc/self/status") if line.startswith("VmSize")][0].split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 2**30,) * 2)
for path in sys.argv[4:]:
    where = place(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        source = open(where)
        source.rows(range(min(source.n, 10)))
        print("READ", path)
    except DataError as error:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print("refused" if used < 100 * 1024 else f"TOOK {used} KiB", path, str(error)[:300])
    except BaseException as error:
        print("FOREIGN", path, repr(error)[:300])
"""


def said_of(files: Path, paths: list[Path], place: str) -> list[str]:
    child = [sys.executable, "-W", "ignore", "-c", CHILD, place, *map(str, (files / "h5ad", files / "v3", *paths))]
    done = subprocess.run(child, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("refused", "TOOK", "READ", "FOREIGN"))]
    assert len(lines) == len(paths)
    return lines


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
@pytest.mark.parametrize("place", ["local", "remote"])
def test_item_60_bombs_are_refused_within_100_mb_where_a_gigabyte_is_left(files, place):
    paths = [*h5_bombs(files), *zarr_bombs(files)]
    if place == "remote":  # where descriptions are gathered, single ones are not read
        paths = [path for path in paths if path.parent.name.split("_")[0] not in ("brackets", "deep", "long")]
    else:
        with zipfile.ZipFile(files / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("zarr.json", bytes(2**26))
        paths.append(files / "zeros.zip")
    assert all(path.stat().st_size < 2**23 for path in paths)
    assert [line for line in said_of(files, paths, place) if not line.startswith("refused")] == []


def test_a_sparse_file_of_constant_columns_is_no_bomb(tmp_path):
    a = study()
    for k in range(30):
        a.obs[f"constant_{k}"] = 0.0
    a.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    assert open(tmp_path / "a.h5ad").n == CELLS


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_item_60_a_bomb_within_a_shard_is_refused_and_sound_shards_are_read(files, first, whole):
    folder = files / "v3"
    with h5py.File(files / "h5ad") as f:
        values = f["X/data"][:]
    shutil.rmtree(folder / "X" / "data")
    codec = zarr.codecs.ShardingCodec(
        chunk_shape=(1 << 7,), codecs=[zarr.codecs.BytesCodec(), zarr.codecs.GzipCodec()], index_location="start" if first else "end"
    )
    made = zarr.create_array(folder / "X" / "data", shape=values.shape, chunks=(1 << 9,), dtype="f4", serializer=codec, compressors=None)
    made[:] = values
    said = json.loads((folder / "zarr.json").read_text())
    (folder / "zarr.json").write_text(json.dumps({k: v for k, v in said.items() if k != "consolidated_metadata"}))
    index = np.arange(CELLS) if whole else [3, 5]
    assert np.array_equal(open(folder).rows(index).toarray(), study().X.toarray()[index])
    shard = chunk_of(folder, "X/data")
    data = shard.read_bytes()
    listed = data[:64] if first else data[-68:-4]
    listed = struct.pack("<2Q", len(data), len(BOMB["gzip"])) + listed[16:]  # the first chunk, at the end or in the middle
    listed += bytes(numcodecs.CRC32C(location="end").encode(listed))[-4:]
    shard.write_bytes((listed + data[68:] if first else data) + BOMB["gzip"] + (b"" if first else listed))
    refused(folder, "unfolds to more", "X/data")


def test_chunks_within_limits_are_read_also_if_they_hold_more_than_is_free(files, monkeypatch):
    monkeypatch.setattr(packed, "FREE", 64)
    for name in ("h5ad", "v2", "v3"):
        assert np.array_equal(open(files / name).rows(np.arange(CELLS)).toarray(), study().X.toarray())


def test_what_an_address_does_not_hold_is_refused_before_it_is_read(files, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    try:
        for name in ("v2", "v3"):
            grid = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**23]}}} if name == "v3" else {"chunks": [2**23]}
            describe(files / name, "obs/dose", shape=[2**28], **grid)
            memory.put(str(files / name), f"/{name}", recursive=True)
            refused(f"memory://{name}", "2 GiB", "obs/dose", "bytes are there")
            with monkeypatch.context() as m:
                m.setattr(type(memory), "find", lambda *args, **kwargs: {}["absent"])
                refused(f"memory://{name}", "2 GiB", "cannot tell", "Copy the data to this machine")
    finally:
        memory.rm("/", recursive=True)


def test_an_array_that_is_described_twice_and_not_alike_is_refused():
    array = {"zarr_format": 2, "shape": [9], "chunks": [9], "dtype": "<f4", "order": "C", "fill_value": 0, "filters": None}
    described = Described("a.zarr", None)
    for compressor in ({"id": "gzip"}, {"id": "gzip"}):
        described.describe("obs/dose/.zarray", json.dumps(array | {"compressor": compressor}).encode())
    with pytest.raises(DataError, match=r"'a\.zarr' describes obs/dose twice, and not alike"):
        described.describe(".zmetadata", json.dumps({"metadata": {"obs/dose/.zarray": array | {"compressor": None}}}).encode())


def test_zarrs_is_given_no_chunk_that_unfolds_to_more_than_it_should(files):
    pytest.importorskip("zarrs")
    describe(files / "v3", "X/data", **packed_as(True, "gzip"))
    chunk_of(files / "v3", "X/data").write_bytes(BOMB["gzip"])
    refused(files / "v3", "unfolds to more", "X/data")
