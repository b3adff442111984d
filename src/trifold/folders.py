"""Folders that are written whole or not at all and verified byte by byte when read; strict JSON, safetensors, no pickle anywhere."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from trifold.errors import COPY, CorruptModelError, FormatError, listing
from trifold.outputs import explained

try:
    import fcntl
except ImportError:  # not on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
NEEDS = "0.1"  # the first trifold that reads this format, for the messages of earlier ones
MANIFEST = "MANIFEST.json"
_EXCLUSIVE, _SHARED, _AT_ONCE = (fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB) if fcntl else (0, 0, 0)
_MOST_JSON = 64 * 2**20  # bytes of one JSON file
_MOST_PARTS = 1_000_000  # objects and lists in one


def write_folder(path: Path, parts: Mapping[str, bytes], tensors: Mapping[str, Tensor], *, previous: Path | None, what: str) -> None:
    """Write a folder of files, ``MANIFEST.json`` last, with the size and SHA-256 of each; a kill leaves the old folder or the new one.

    Of several processes that write one folder at a time, each writes all of it, and the last stays (of a new path: the first).

    Args:
        path: The folder.
        parts: Name -> content.
        tensors: Name -> tensor that is in the parts, for the manifest's shapes and dtypes.
        previous: Where a folder that is there already goes; None: the path is new.
        what: What messages call it.

    Raises:
        CheckpointError: It cannot be written, or the disk is full; nothing of it is left.
    """
    manifest = {
        "format": FORMAT,
        "needs": NEEDS,
        "files": {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts.items()},
        "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()},
    }
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    needed = sum(len(data) for data in parts.values())
    try:
        with explained(path, needed, what):
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(path.parent):
                sweep(path.parent, f".{path.name}.*.part")
                fresh.mkdir()
                owned = _lock(fresh, _EXCLUSIVE)
            try:
                for name, data in [*parts.items(), (MANIFEST, dump(manifest))]:
                    _write_synced(fresh / name, data)
                _sync_folder(fresh)
                _put_in_place(fresh, path, previous)
                _sync_folder(path.parent)
            finally:
                _unlock(owned)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # nothing is left under this name where all went well


def _put_in_place(fresh: Path, path: Path, previous: Path | None) -> None:
    """Give a finished folder its name; of several processes that do so, each in its turn. A new path that another took first is left."""
    with alone(path.parent):
        if previous is None and (path / MANIFEST).exists():
            return
        try:
            if previous is not None and (path / MANIFEST).exists():
                shutil.rmtree(previous, ignore_errors=True)
                os.rename(path, previous)
            os.rename(fresh, path)
        except BaseException:
            if previous is not None and not path.exists() and previous.exists():
                os.rename(previous, path)
            raise


@contextmanager
def alone(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Inside, no other process or thread is in such a block of this folder; none but shared ones, if it is shared.

    Where the system cannot lock a folder, nothing is waited for.
    """
    handle = _lock(folder, _SHARED if shared else _EXCLUSIVE)
    try:
        yield
    finally:
        _unlock(handle)


def sweep(folder: Path, pattern: str) -> None:
    """Remove unfinished folders that killed processes left; those of living ones are locked."""
    for left in folder.glob(pattern):
        handle = _lock(left, _EXCLUSIVE | _AT_ONCE)
        if handle is not None:
            shutil.rmtree(left, ignore_errors=True)
            _unlock(handle)


def _lock(folder: Path, how: int) -> int | None:
    """An open handle of a folder that is locked; None where it cannot be, or is by another and ``how`` does not wait."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, how)
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def read_folder(path: Path, names: Sequence[str], *, what: str, format: int = FORMAT) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a folder, verified against its manifest, and what the manifest says of tensors.

    Args:
        path: The folder.
        names: The files that it must hold.
        what: What messages call it.
        format: That it must have.

    Raises:
        FormatError: Not such a folder, an unknown key, or another format.
        CorruptModelError: A file is missing, or its bytes are not those that were written.
    """
    manifest = _manifest(path, names, what, format)
    return {name: _read_verified(path / name, manifest["files"][name], what) for name in names}, manifest["tensors"]


def faults(path: Path, names: Sequence[str], *, what: str) -> list[str]:
    """What is wrong with the files of a folder: each file that is missing or damaged, and each that does not belong there.

    Args:
        path: The folder.
        names: The files that it must hold.
        what: What messages call it.

    Returns:
        One sentence a fault; none: every file holds the bytes that were written.
    """
    if not path.is_dir():
        return [f"{what} {str(path)!r} is not a folder."]
    found = [f"{p.name} is not part of it: remove it." for p in sorted(path.iterdir()) if p.name not in (*names, MANIFEST)]
    left = [p.name for p in sorted(path.absolute().parent.iterdir()) if p.name.startswith(f".{path.name}.") and p.suffix == ".part"]
    found += [f"{name}, beside it, is being written, or what an interrupted write left: then remove it." for name in left]
    try:
        said = _manifest(path, names, what)["files"]
    except FormatError as error:
        return [*found, str(error)]
    for name in names:
        try:
            _read_verified(path / name, said[name], what)
        except FormatError as error:
            found.append(str(error))
    return found


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
        raise CorruptModelError(f"{name} cannot be read: {error}. {COPY}") from error
    found = {key: {"shape": list(t.shape), "dtype": str(t.dtype)} for key, t in tensors.items()}
    if found != said:
        wrong = [n for n in {*found, *said} if found.get(n) != said.get(n)]
        raise CorruptModelError(f"{name} and {MANIFEST} disagree on {listing(sorted(wrong))}. {COPY}")
    return tensors


