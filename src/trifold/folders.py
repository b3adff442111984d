"""Folders that are written whole or not at all and verified byte by byte when read; strict JSON, safetensors, no pickle anywhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trifold.errors import CheckpointError, CorruptModelError, FormatError, listing

FORMAT = 1
MANIFEST = "MANIFEST.json"
_MOST_JSON = 64 * 2**20  # bytes of one JSON file


def write_folder(path: Path, parts: Mapping[str, bytes], tensors: Mapping[str, Tensor], *, previous: Path | None, what: str) -> None:
    """Write a folder of files, ``MANIFEST.json`` last, with the size and SHA-256 of each; a kill leaves the old folder or the new one.

    Args:
        path: The folder.
        parts: Name -> content.
        tensors: Name -> tensor that is in the parts, for the manifest's shapes and dtypes.
        previous: Where a folder that is there already goes; None: the path is new.
        what: What messages call it.

    Raises:
        CheckpointError: It cannot be written, or the disk is full.
    """
    manifest = {
        "format": FORMAT,
        "files": {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts.items()},
        "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()},
    }
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        fresh.mkdir(parents=True)
        for name, data in [*parts.items(), (MANIFEST, dump(manifest))]:
            _write_synced(fresh / name, data)
        _sync_folder(fresh)
        if previous is not None and (path / MANIFEST).exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(path, previous)
        os.rename(fresh, path)
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if previous is not None and not path.exists() and previous.exists():
            os.rename(previous, path)
        if not isinstance(error, OSError):
            raise
        needed, free = sum(len(data) for data in parts.values()), _free(path.parent)
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else str(error.strerror or error)
        raise CheckpointError(
            f"{what} {str(path)!r} could not be written: {why}. It needs {needed:,} bytes, and {free:,} are free there. "
            "What was in that place before is untouched."
        ) from error


def read_folder(path: Path, names: Sequence[str], *, what: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a folder, verified against its manifest, and what the manifest says of tensors.

    Args:
        path: The folder.
        names: The files that it must hold.
        what: What messages call it.

    Raises:
        FormatError: Not such a folder, an unknown key, or a newer format.
        CorruptModelError: A file is missing, or its bytes are not those that were written.
    """
    manifest = _manifest(path, names, what)
    return {name: _read_verified(path / name, manifest["files"][name], what) for name in names}, manifest["tensors"]


def tensors_in(data: bytes, said: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, after comparing every name, shape and dtype with the manifest.

    Raises:
        CorruptModelError: The file cannot be read, or is not what the manifest says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise CorruptModelError(f"{name} cannot be read: {error}.") from error
    found = {key: {"shape": list(t.shape), "dtype": str(t.dtype)} for key, t in tensors.items()}
    if found != said:
        wrong = [n for n in {*found, *said} if found.get(n) != said.get(n)]
        raise CorruptModelError(f"{name} and {MANIFEST} disagree on {listing(sorted(wrong))}.")
    return tensors


def _manifest(path: Path, names: Sequence[str], what: str) -> dict[str, Any]:
    found = parse(_read_plain(path / MANIFEST, _MOST_JSON, what), MANIFEST)
    if not isinstance(found, dict) or "format" not in found:
        raise FormatError(f"{MANIFEST} of {str(path)!r} has no key 'format'.")
    if type(found["format"]) is not int or found["format"] < 1:
        raise FormatError(f"{MANIFEST} of {str(path)!r} must give the format as a whole number from 1; found {found['format']!r}.")
    if found["format"] > FORMAT:
        raise FormatError(
            f"{what} {str(path)!r} has format {found['format']}; this trifold reads up to {FORMAT}: it needs a newer trifold."
        )
    unknown = [k for k in found if k not in ("format", "files", "tensors")]
    files, tensors = found.get("files"), found.get("tensors")
    if unknown or not isinstance(files, dict) or not isinstance(tensors, dict) or sorted(files) != sorted(names):
        raise FormatError(f"{MANIFEST} of {str(path)!r} must hold format, files ({', '.join(names)}) and tensors; found {listing(found)}.")
    return found


def _read_verified(path: Path, said: Any, what: str) -> bytes:
    size = said.get("size") if isinstance(said, dict) else None
    if type(size) is not int or size < 0 or not isinstance(said.get("sha256"), str):
        raise FormatError(f"{MANIFEST} must give size and sha256 of {path.name}; found {said!r}.")
    data = _read_plain(path, said["size"], what)
    if len(data) != said["size"] or hashlib.sha256(data).hexdigest() != said["sha256"]:
        raise CorruptModelError(
            f"{path.name} does not hold the bytes that were written: {len(data):,} bytes, {said['size']:,} expected, or another SHA-256. "
            "Copy the run again from where it was saved."
        )
    return data


def _read_plain(path: Path, most: int, what: str) -> bytes:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise FormatError(f"{path.name} must be a plain file; found a link, folder or device.")
        with open(path, "rb") as file:
            return file.read(most + 1)
    except FileNotFoundError:
        raise CorruptModelError(f"{what} {str(path.parent)!r} has no {path.name}.") from None


def parse(data: bytes, name: str) -> Any:
    """Plain data from JSON without repeated keys, NaN or infinity.

    Raises:
        FormatError, CorruptModelError: It is not that.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [k for k, _ in pairs]
        if len(set(keys)) < len(keys):
            raise FormatError(f"{name} repeats the key {next(k for k in keys if keys.count(k) > 1)!r}.")
        return dict(pairs)

    def refuse(word: str) -> Any:
        raise FormatError(f"{name} holds {word}, which is not JSON.")

    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CorruptModelError(f"{name} is not JSON: {error}.") from error


def text(data: bytes, name: str) -> str:
    """Text from UTF-8.

    Raises:
        CorruptModelError: It is not that.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptModelError(f"{name} is not text in UTF-8: {error}.") from error


def dump(value: Any) -> bytes:
    """Plain data as JSON."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
