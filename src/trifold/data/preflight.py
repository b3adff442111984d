"""What is looked at before a data file is read: where its values lie, how they are packed, how many it claims. No value is read.

AnnData writes plain files. Whatever could make a reader open another file, run code, go round in circles or fill the memory is refused,
wherever in the file it is.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from typing import Any

import numpy as np

from trifold.data.packed import AGAIN, FREE, PACKERS, RATIO, Packing, packing_of
from trifold.errors import DataError

DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")  # what describes a zarr folder
LONGEST = 4 * 2**20  # bytes of one of them: some 6,000 arrays
_BRACKETS = 200_000  # objects and lists in one of them; Python takes 72 bytes for an empty one
_PER_CHUNK = {"h5": 256, "zarr": 1024}  # bytes that the libraries take for each chunk while an array is read
_OBJECTS = 100_000  # groups and arrays in a file, along all links
_DEEPEST = 32  # groups in groups
_H5_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_H5_PLUGINS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"}  # of the package hdf5plugin
_CHECKED = {"crc32", "crc32c", "adler32", "fletcher32"}
_TEXT = {"vlen-utf8", "vlen-bytes"}
_FILTERED = {"bytes", "transpose", "shuffle", "delta", "fixedscaleoffset", "bitround"}
_CODECS = PACKERS | _CHECKED | _TEXT | _FILTERED | {"sharding_indexed"}  # of zarr and numcodecs: those that make numbers or text of bytes


def require_h5(group: Any, path: str) -> None:
    """Refuse an HDF5 file that is not plain.

    Args:
        group: The open file, or a group of it; what is below is looked at.
        path: Name of the file in messages.

    Raises:
        DataError: A link to another file, to nothing, or in a circle; values that lie in another file; a filter that is not there; more
            groups and arrays, or more values, than a file of this size holds. The message names the place.
    """
    _H5(path).check(group)


class _H5:
    """One look at an HDF5 file, through h5py's plain calls: some 20 µs for each group and array."""

    def __init__(self, path: str):
        self.path = path
        self.paths: dict[Any, int] = {}  # address of a group -> groups and arrays below, along all links
        self.soft: list[tuple[Any, bytes, str]] = []
        self.holding: set[Any] = set()  # addresses of the groups above soft links
        self.claims: list[tuple[int, str]] = []

    def check(self, group: Any) -> None:
        import h5py

        sizes = group.file.id.get_create_plist().get_sizes()
        if sizes != (8, 8):
            raise DataError(f"{self.path!r} gives addresses and lengths in {sizes} bytes; needed: 8. {AGAIN}")
        name = (group.name or "/").rstrip("/")
        if isinstance(group, h5py.Dataset):
            self._array(group.id, name)
        else:
            self._group(group.id, name, ())
            for parent, link, at in self.soft:
                self._follow(parent, link, at)
        require_size(self.claims, group.file.id.get_filesize(), self.path)

    def _group(self, group: Any, name: str, above: tuple[Any, ...]) -> int:
        from h5py import h5d, h5g, h5l, h5o

        address = h5o.get_info(group).addr
        if address in above:
            raise DataError(f"{name} of {self.path!r} is a link to a group that it lies in: the file has no end. {AGAIN}")
        if address in self.paths:
            return self.paths[address]
        if len(above) > _DEEPEST:
            raise DataError(f"{self.path!r} nests groups more than {_DEEPEST} deep, at {name[:200]}. {AGAIN}")
        above, count, links = (*above, address), 1, group.links
        for key in group:
            at = f"{name}/{key.decode(errors='replace')}"
            kind = links.get_info(key).type
            if kind == h5l.TYPE_HARD:
                item = h5o.open(group, key)
                if isinstance(item, h5d.DatasetID):
                    self._array(item, at)
                    count += 1
                elif isinstance(item, h5g.GroupID):
                    count += self._group(item, at, above)
            elif kind == h5l.TYPE_SOFT:
                self.soft.append((group, key, at))
                self.holding.update(above)
            else:
                to = f" ({links.get_val(key)[0].decode(errors='replace')!r})" if kind == h5l.TYPE_EXTERNAL else ""
                raise DataError(f"{at} of {self.path!r} is a link to another file{to}; it is not read. Copy the data into the file.")
            if count > _OBJECTS:
                raise DataError(f"{self.path!r} leads to more than {_OBJECTS:,} groups and arrays, at {at}. {AGAIN}")
        self.paths[address] = count
        return count

    def _follow(self, group: Any, key: bytes, at: str) -> None:
        """A soft link may lead to an array, or to a group without soft links: so there is no circle."""
        from h5py import h5g, h5o

        target = group.links.get_val(key).decode(errors="replace")
        try:
            item = h5o.open(group, key)
        except (KeyError, OSError, RuntimeError):
            raise DataError(f"{at} of {self.path!r} is a link to {target!r}, which is not in the file. {AGAIN}") from None
        if isinstance(item, h5g.GroupID) and h5o.get_info(item).addr in self.holding:
            raise DataError(f"{at} of {self.path!r} is a link to {target!r}, a group that holds links itself. {AGAIN}")

    def _array(self, array: Any, at: str) -> None:
        from h5py import h5d, h5z

        packed = array.get_create_plist()
        layout = packed.get_layout()
        if layout == h5d.VIRTUAL or packed.get_external_count():
            raise DataError(f"{at} of {self.path!r} keeps its values in another file; it is not read. Copy the data into the file.")
        chunk: tuple[int, ...] = ()
        if layout == h5d.CHUNKED:
            chunk = packed.get_chunk()
            codes = [packed.get_filter(k)[0] for k in range(packed.get_nfilters())]
            if sum(code not in (2, 3) for code in codes) > 1:
                raise DataError(f"{at} of {self.path!r} is packed by more than one filter, one upon another; it is not read. {AGAIN}")
            for code in codes:
                if code not in _H5_FILTERS and not (code in _H5_PLUGINS and h5z.filter_avail(code)):
                    raise DataError(
                        f"{at} of {self.path!r} is packed with the HDF5 filter {code} ({_H5_PLUGINS.get(code, 'unknown')}); needed: "
                        f"{', '.join(_H5_FILTERS.values())}. "
                        + ("Type: pip install hdf5plugin, then import hdf5plugin first." if code in _H5_PLUGINS else AGAIN)
                    )
        self.claims.append((claimed(array.shape or (), chunk, array.get_type().get_size(), per_chunk=_PER_CHUNK["h5"]), at))


