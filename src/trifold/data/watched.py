"""Bytes that are looked at on their way from a file to the library that reads it."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Callable
from typing import Any

from trifold.data import preflight
from trifold.data.packed import AGAIN, FREE, Packing
from trifold.errors import DataError

_BEGIN = b"GCOL"  # of each collection of text in an HDF5 file
_HEAP = re.compile(_BEGIN)
_UNTOLD = 2**30  # bytes that may be claimed where a store cannot tell how much it holds


class WatchedFile(io.RawIOBase):
    """An HDF5 file in which no collection of text goes round in circles.

    Text lies in global heaps, each a chain of entries that give the way to the next (HDF5 file format, III.E). An entry of length zero
    leads to itself, and the library follows it for ever; so each heap is gone through here when its begin is read. Lengths are taken to
    have eight bytes (:func:`trifold.data.preflight.require_h5`).

    Args:
        held: The file, open for reading bytes.
        path: Its name in messages.
    """

    def __init__(self, held: Any, path: str):
        super().__init__()
        self._held, self._path = held, path
        self._size = held.seek(0, io.SEEK_END)
        self._known: set[int] = set()
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read on; a heap that has no end is refused by a :class:`DataError`."""
        at, size = self._at, self._into(self._at, buffer)
        self._at += size
        for found in _HEAP.finditer(buffer, 0, size):
            self._look(at + found.start())
        for k in (1, 2, 3):  # a begin that lies on both sides of what is read
            if size and buffer[0] == _BEGIN[k] and self._read(at - k, 4) == _BEGIN:
                self._look(at - k)
        return size

    def _into(self, at: int, buffer: Any) -> int:
        if not 0 <= at < self._size:  # of a damaged file, further than a file can be
            return 0
        self._held.seek(at)
        size, view = 0, memoryview(buffer)
        while size < len(view):
            more = self._held.readinto(view[size:])
            if not more:
                break
            size += more
        return size

    def _read(self, at: int, size: int) -> bytes:
        out = bytearray(size)
        return bytes(out[: self._into(at, memoryview(out))])

    def _look(self, at: int) -> None:
        if at in self._known:
            return
        self._known.add(at)
        head = self._read(at, 16)
        if len(head) < 16 or head[4] != 1:
            return
        size = struct.unpack_from("<Q", head, 8)[0]
        if not 4096 <= size <= self._size - at:
            return
        heap, k = self._read(at, size), 16
        while k + 16 <= size:
            index, length = struct.unpack_from("<H6xQ", heap, k)
            step = length if index == 0 else 16 + -(-length // 8) * 8
            if not 0 < step <= size - k:  # too long a one wraps round
                raise DataError(
                    f"{self._path!r} is damaged: the text at byte {at + k:,} has no end. Copy it again, or write it with "
                    "adata.write_h5ad(path)."
                )
            k += step


class Described:
    """What the descriptions in a zarr store say of its arrays, as far as they were read.

    Args:
        path: Name of the store in messages.
        sizes: Gives the bytes that are stored below a place, None where the store cannot tell; itself None for a folder that was looked at
            as a whole (:func:`trifold.data.preflight.require_zarr`).

    Attributes:
        folder: The folder, if it is one of this machine.
    """

    def __init__(self, path: str, sizes: Callable[[str], int | None] | None):
        self._path, self._sizes = path.rstrip("/"), sizes
        self.folder = path if sizes is None else None
        self._packings: dict[str, Packing] = {}
        self._claims: dict[str, int] = {}

    def describe(self, key: str, data: bytes) -> None:
        """Look at a description, and keep what it says.

        Raises:
            DataError: As :func:`trifold.data.preflight.require_document`, or another one says otherwise of the same array.
        """
        name, at = key.rsplit("/", 1)[-1], f"{self._path}/{key}"
        preflight.require_document(name, data, at)
        found, here = json.loads(data), key[: -len(name)].rstrip("/")
        gathered = found if name == ".zmetadata" else found.get("consolidated_metadata")
        members = gathered.get("metadata") if isinstance(gathered, dict) else None
        for member, one in {"": found, **(members if isinstance(members, dict) else {})}.items():
            if not isinstance(one, dict) or "shape" not in one or member.endswith(".zattrs") or name == ".zattrs":
                continue
            place = "/".join(part for part in (here, member.removesuffix(".zarray").rstrip("/")) if part)
            packing = preflight.packing_of_array(one, at)
            if self._packings.setdefault(place, packing) != packing:
                raise DataError(f"{self._path!r} describes {place} twice, and not alike. {AGAIN}")
            self._claims[place] = preflight.require_array(one, at)[0][0]

    def require_chunk(self, key: str, value: Any, byte_range: Any) -> None:
        """Refuse what is read of a chunk or shard, ``value``, where it unfolds to more than it should."""
        packing, place = None, key
        while packing is None and "/" in place:
            place = place.rsplit("/", 1)[0]
            packing = self._packings.get(place)
        if packing is None or not (packing.codec or packing.text):
            return
        at, data = repr(f"{self._path}/{key}"), memoryview(value.as_numpy_array())  # no copy
        if byte_range is None:
            packing.require(data, at)
        else:
            packing.require_part(data, at, getattr(byte_range, "start", None))

    def require_whole(self, element: Any) -> None:
        """Refuse a group or array that claims more than is stored of it, before it is read whole.

        Raises:
            DataError: It claims more than 64 MiB, and more than 500 bytes for each byte that is stored, or more than 1 GiB where the store
                cannot tell.
        """
        if self._sizes is None:
            return
        if hasattr(element, "members"):
            element.members(max_depth=None)  # so that what is described below is known
        place = element.path
        claims = [(n, k) for k, n in self._claims.items() if not place or k == place or k.startswith(f"{place}/")]
        total = sum(n for n, _ in claims)
        if total <= FREE:
            return
        size = self._sizes(place)
        if size is not None:
            preflight.require_size(claims, size, f"{self._path}/{place}")
        elif total > _UNTOLD:
            raise DataError(
                f"{self._path}/{place} claims {preflight.gib(total)} of values, and the address cannot tell how many bytes are stored. "
                "Copy the data to this machine, and give their path."
            )


def watched_store(store: Any, path: str, sizes: Callable[[str], int | None] | None) -> Any:
    """A store of zarr that looks at each description, and at each chunk, when it is read.

    Args:
        store: The store.
        path, sizes: As in :class:`Described`.

    Returns:
        The store to read from. It refuses by a :class:`DataError`.
    """
    from zarr.abc.store import RangeByteRequest
    from zarr.storage import WrapperStore

    class Watched(WrapperStore):  # type: ignore[type-arg, misc]
        described = Described(path, sizes)

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            return self._looked_at(key, await self._store.get(key, prototype, self._bounded(key, byte_range)), byte_range)

        # Of zarr 3.2 and later, which the wrapper would hand to the store within, past ``get``.
        def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
            return self._looked_at(
                key, self._store.get_sync(key, prototype=prototype, byte_range=self._bounded(key, byte_range)), byte_range
            )

        async def get_ranges(self, key: str, byte_ranges: Any, **how: Any) -> Any:
            async for group in self._store.get_ranges(key, byte_ranges, **how):
                yield [(i, self._looked_at(key, value, byte_ranges[i])) for i, value in group]

        def get_ranges_sync(self, key: str, byte_ranges: Any, **how: Any) -> Any:
            return [(i, self._looked_at(key, v, byte_ranges[i])) for i, v in self._store.get_ranges_sync(key, byte_ranges, **how)]

        def _bounded(self, key: str, byte_range: Any) -> Any:
            return RangeByteRequest(0, preflight.LONGEST + 1) if _is_document(key, byte_range) else byte_range

        def _looked_at(self, key: str, value: Any, byte_range: Any) -> Any:
            if value is not None and _is_document(key, byte_range):
                self.described.describe(key, value.to_bytes())
            elif value is not None:
                self.described.require_chunk(key, value, byte_range)
            return value

    return Watched(store)


def _is_document(key: str, byte_range: Any) -> bool:
    """Whether a description is read, whole."""
    return key.rsplit("/", 1)[-1] in preflight.DOCUMENTS and byte_range is None
