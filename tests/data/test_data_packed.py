"""What packed chunks unfold to is known before they are unfolded, to the byte; and text in circles is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import anndata
import h5py
import numcodecs
import numpy as np
import pytest

from trifold.data import open, packed
from trifold.data.packed import packing_of, require_packed
from trifold.data.watched import WatchedFile
from trifold.errors import DataError

SIZE = 3_000_000
PACK = {
    "zlib": numcodecs.Zlib(1).encode,
    "gzip": numcodecs.GZip(1).encode,
    "bz2": numcodecs.BZ2(1).encode,
    "lzma": numcodecs.LZMA(preset=0).encode,
    "zstd": numcodecs.Zstd(1).encode,
    "lz4": numcodecs.LZ4().encode,
    "blosc": numcodecs.Blosc("lz4").encode,
}


def lzf(data: bytes) -> bytes:
    """As h5py packs it."""
    with h5py.File(io.BytesIO(), "w") as f:
        made = f.create_dataset("x", data=np.frombuffer(data, dtype="u1"), chunks=(len(data),), compression="lzf")
        return bytes(made.id.read_direct_chunk((0,))[1])


PACK["lzf"] = lzf
KINDS = {"zeros": bytes(SIZE), "counts": np.random.default_rng(0).poisson(1.0, SIZE).astype("u1").tobytes()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", PACK)
def test_what_a_chunk_holds_is_known_to_the_byte(codec, kind):
    data = bytes(PACK[codec](KINDS[kind]))
    require_packed(codec, data, SIZE, "chunk")
    with pytest.raises(DataError, match="chunk unfolds to more than the 2,999,999 bytes"):
        require_packed(codec, data, SIZE - 1, "chunk")


@pytest.mark.parametrize("codec", [c for c in PACK if c not in ("blosc", "lz4")])
def test_a_damaged_chunk_is_refused_or_holds_no_more_than_it_may(codec):
    data = bytes(PACK[codec](KINDS["counts"]))
    rng = np.random.default_rng(0)
    for _ in range(30):
        broken = bytearray(data[: int(rng.integers(1, 5000))])
        broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(DataError):
            require_packed(codec, bytes(broken), 1, "chunk")
    if codec != "lzf":
        with pytest.raises(DataError, match=f"chunk is damaged: it is not packed with {codec}"):
            require_packed(codec, b"nothing of the kind", 1, "chunk")


def test_frames_of_zstd_that_do_not_say_their_size_are_counted_by_blocks():
    head = struct.pack("<IBB", 0xFD2FB528, 0, 0x38)
    raw, repeated = (5 << 3).to_bytes(3, "little") + b"12345", (7 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x"
    frame = head + raw + repeated
    assert bytes(numcodecs.Zstd().decode(frame)) == b"12345xxxxxxx"
    require_packed("zstd", frame, 12, "chunk")
    with pytest.raises(DataError, match="more than the 11 bytes"):
        require_packed("zstd", frame, 11, "chunk")
    require_packed("zstd", struct.pack("<II", 0x184D2A53, 4) + b"skip" + frame, 12, "chunk")
    with pytest.raises(DataError, match="more than the 23 bytes"):
        require_packed("zstd", frame + frame, 23, "chunk")


def test_members_of_gzip_are_counted_together_and_what_follows_zlib_is_not():
    one = numcodecs.GZip(9).encode(bytes(1000))
    with pytest.raises(DataError, match="more than the 1,999 bytes"):
        require_packed("gzip", one + one, 1999, "chunk")
    require_packed("gzip", one + one + bytes(8), 2000, "chunk")
    require_packed("zlib", zlib.compress(bytes(1000)) + b"four", 1000, "chunk")


def test_codecs_one_upon_another_are_refused():
    for names, text in ((["gzip", "zstd"], False), (["zstd", "adler32"], False), (["shuffle", "zstd"], True), (["crc32"], True)):
        with pytest.raises(DataError, match=r"'obs/x' is packed with .*one upon another"):
            packing_of(names, text, 100, "'obs/x'")
    assert packing_of(["adler32", "zstd", "crc32c"], False, 100, "'obs/x'").summed


@pytest.mark.parametrize("codec", [None, "zstd", "gzip", "blosc"])
def test_texts_are_no_more_than_their_bytes_hold(codec):
    how = packing_of([codec] if codec else [], True, 100, "'obs/x'")
    pack = PACK[codec] if codec else bytes
    sound = numcodecs.VLenUTF8().encode(np.array(["a", "", "bc"], dtype=object))
    how.require(bytes(pack(sound)), "chunk")
    with pytest.raises(DataError, match="chunk is damaged: it claims 6 texts in 19 bytes"):
        how.require(bytes(pack((6).to_bytes(4, "little") + bytes(sound)[4:])), "chunk")


def test_a_chunk_of_an_h5ad_matrix_is_looked_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "FREE", 64)
    x = np.random.default_rng(0).poisson(1.0, (90, 40)).astype("f4")
    anndata.AnnData(x).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    source, looked = open(tmp_path / "a.h5ad"), []
    monkeypatch.setattr(packed, "_require_chunk", lambda array, offset, *rest: looked.append(offset))
    source.rows([80, 3])
    assert len(looked) == len(set(looked)) > 0
    before = len(looked)
    assert np.array_equal(source.rows([80, 3]), x[[80, 3]])
    assert len(looked) == before


# -- text in circles -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path) -> bytes:
    anndata.AnnData(np.ones((9, 4), dtype="f4")).write_h5ad(tmp_path / "whole.h5ad")
    return (tmp_path / "whole.h5ad").read_bytes()


@pytest.mark.parametrize("size", [1, 3, 7, 512, 10**6])
def test_a_watched_file_gives_its_bytes_and_finds_a_heap_however_it_is_read(whole, size):
    begin = whole.index(b"GCOL")

    def read(data: bytes) -> bytes:
        file, got = WatchedFile(io.BytesIO(data), "a.h5ad"), b""
        while part := file.read(size):
            got += part
        assert file.tell() == file.seek(0, io.SEEK_END) == len(data)
        return got

    part = whole[max(0, begin - 50) : begin + 5000] if size < 9 else whole
    at = part.index(b"GCOL")
    assert read(part) == part
    with pytest.raises(DataError, match=rf"'a.h5ad' is damaged: the text at byte {at + 16:,} has no end"):
        read(part[: at + 16] + bytes(16) + part[at + 32 :])


def test_text_that_leads_to_itself_is_refused_and_not_followed(whole, tmp_path):
    path, at = tmp_path / "a.h5ad", -1
    while (at := whole.find(b"GCOL", at + 1)) >= 0:
        for entry in ((0, 0), (1, 2**64 - 16), (1, 2**64 - 64)):  # to itself, round the end to itself, back
            path.write_bytes(whole[: at + 16] + struct.pack("<H6xQ", *entry) + whole[at + 32 :])
            with pytest.raises(DataError, match="has no end"):
                open(path)


def test_an_h5ad_file_with_short_lengths_is_refused(tmp_path):
    plan = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    plan.set_sizes(4, 4)
    h5py.h5f.create(str(tmp_path / "a.h5ad").encode(), fcpl=plan).close()
    with pytest.raises(DataError, match=r"lengths in \(4, 4\) bytes; needed: 8"):
        open(tmp_path / "a.h5ad")