def require_zarr(path: str) -> None:
    """Refuse a zarr folder (format 2 or 3) that is not plain.

    Args:
        path: Of the folder; it may be a link itself.

    Raises:
        DataError: A link that leads out of the folder or to a folder, a device; a codec that is not of zarr; a description that is too
            long or damaged; more values than a folder of this size holds. The message names the place.
    """
    root, claims, count = os.path.realpath(path), [], 0
    todo = [(path, 0)]
    while todo:
        here, depth = todo.pop()
        if depth > 2 * _DEEPEST:
            raise DataError(f"{path!r} nests folders more than {2 * _DEEPEST} deep, at {here[:200]!r}. {AGAIN}")
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if os.path.isdir(entry.path) or not _inside(os.path.realpath(entry.path), root):
                        raise DataError(f"{entry.path!r} is a link out of the zarr folder or to a folder; it is not read. Copy the data.")
                elif entry.is_dir():
                    todo.append((entry.path, depth + 1))
                elif not entry.is_file():
                    raise DataError(f"{entry.path!r} is a device, a pipe or a socket; a zarr folder holds files and folders. {AGAIN}")
                if entry.name in DOCUMENTS:
                    count += 1
                    claims += require_document(entry.name, _document(entry.path), entry.path)
        if count > _OBJECTS:
            raise DataError(f"{path!r} holds more than {_OBJECTS:,} groups and arrays. {AGAIN}")
    if sum(claim for claim, _ in claims) > FREE:
        require_size(claims, _bytes_in(path), path)


def require_document(name: str, data: bytes, path: str) -> list[tuple[int, str]]:
    """Refuse a description of a zarr group or array that is damaged or names codecs other than those of zarr.

    Args:
        name: One of :data:`DOCUMENTS`.
        data: Its bytes.
        path: Name in messages.

    Returns:
        (bytes, name) that each array in it claims.

    Raises:
        DataError: The message names the codec.
    """
    if len(data) > LONGEST or data.count(b"{") + data.count(b"[") > _BRACKETS:
        raise DataError(
            f"{path!r} is longer than any description of a group or array: more than {LONGEST:,} bytes or {_BRACKETS:,} parts. "
            "The folder is damaged: copy it again."
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path!r} is not JSON: {error}. The folder is damaged: copy it again.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path!r} must hold an object; found {type(found).__name__}. {AGAIN}")
    if name == ".zmetadata":
        return _members(found.get("metadata"), path)
    if name == "zarr.json":
        inner = found.get("consolidated_metadata")
        return require_array(found, path) + (_members(inner.get("metadata"), path) if isinstance(inner, dict) else [])
    return require_array(found, path) if name == ".zarray" else []


