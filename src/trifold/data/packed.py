"""What packed chunks unfold to, told before they are unfolded: a chunk of some kilobytes may hold gigabytes of zeros."""

from __future__ import annotations

import bz2
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trifold.data.matrix import Array
from trifold.errors import DataError

FREE = 64 * 2**20  # bytes that any chunk, and any file, may unfold to
RATIO = 500  # bytes for each byte on disk; gzip makes 1,030 zeros into one byte, counts of single cells reach 200
PACKERS = {"blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma"}
AGAIN = "Write the data again with anndata."
_MOST = {"gzip": 1032, "zlib": 1032, "lzf": 88}  # bytes that one byte can unfold to, by the format
_STEP, _PART = 2**20, 2**16  # bytes unfolded, and bytes given, at once
_ZSTD_BLOCK = 128 * 2**10  # bytes that one block of zstd unfolds to at most
Bytes = bytes | memoryview
_H5Packing = tuple[int, str, tuple[int, ...], int]
_FILTERS = {1: "zlib", 32000: "lzf"}  # those of HDF5 that pack


def require_packed(codec: str, data: Bytes, most: int, at: str) -> None:
    """Refuse a packed chunk that unfolds to more than it should.

    blosc, lz4 and zstd say how much they hold, and decoders hold them to it; the others are unfolded piece by piece and thrown away, where
    their length leaves it open.

    Args:
        codec: One of :data:`PACKERS`, or ``"lzf"``.
        data: The packed bytes.
        most: Bytes that it may hold.
        at: Name of the chunk in messages.

    Raises:
        DataError: It holds more, or is damaged.
    """
    if len(data) * _MOST.get(codec, most) <= most:
        return
    try:
        found = _HELD[codec](data, most)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise DataError(f"{at} is damaged: it is not packed with {codec} ({error}). Copy the data again, or write them again.") from None
    if found > most:
        raise DataError(
            f"{at} unfolds to more than the {most:,} bytes that belong there, from {len(data):,} bytes of {codec}. "
            "The data are damaged or made to fill the memory: write them again."
        )


def _stream(decoder: Callable[[], Any], again: bool) -> Callable[[Bytes, int], int]:
    """Bytes in a stream, or streams one after the other, counted until there are more than ``most``."""

    def held(data: Bytes, most: int) -> int:
        found, one = 0, decoder()
        for k in range(0, len(data), _PART):
            part = data[k : k + _PART]
            while part:
                found += len(one.decompress(part, _STEP))
                part = getattr(one, "unconsumed_tail", b"")
                while found <= most and not getattr(one, "needs_input", True) and not one.eof:
                    found += len(one.decompress(b"", _STEP))
                if found > most or (one.eof and not again):
                    return found
                if one.eof:
                    part = one.unused_data.lstrip(b"\0")
                    one = decoder()
        return found

    return held


def _zstd(data: Bytes, most: int) -> int:
    """Bytes in frames of zstd: what each says, else what its blocks can hold at most (RFC 8878, section 3.1.1)."""
    found = k = 0
    while k < len(data) and found <= most:
        (magic,) = struct.unpack_from("<I", data, k)
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to be skipped
            k += 8 + struct.unpack_from("<I", data, k + 4)[0]
            continue
        if magic != 0xFD2FB528:
            raise ValueError("no frame begins where one must")
        head = data[k + 4]
        single, size = bool(head & 0x20), (0, 2, 4, 8)[head >> 6]
        size = 1 if single and not size else size
        k += 5 + (not single) + (0, 1, 2, 4)[head & 3]
        said = int.from_bytes(data[k : k + size], "little") + (256 if size == 2 else 0)
        k, blocks, last = k + size, 0, False
        while not last and blocks <= most:
            block = int.from_bytes(data[k : k + 3], "little")
            if k + 3 > len(data):
                raise ValueError("it ends within a block")
            last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
            blocks += _ZSTD_BLOCK if kind == 2 else length
            k += 3 + (1 if kind == 1 else length)
        k += 4 * bool(head & 4)
        found += said if size else blocks
    return found


def _lzf(data: Bytes, most: int) -> int:
    found = k = 0
    while k < len(data) and found <= most:
        head = data[k]
        if head < 32:  # as many bytes, plus one, follow as they are
            found, k = found + head + 1, k + head + 2
        else:
            length = head >> 5
            if length == 7:
                k += 1
                length += data[k]
            found, k = found + length + 2, k + 2
    return found