def format_of(path: Path, *, what: str) -> int:
    """The format of a folder, as its manifest says it; none that is newer than this trifold.

    Args:
        path: The folder.
        what: What messages call it.

    Raises:
        FormatError: The manifest does not say it, or the format is newer.
        CorruptModelError: There is no manifest, or it is not JSON.
    """
    return _format(_read_manifest(path, what), path, what)


def _read_manifest(path: Path, what: str) -> dict[str, Any]:
    found = parse(_read_plain(path / MANIFEST, _MOST_JSON, what), MANIFEST)
    if not isinstance(found, dict) or "format" not in found:
        raise FormatError(f"{MANIFEST} of {str(path)!r} has no key 'format'. {COPY}")
    return found


def _format(found: dict[str, Any], path: Path, what: str) -> int:
    if type(found["format"]) is not int or found["format"] < 1:
        raise FormatError(f"{MANIFEST} of {str(path)!r} must give the format as a whole number from 1; found {found['format']!r}. {COPY}")
    if found["format"] > FORMAT:
        needs = found.get("needs")
        known = isinstance(needs, str) and re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,3}", needs)
        version, package = (f">= {needs}", f"trifold>={needs}") if known else ("of a later version", "trifold")
        raise FormatError(
            f"{what} {str(path)!r} has format {found['format']}; this trifold reads {FORMAT}. It needs trifold {version}. "
            f"Type: pip install -U {package!r}"
        )
    return found["format"]


def _manifest(path: Path, names: Sequence[str], what: str, format: int = FORMAT) -> dict[str, Any]:
    found = _read_manifest(path, what)
    if _format(found, path, what) != format:
        raise FormatError(
            f"{what} {str(path)!r} has format {found['format']}, of an earlier trifold; this one reads {format}. "
            f"Rewrite a run by typing: trifold migrate {path}; finish a checkpoint with the trifold that wrote it, or begin anew."
        )
    kinds = {"format": int, **({"needs": str} if format > 1 else {}), "files": dict, "tensors": dict}
    fits = found.keys() == kinds.keys() and all(isinstance(found[key], kind) for key, kind in kinds.items())
    if not fits or found["files"].keys() != set(names):
        raise FormatError(
            f"{MANIFEST} of {str(path)!r} must hold {', '.join(kinds)}, with the files {', '.join(names)}; found {listing(found)}. {COPY}"
        )
    return found


def _read_verified(path: Path, said: Any, what: str) -> bytes:
    size = said.get("size") if isinstance(said, dict) else None
    if type(size) is not int or size < 0 or not isinstance(said.get("sha256"), str):
        raise FormatError(f"{MANIFEST} must give size and sha256 of {path.name}; found {said!r}. {COPY}")
    if path.suffix == ".json" and size > _MOST_JSON:
        raise FormatError(f"{path.name} must be at most {_MOST_JSON:,} bytes; {MANIFEST} gives {size:,}. {COPY}")
    data = _read_plain(path, size, what)
    if len(data) != size:
        length = f"{len(data):,}" if len(data) < size else f"more than {size:,}"
        raise CorruptModelError(f"{path.name} does not hold the bytes that were written: {size:,} were, {length} are there. {COPY}")
    if hashlib.sha256(data).hexdigest() != said["sha256"]:
        raise CorruptModelError(f"{path.name} does not hold the bytes that were written: their SHA-256 is another. {COPY}")
    return data


def _read_plain(path: Path, most: int, what: str) -> bytes:
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise FormatError(f"{path.name} must be a plain file; found a link, folder or device. {COPY}")
        with open(path, "rb") as file:
            return file.read(min(most, found.st_size) + 1)  # Python takes the memory before it reads
    except FileNotFoundError:
        raise CorruptModelError(f"{what} {str(path.parent)!r} has no {path.name}. Copy it whole, or pass what Model.save wrote.") from None


def parse(data: bytes, name: str) -> Any:
    """Plain data from JSON without repeated keys, NaN or infinity.

    Raises:
        FormatError, CorruptModelError: It is not that.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [k for k, _ in pairs]
        if len(set(keys)) < len(keys):
            raise FormatError(f"{name} repeats the key {next(k for k in keys if keys.count(k) > 1)!r}. {COPY}")
        return dict(pairs)

    def refuse(word: str) -> Any:
        raise FormatError(f"{name} holds {word}, which is not JSON. {COPY}")

    def finite(word: str) -> float:
        return float(word) if math.isfinite(float(word)) else refuse(word)

    if len(data) > _MOST_JSON or data.count(b"{") + data.count(b"[") > _MOST_PARTS:
        raise FormatError(f"{name} must be at most {_MOST_JSON:,} bytes with {_MOST_PARTS:,} objects and lists; found more. {COPY}")
    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(f"{name} is not JSON: {error}. {COPY}") from error


def text(data: bytes, name: str) -> str:
    """Text from UTF-8.

    Raises:
        CorruptModelError: It is not that.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptModelError(f"{name} is not text in UTF-8: {error}. {COPY}") from error


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


def checkpoints_of(run: Path) -> Path:
    """Where the checkpoints of a run folder NAME are kept: ``NAME.checkpoint`` beside it."""
    return run.with_name(f"{run.name}.checkpoint")