def require_array(found: dict[str, Any], path: str) -> list[tuple[int, str]]:
    """Refuse a zarr array by what its description says: the codecs and the shape.

    Args:
        found: ``zarr.json`` or ``.zarray``; of a group, nothing is claimed.
        path: Name in messages.

    Returns:
        (bytes, name) that it claims.

    Raises:
        DataError: A codec that is not of zarr, or a shape that is none.
    """
    if "shape" not in found:
        return []
    for codec in _all(_codecs(found)):
        if codec.removeprefix("numcodecs.") not in _CODECS:
            raise DataError(
                f"{path!r} is packed with the codec {codec!r}, which is not read: it may run code or is unknown. Read the folder with the "
                "program that wrote it, and write it again with adata.write_zarr(path)."
            )
    shape, chunk = found["shape"], _chunk(found)
    for one in (shape, chunk):
        if not isinstance(one, (list, tuple)) or len(one) != len(shape) or any(type(k) is not int or k < 0 for k in one):
            raise DataError(f"{path!r} must give shape and chunks as whole numbers; found {str(shape)[:60]}, {str(chunk)[:60]}. {AGAIN}")
    packing = packing_of_array(found, path)
    return [(claimed(shape, chunk, _itemsize(_kind(found)), per_chunk=_PER_CHUNK["zarr"] * (packing.inner or 1)), path)]  # type: ignore[arg-type]


