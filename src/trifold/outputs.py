"""Files and folders that are there whole or not at all, and errors of the system said with the path and the room on the disk."""

from __future__ import annotations

import errno
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trifold.errors import CheckpointError, TrifoldError

_TRIES, _AWAY, _PAUSE = 40, 3, 0.03  # tries to remove a folder, looks that must not find it, and seconds between them
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free(path: Path) -> int:
    """Bytes that are free where a path is or would be."""
    return shutil.disk_usage(nearest(path)).free


def nearest(path: Path) -> Path:
    """The path if it exists, else the nearest folder above it that does."""
    while not os.path.exists(path) and path != path.parent:  # a name that is too long does not exist, rather than raising
        path = path.parent
    return path


def filled(path: Path) -> bool:
    """Whether something is there, other than an empty folder."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def require_folder(path: Path) -> None:
    """Refuse a path that has no folder to lie in.

    Raises:
        CheckpointError: The nearest folder above it that exists cannot be written to, or is a file.
    """
    parent = nearest(path.absolute().parent)
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise CheckpointError(
            f"{str(path)!r} cannot be written: {str(parent)!r} is not a folder that can be written to. Choose a path in one that is."
        )


@contextmanager
def explained(path: Path, needed: int | None, what: str) -> Iterator[None]:
    """Errors of the system while something is written, said with the path, the bytes that it needs and those that are free.

    Args:
        path: What is written.
        needed: Its bytes; None: not known.
        what: What messages call it.

    Raises:
        CheckpointError: In the place of an OSError, or of the RuntimeError that h5py makes of one.
    """
    try:
        yield
    except TrifoldError:
        raise
    except (OSError, RuntimeError) as error:
        why = str(getattr(error, "strerror", None) or error)
        if getattr(error, "errno", None) in _FULL or any(os.strerror(code) in why for code in _FULL):
            why = f"the disk is full ({why.splitlines()[0]})"
        left = f"{free(path):,}"
        room = f"{left} bytes are free there." if needed is None else f"It needs {needed:,} bytes, and {left} are free there."
        raise CheckpointError(f"{what} {str(path)!r} could not be written: {why}. {room} What was there before is untouched.") from error


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """:func:`explained`, of a file or folder that is called so."""
    with explained(path, needed, "The file" if path.suffix else "The folder"):
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place in the end; after an error or Ctrl-C nothing is left of it.

    Args:
        path: Where the file or folder goes; the folder that it lies in is made. What was there is replaced.

    Yields:
        The path to write to; it ends as ``path`` does.

    Raises:
        CheckpointError: The folder cannot be written, or the disk is full.
    """
    part, old = (path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.{what}{path.suffix}") for what in ("part", "old"))
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with writing(path):
            _sync(part)
            if path.is_dir() or part.is_dir():  # a folder does not replace, and is not replaced, in one step
                with suppress(FileNotFoundError):
                    os.rename(path, old)
            os.replace(part, path)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        _remove(old)
        _abandon(part)


@contextmanager
def h5_file(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A new HDF5 file, open for writing.

    HDF5 ends the whole process (a segmentation fault, when the file is closed) after a write that failed, as on a full disk. So it writes
    through :class:`Kept`, where none fails as far as HDF5 sees.

    Args:
        path: The file.

    Yields:
        The ``h5py.File``, and what raises the error that writing has met, if any: for calls between writes; it is called at the end.

    Raises:
        OSError: It could not be written.
    """
    import h5py

    with Kept(path) as kept:
        with h5py.File(kept, "w") as file:
            yield file, kept.require
        kept.require()


def write_h5ad(adata: Any, path: Path) -> None:
    """Write an AnnData, as its own ``write_h5ad`` does, through :func:`h5_file`.

    Args:
        adata: The AnnData; columns of text become categories.
        path: The file.

    Raises:
        OSError: It could not be written.
    """
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    with h5_file(path) as (file, _):
        write_elem(file, "/", adata)


class Kept(io.RawIOBase):
    """A file that holds in memory what the disk did not take, so that whoever writes to it ends in good order.

    It has what ``h5py.File`` asks of a Python file. After the first error nothing more goes to the disk; :meth:`require` raises that error.

    Args:
        path: A new file, or one that is replaced.
    """

    def __init__(self, path: Path):
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 - close() closes it
        self._at = self._end = 0
        self._later: list[tuple[int, bytes]] = []  # (position, bytes) that the disk did not take
        self.error: OSError | None = None

    def close(self) -> None:
        """Close the file; what the disk did not take is gone."""
        self._file.close()
        super().close()

    def require(self) -> None:
        """Raise what writing has met.

        Raises:
            OSError: The disk did not take all.
        """
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        """Fill a buffer from the position on; how many bytes there were."""
        view = memoryview(into).cast("B")
        size = max(0, min(len(view), self._end - self._at))
        self._file.seek(self._at)
        found = self._file.read(size)
        view[:size] = found + bytes(size - len(found))
        for at, data in self._later:
            first, last = max(at, self._at), min(at + len(data), self._at + size)
            if first < last:
                view[first - self._at : last - self._at] = data[first - at : last - at]
        self._at += size
        return size

    def write(self, data: Any) -> int:
        """Write at the position, all of it: to the disk, or to memory once the disk has refused."""
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._file.seek(self._at)
                done = 0
                while done < len(view):
                    done += self._file.write(view[done:])
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._later.append((self._at, bytes(view)))
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the length in bytes; None: to the position."""
        self._end = self._at if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._end)
            except OSError as error:
                self.error = error
        return self._end

    def flush(self) -> None:
        """Nothing waits to be written."""


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _abandon(path: Path) -> None:
    """Remove what was not finished; a folder until it stays away, since after an error zarr's other threads go on for a moment."""
    tries, away = (_TRIES if path.is_dir() else 1), 0
    for _ in range(tries):
        away = 0 if path.exists() else away + 1
        if away == _AWAY:
            return
        _remove(path)
        time.sleep(_PAUSE if tries > 1 else 0)