_HELD: dict[str, Callable[[Bytes, int], int]] = {
    "blosc": lambda data, most: struct.unpack_from("<I", data, 4)[0],
    "lz4": lambda data, most: struct.unpack_from("<I", data)[0],
    "zstd": _zstd,
    "lzf": _lzf,
    "zlib": _stream(zlib.decompressobj, again=False),
    "gzip": _stream(lambda: zlib.decompressobj(31), again=True),
    "bz2": _stream(bz2.BZ2Decompressor, again=True),
    "lzma": _stream(lambda: lzma.LZMADecompressor(memlimit=2**28), again=True),
}


# -- HDF5 ----------------------------------------------------------------------------------------------------------------------------


def require_whole(element: Any) -> None:
    """Refuse an element of an HDF5 file, which is about to be read whole, with chunks that unfold to more than they should.

    Args:
        element: A group or array of h5py; links in it lead to no circle (:func:`trifold.data.preflight.require_h5`).

    Raises:
        DataError: Such a chunk; the message names the array.
    """
    for array, at in _arrays(element.id, element.name or ""):
        packing = _packing(array)
        if packing is None or array.get_storage_size() * _MOST[packing[1]] <= FREE:
            continue
        found: list[Any] = []
        array.chunk_iter(found.append)
        for chunk in found:
            _require_chunk(array, chunk.chunk_offset, chunk.size, chunk.filter_mask, packing, at)