def packing_of_array(found: dict[str, Any], path: str) -> Packing:
    """How the chunks of a zarr array are packed, by its description.

    Args:
        found: ``zarr.json`` or ``.zarray``, as :func:`require_array` lets it pass.
        path: Name in messages.

    Raises:
        DataError: Codecs one upon another, or shards that are damaged.
    """
    codecs = _codecs(found)
    names = _plain(codecs, "codecs" in found)
    chunk = _chunk(found)
    shard: dict[str, Any] = {}
    if "sharding_indexed" in names:
        try:
            said = codecs[-1]["configuration"]
            inner, index = said["chunk_shape"], [name for name in _names(said.get("index_codecs", [])) if name != "bytes"]
            if len(inner) != len(chunk) or any(type(k) is not int or k < 1 or n % k for k, n in zip(inner, chunk, strict=True)):
                raise ValueError(f"chunks of {str(inner)[:60]} do not fill shards of {str(chunk)[:60]}")
            count = math.prod(n // k for n, k in zip(chunk, inner, strict=True))
            within = _plain(said["codecs"], True)
            first = said.get("index_location", "end") == "start"
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(f"{path!r} describes shards that are damaged: {type(error).__name__}: {error}. {AGAIN}") from None
        if names[-1] != "sharding_indexed" or "sharding_indexed" in (*names[:-1], *within) or index not in ([], ["crc32c"]):
            raise DataError(f"{path!r} packs shards again, or shards within shards; it is not read. {AGAIN}")
        names, chunk = within, inner
        shard = {"inner": count, "index": 16 * count + 4 * len(index), "first": first}
    most = 8 * math.prod(chunk) * _itemsize(_kind(found))  # filters may store other types
    text = any(name in _TEXT for name in names)
    kept = [name for name in names if name in PACKERS | _CHECKED | {"numcodecs.crc32c"} or (text and name not in {"bytes", *_TEXT})]
    return packing_of(kept, text, most, repr(path), **shard)


def require_size(claims: Iterable[tuple[int, str]], size: int, path: str) -> None:
    """Refuse a file that claims far more values than its bytes can hold.

    Args:
        claims: (bytes, name) of each array.
        size: Bytes on disk.
        path: Name in messages.

    Raises:
        DataError: More than 64 MiB in all, and more than 500 bytes for each byte on disk. The message names the largest.
    """
    claims = list(claims)
    total = sum(claim for claim, _ in claims)
    if total > max(FREE, RATIO * size):
        largest, at = max(claims)
        raise DataError(
            f"{path!r} claims {gib(total)} of values ({at}: {gib(largest)}), but {size:,} bytes are there. "
            "The file is damaged or made to fill the memory: write it again."
        )


def gib(size: int) -> str:
    """Bytes as ``"2.5 GiB"``; what a damaged file claims may be more than a float holds."""
    return f"{size / 2**30:.3g} GiB" if size < 2**99 else "over 5e+20 GiB"


def claimed(shape: Iterable[int], chunk: Iterable[int], itemsize: int, *, per_chunk: int = 0) -> int:
    """Bytes that reading an array takes: all of it, and one chunk at least.

    Args:
        shape, chunk: Of the array, and of a chunk of it, or ``()``.
        itemsize: Bytes of a value.
        per_chunk: Bytes that each chunk takes beside its values.
    """
    shape, chunk = [int(n) for n in shape], [int(n) for n in chunk]
    values = math.prod(shape)
    chunks = math.prod(-(-n // max(1, k)) for n, k in zip(shape, chunk, strict=True)) if chunk else 0
    return max(values, math.prod(chunk)) * itemsize + chunks * per_chunk if values else 0


def _members(found: Any, path: str) -> list[tuple[int, str]]:
    """Those of the descriptions that are gathered in one."""
    if not isinstance(found, dict):
        raise DataError(f"{path!r} must gather the descriptions of groups and arrays; found {type(found).__name__}. {AGAIN}")
    claims = []
    for name, one in found.items():
        if name.startswith("/") or ".." in re.split(r"[/\\]", name):
            raise DataError(f"{path!r} names {name!r}, which is outside the folder. {AGAIN}")
        if isinstance(one, dict) and not name.endswith(".zattrs"):
            claims += require_array(one, f"{path}: {name}")
    return claims


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (list, tuple)) else [] if found is None else [found]


def _codecs(found: dict[str, Any]) -> list[Any]:
    """Those that a description names, in the order of writing."""
    said = (*_listed(found.get("filters")), found.get("compressor"), *_listed(found.get("codecs")))
    return [codec for codec in said if codec is not None]


def _all(codecs: Iterable[Any]) -> Iterable[str]:
    """Names of codecs, and of those within."""
    for codec in codecs:
        if codec is None:
            continue
        yield from _names([codec])
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(inner, dict):
            yield from _all([*_listed(inner.get("codecs")), *_listed(inner.get("index_codecs"))])


def _names(codecs: Iterable[Any]) -> list[str]:
    return [str(codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec) for codec in codecs]


def _plain(codecs: Iterable[Any], new: bool) -> list[str]:
    """Names without the package; but CRC-32C of numcodecs is not that of format 3, which comes after the bytes."""
    names = [name.removeprefix("numcodecs.") if name != "numcodecs.crc32c" else name for name in _names(codecs)]
    return names if new else [name if name != "crc32c" else "numcodecs.crc32c" for name in names]


def _chunk(found: dict[str, Any]) -> Any:
    grid = found.get("chunk_grid")
    grid = grid.get("configuration") if isinstance(grid, dict) else None
    return found.get("chunks") if grid is None else grid.get("chunk_shape") if isinstance(grid, dict) else None


def _kind(found: dict[str, Any]) -> Any:
    return found.get("data_type", found.get("dtype"))


def _itemsize(kind: Any) -> int:
    """Bytes of a value; 8 for text and what we do not know."""
    if isinstance(kind, dict):
        inner = kind.get("configuration")
        inner = inner if isinstance(inner, dict) else {}
        length = inner.get("length_bytes", 8)
        return max(8, length if type(length) is int else 8, _itemsize(_listed(inner.get("fields"))))
    if isinstance(kind, list):  # of fields: name, type, and the shape of each value where it is no single number
        try:
            return sum(_itemsize(one[1]) * math.prod(map(int, _listed(one[2]) if len(one) > 2 else ())) for one in kind)
        except (TypeError, ValueError, LookupError, RecursionError):
            return 8
    try:
        return max(1, np.dtype(kind).itemsize) if isinstance(kind, str) and kind != "string" else 8
    except (TypeError, ValueError, SyntaxError):
        return 8


def _document(path: str) -> bytes:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path!r} must be a plain file. {AGAIN}")
    with open(path, "rb") as file:
        return file.read(min(found.st_size, LONGEST) + 1)  # Python takes the memory before it reads


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root + os.sep)


def _bytes_in(path: str) -> int:
    return sum(os.lstat(os.path.join(here, name)).st_size for here, _, names in os.walk(path) for name in names)
