"""Parts to and from a run folder: written whole or not at all, verified byte by byte, no pickle anywhere.

A folder holds ``card.json``, ``schema.json``, ``spec.json``, ``weights.safetensors``, ``history.csv`` and, written last, ``MANIFEST.json``
with the size and SHA-256 of each of them and the name, shape and dtype of every tensor.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trifold.errors import CheckpointError, CorruptModelError, FormatError, listing

FORMAT = 1
MANIFEST = "MANIFEST.json"
WEIGHTS = "weights.safetensors"
FILES = ("card.json", "schema.json", "spec.json", WEIGHTS, "history.csv")
_MOST_JSON = 64 * 2**20  # bytes of one JSON file


def write_run(path: str | Path, *, card: Any, schema: Any, spec: Any, weights: Mapping[str, Tensor], history: str) -> Path:
    """Write a run folder; a kill at any moment leaves the old one or the new one.

    Args:
        path: The folder. One that holds a run is replaced, and kept beside it as ``NAME.previous``.
        card, schema, spec: Plain data.
        weights: name -> tensor.
        history: Text of the training history.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder cannot be written, the disk is full, or the path holds something else than a run.
    """
    from safetensors.torch import save

    path = Path(path)
    check_writable(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    parts = {
        "card.json": _dump(card),
        "schema.json": _dump(schema),
        "spec.json": _dump(spec),
        WEIGHTS: save(tensors),
        "history.csv": history.encode(),
    }
    manifest = {
        "format": FORMAT,
        "files": {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts.items()},
        "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()},
    }
    needed = sum(len(data) for data in parts.values())
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    old = path.with_name(f"{path.name}.previous")
    try:
        fresh.mkdir(parents=True)
        for name, data in [*parts.items(), (MANIFEST, _dump(manifest))]:
            _write_synced(fresh / name, data)
        _sync_folder(fresh)
        if (path / MANIFEST).exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(fresh, path)
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if not path.exists() and old.exists():
            os.rename(old, path)
        if not isinstance(error, OSError):
            raise
        free = _free(path.parent)
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else str(error.strerror or error)
        raise CheckpointError(
            f"The run folder {str(path)!r} could not be written: {what}. It needs {needed:,} bytes, and {free:,} are free there. "
            "An earlier run in that place is untouched."
        ) from error
    return path


def read_run(path: str | Path) -> dict[str, Any]:
    """Read and verify a run folder.

    Args:
        path: The folder. If a kill left only ``NAME.previous``, that one is read.

    Returns:
        ``card``, ``schema``, ``spec`` (plain data), ``weights`` (name -> tensor), ``history`` (text).

    Raises:
        FormatError: Not a run folder, an unknown key, or a newer format.
        CorruptModelError: A file is missing, or its bytes are not those that were written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    previous = path.with_name(f"{path.name}.previous")
    if not (path / MANIFEST).exists() and (previous / MANIFEST).exists():
        path = previous
    if not path.is_dir():
        raise FormatError(f"A run is a folder that Model.save or fit(out=...) wrote; {str(path)!r} is not a folder.")
    manifest = _manifest(path)
    parts = {name: _read_verified(path / name, manifest["files"][name]) for name in FILES}
    try:
        weights = load(parts[WEIGHTS])
    except SafetensorError as error:
        raise CorruptModelError(f"{WEIGHTS} cannot be read: {error}.") from error
    _check_tensors(weights, manifest["tensors"])
    return {
        "card": _parse(parts["card.json"], "card.json"),
        "schema": _parse(parts["schema.json"], "schema.json"),
        "spec": _parse(parts["spec.json"], "spec.json"),
        "weights": weights,
        "history": _text(parts["history.csv"], "history.csv"),
    }


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a module after comparing every name, shape and dtype.

    Raises:
        FormatError: Names are missing or extra, a shape or dtype differs, or a value is not finite.
    """
    own = module.state_dict()
    missing, extra = [n for n in own if n not in weights], [n for n in weights if n not in own]
    other = [
        f"{n} ({tuple(weights[n].shape)} {weights[n].dtype} for {tuple(t.shape)} {t.dtype})"
        for n, t in own.items()
        if n in weights and (weights[n].shape != t.shape or weights[n].dtype != t.dtype)
    ]
    for what, names in (("lack", missing), ("hold unknown", extra), ("hold tensors of another shape or dtype:", other)):
        if names:
            raise FormatError(f"The saved weights do not fit the saved specification: they {what} {listing(names)}.")
    broken = [n for n, t in weights.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise CorruptModelError(f"The saved weights hold values that are not finite, in {listing(broken)}.")
    module.load_state_dict(dict(weights))


def check_writable(path: str | Path) -> None:
    """Find out before training whether a run can be written to a place.

    Raises:
        CheckpointError: The place holds something else than a run, or cannot be written.
    """
    path = Path(path)
    for place in (path, path.with_name(f"{path.name}.previous")):
        if place.exists() and not (place.is_dir() and ((place / MANIFEST).exists() or not any(place.iterdir()))):
            raise CheckpointError(
                f"A run is written to a new folder or over an earlier run; {str(place)!r} holds something else. Choose another path."
            )
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise CheckpointError(f"The run folder {str(path)!r} cannot be made: {str(parent)!r} is not a folder that can be written to.")


def _manifest(path: Path) -> dict[str, Any]:
    found = _parse(_read_plain(path / MANIFEST, _MOST_JSON), MANIFEST)
    if not isinstance(found, dict) or "format" not in found:
        raise FormatError(f"{MANIFEST} of {str(path)!r} has no key 'format'.")
    if type(found["format"]) is not int or found["format"] < 1:
        raise FormatError(f"{MANIFEST} of {str(path)!r} must give the format as a whole number from 1; found {found['format']!r}.")
    if found["format"] > FORMAT:
        raise FormatError(
            f"The run {str(path)!r} has format {found['format']}; this trifold reads up to {FORMAT}: it needs a newer trifold."
        )
    unknown = [k for k in found if k not in ("format", "files", "tensors")]
    files, tensors = found.get("files"), found.get("tensors")
    if unknown or not isinstance(files, dict) or not isinstance(tensors, dict) or sorted(files) != sorted(FILES):
        raise FormatError(f"{MANIFEST} of {str(path)!r} must hold format, files ({', '.join(FILES)}) and tensors; found {listing(found)}.")
    return found


def _read_verified(path: Path, said: Any) -> bytes:
    size = said.get("size") if isinstance(said, dict) else None
    if type(size) is not int or size < 0 or not isinstance(said.get("sha256"), str):
        raise FormatError(f"{MANIFEST} must give size and sha256 of {path.name}; found {said!r}.")
    data = _read_plain(path, said["size"])
    if len(data) != said["size"] or hashlib.sha256(data).hexdigest() != said["sha256"]:
        raise CorruptModelError(
            f"{path.name} does not hold the bytes that were written: {len(data):,} bytes, {said['size']:,} expected, or another SHA-256. "
            "Copy the run again from where it was saved."
        )
    return data


def _read_plain(path: Path, most: int) -> bytes:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise FormatError(f"{path.name} must be a plain file; found a link, folder or device.")
        with open(path, "rb") as file:
            return file.read(most + 1)
    except FileNotFoundError:
        raise CorruptModelError(f"The run folder {str(path.parent)!r} has no {path.name}.") from None


def _check_tensors(weights: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    found = {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in weights.items()}
    if found != said:
        wrong = [n for n in {*found, *said} if found.get(n) != said.get(n)]
        raise CorruptModelError(f"{WEIGHTS} and {MANIFEST} disagree on {listing(sorted(wrong))}.")


def _parse(data: bytes, name: str) -> Any:
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


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptModelError(f"{name} is not text in UTF-8: {error}.") from error


def _dump(value: Any) -> bytes:
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