def require_pieces(values: Any, starts: Array, stops: Array, known: dict[str, Array]) -> None:
    """Refuse pieces of a stored array along its first axis with chunks that unfold to more than they should.

    Args:
        values: [n, ...] an HDF5 data set, or an array of a zarr folder; those of other stores are looked at while they are read.
        starts, stops: [k] where each piece begins and ends; ascending.
        known: Name of a data set -> [chunks along the first axis] whether those have been looked at; it is brought up to date.

    Raises:
        DataError: Such a chunk.
    """
    looked = _looks(values)
    if looked is None:
        return
    shape, look = looked
    grid = [-(-n // c) for n, c in zip(values.shape, shape, strict=True)]
    seen = known.setdefault(str(values.name), np.zeros(grid[0], dtype=bool))
    for start, stop in zip((starts // shape[0]).tolist(), (-(-stops // shape[0])).tolist(), strict=True):
        for k in (start + np.flatnonzero(~seen[start:stop])).tolist():
            for rest in np.ndindex(*grid[1:]):
                look((k, *rest))
            seen[k] = True


def _looks(values: Any) -> tuple[tuple[int, ...], Callable[[tuple[int, ...]], None]] | None:
    """(shape of a chunk, what looks at the chunk of given coordinates); None where no chunk needs it."""
    if hasattr(values, "id"):
        array, packing = values.id, _packing(values.id)
        if packing is None:
            return None

        def look(at: tuple[int, ...]) -> None:
            offset = tuple(i * c for i, c in zip(at, packing[2], strict=True))
            chunk = array.get_chunk_info_by_coord(offset)
            _require_chunk(array, offset, chunk.size, chunk.filter_mask, packing, str(values.name))

        return packing[2], look
    from zarr.storage import LocalStore

    if not isinstance(values.store, LocalStore):
        return None
    from trifold.data.preflight import packing_of_array  # it reads descriptions, and stands above this file

    said = values.metadata.to_dict()
    how, folder = packing_of_array(said, values.name), values.store.root / values.path
    if how.codec is None:
        return None

    def look_at_file(at: tuple[int, ...]) -> None:
        path = folder / values.metadata.encode_chunk_key(at)
        if path.is_file():
            how.require(path.read_bytes(), repr(str(path)))

    return tuple(values.shards or values.chunks), look_at_file


def _require_chunk(array: Any, offset: tuple[int, ...], size: int, mask: int, packing: _H5Packing, at: str) -> None:
    k, codec, _, most = packing
    if size * _MOST[codec] > most and not mask >> k & 1:
        require_packed(codec, array.read_direct_chunk(offset)[1], most, at)


def _packing(array: Any) -> _H5Packing | None:
    """(which filter, its name, shape of a chunk, bytes that one may hold) of an HDF5 data set; None where nothing is packed."""
    from h5py import h5d

    plan = array.get_create_plist()
    if plan.get_layout() != h5d.CHUNKED:
        return None
    for k in range(plan.get_nfilters()):
        codec = _FILTERS.get(plan.get_filter(k)[0])
        if codec:
            chunk = plan.get_chunk()
            return k, codec, chunk, max(FREE, 2 * math.prod(chunk) * array.get_type().get_size())  # text is half as long in memory
    return None


def _arrays(item: Any, at: str) -> Iterator[tuple[Any, str]]:
    from h5py import h5d, h5g, h5o

    if isinstance(item, h5d.DatasetID):
        yield item, at
    elif isinstance(item, h5g.GroupID):
        for key in item:
            yield from _arrays(h5o.open(item, key), f"{at}/{key.decode(errors='replace')}")


# -- zarr ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packing:
    """How the chunks of a zarr array are packed.

    Attributes:
        codec: One of :data:`PACKERS`; None where they are stored as they are.
        summed: Whether a CRC-32C of 4 bytes follows.
        text: Whether chunks hold text or bytes of any length, as a count and that many lengths and values.
        most: Bytes that a chunk of numbers may hold.
        inner: Chunks within a shard; None where there are no shards.
        index: Bytes of the shard's list of chunks.
        first: Whether that list is at the begin of the shard.
    """

    codec: str | None
    summed: bool
    text: bool
    most: int
    inner: int | None = None
    index: int = 0
    first: bool = False

    def require(self, data: Bytes, at: str) -> None:
        """Refuse a chunk, or a whole shard, that unfolds to more than it should.

        Raises:
            DataError: The message names the chunk by ``at``.
        """
        if self.inner is None:
            self._require(data, at)
            return
        if len(data) < self.index:
            raise DataError(f"{at} is damaged: it is shorter than its list of chunks. {AGAIN}")
        listed = data[: self.index] if self.first else data[len(data) - self.index :]
        for offset, length in np.frombuffer(listed[: 16 * self.inner], dtype="<u8").reshape(-1, 2).tolist():
            if offset != 2**64 - 1:
                self._require(data[offset : offset + length], at)

    def require_part(self, data: Bytes, at: str, start: int | None) -> None:
        """Refuse one chunk of a shard.

        Args:
            data: Bytes of the shard.
            at: Name in messages.
            start: Position of the first in the shard; None for the last ones of it.

        Raises:
            DataError: It unfolds to more than it should.
        """
        is_list = start is None or (self.first and start == 0)
        if self.inner is not None and not is_list:
            self._require(data, at)

    def _require(self, data: Bytes, at: str) -> None:
        data = data[:-4] if self.summed else data
        if self.codec is not None:
            require_packed(self.codec, data, max(FREE, RATIO * len(data)) if self.text else self.most, at)
        if self.text:
            if self.codec is not None:
                import numcodecs  # type: ignore[import-untyped]

                data = bytes(numcodecs.get_codec({"id": self.codec}).decode(data))
            count = int.from_bytes(data[:4], "little")
            if 4 * count > len(data) - 4:
                raise DataError(f"{at} is damaged: it claims {count:,} texts in {len(data):,} bytes. {AGAIN}")


def packing_of(names: list[str], text: bool, most: int, at: str, **shard: Any) -> Packing:
    """How chunks are packed by the codecs that turn bytes into bytes.

    Args:
        names: Of the codecs, in the order of writing.
        text, most: As in :class:`Packing`.
        at: Name of the array in messages.
        shard: ``inner``, ``index`` and ``first``, as in :class:`Packing`.

    Raises:
        DataError: Codecs one upon another, which AnnData does not write, and which unfold to the product of what each does.
    """
    packers = [name for name in names if name in PACKERS]
    after = names[names.index(packers[0]) + 1 :] if packers else []
    if len(packers) > 1 or after not in ([], ["crc32c"]) or (text and names not in (packers, [*packers, "crc32c"])):
        raise DataError(f"{at} is packed with {' and '.join(map(repr, names))}, one upon another; it is not read. {AGAIN}")
    return Packing(packers[0] if packers else None, names[-1:] == ["crc32c"], text, max(FREE, most), **shard)
