"""Where files lie: a path on this machine, or an address such as ``s3://bucket/a.zarr`` that fsspec reads."""

from __future__ import annotations

import glob
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from trifold.data import preflight
from trifold.data.watched import WatchedFile, watched_store
from trifold.errors import DataError, TrifoldError

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
_ZARR = ("zarr.json", ".zgroup")

Store = Callable[..., AbstractContextManager[Any]]


def is_address(path: str) -> bool:
    """Whether a path names a protocol: ``s3://bucket/a.zarr``."""
    return re.match(r"^[A-Za-z][A-Za-z0-9+.-]*(::|://)", path) is not None


def matches(pattern: str) -> list[str]:
    """Paths or addresses that match a pattern, sorted by name."""
    if not is_address(pattern):
        return sorted(glob.glob(pattern))
    files, inside = _files(pattern)
    return sorted(files.unstrip_protocol(name) for name in files.glob(inside))


def store_at(path: str) -> Store:
    """How to open the root group of an h5ad file or zarr folder: gives it within a context.

    The file is looked at here, once, before anything is read (:mod:`trifold.data.preflight`), and watched while it is read
    (:mod:`trifold.data.watched`). What is given takes ``watched=False`` for reading numbers of an HDF5 file that was watched before.

    Raises:
        DataError: No such file or folder, a protocol whose package is not installed, or a file that is not plain.
    """
    if re.match(r"^(file|local)://", path):
        path = _files(path)[1]
    if is_address(path):
        return _remote(path)
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder {path!r}. Give the path of an h5ad file or zarr folder.")
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, name)) for name in _ZARR):
            preflight.require_zarr(path)
        return _zarr(path, _local_zarr(path))
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path!r} is a device, a pipe or a socket. Give the path of an h5ad file or zarr folder.")
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise DataError(f"{path!r} is a zip archive, which is not read. Unpack it, and give the path of what is in it.")
    return _looked_at(_h5(path), path)


def _looked_at(store: Store, path: str) -> Store:
    """An h5ad file, opened once to see that it is plain."""
    with store() as file, readable(path):
        preflight.require_h5(file, path)
    return store


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Within it, whatever a reading package raises is a :class:`DataError`: of a damaged file they raise all kinds.

    Args:
        what: Is read, in the message.
    """
    try:
        yield
    except (TrifoldError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"{what!r} cannot be read: it is damaged, out of reach or not AnnData "
            f"({type(error).__name__}: {' '.join(str(error).split())[:500]}). "
            "Copy it again from where it was made, or write it again with anndata."
        ) from error


def _remote(path: str) -> Store:
    files, inside = _files(path)
    try:
        folder = any(files.exists(f"{inside.rstrip('/')}/{name}") for name in _ZARR)
        there = folder or files.exists(inside)
    except Exception as error:  # whatever the protocol's package raises: no permission, no such host
        raise DataError(f"{path!r} cannot be reached: {type(error).__name__}: {error}. Check the address and the credentials.") from error
    if not there:
        raise DataError(f"There is no file or folder {path!r}. Give the address of an h5ad file or zarr folder.")
    if not folder:
        return _looked_at(_h5(path, lambda: files.open(inside, "rb")), path)
    return _zarr(path, _remote_zarr(path, files, inside.rstrip("/")))


def _local_zarr(path: str) -> Callable[[], Any]:
    def store() -> Any:
        from zarr.storage import LocalStore

        return watched_store(LocalStore(path, read_only=True), path, None)

    return store


def _remote_zarr(path: str, files: Any, inside: str) -> Callable[[], Any]:
    """A zarr folder at an address; no more of a description is read than one can be long."""

    def sizes(place: str) -> int | None:
        try:
            return sum(one["size"] for one in files.find(f"{inside}/{place}", detail=True).values()) or None
        except Exception:  # a protocol that cannot list, or does not say
            return None

    def store() -> Any:
        from zarr.storage import FsspecStore

        return watched_store(FsspecStore.from_url(path, read_only=True), path, sizes)

    return store


def _files(path: str) -> tuple[Any, str]:
    """(file system, path in it) of an address."""
    protocol = re.split(r"::|://", path)[0]
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(path)  # type: ignore[no-any-return]
    except ImportError as error:
        package = _PACKAGES.get(protocol, "fsspec")
        raise DataError(
            f"{path!r} is read through fsspec, which needs a package for {protocol!r} that is not installed: {error}. "
            f"Type: pip install 'trifold[cloud]' {package}"
        ) from None
    except ValueError as error:
        raise DataError(f"{path!r} cannot be read: {error}. Give a path, or an address such as s3://bucket/a.zarr.") from None


def _h5(path: str, given: Callable[[], Any] | None = None) -> Store:
    @contextmanager
    def store(*, watched: bool = True) -> Iterator[Any]:
        import h5py

        with ExitStack() as stack:
            try:
                held: Any = path
                if given is not None:
                    held = stack.enter_context(given())
                elif watched:
                    held = stack.enter_context(open(path, "rb", buffering=0))
                held = WatchedFile(held, path) if watched else held
                file = stack.enter_context(h5py.File(held, "r"))
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                raise DataError(
                    f"{path!r} cannot be opened as an h5ad file: {error}. Copy it again, or write it with adata.write_h5ad(path)."
                ) from None
            yield file

    return store


def _zarr(path: str, given: Callable[[], Any]) -> Store:
    @contextmanager
    def store(*, watched: bool = True) -> Iterator[Any]:
        import zarr

        try:
            root = zarr.open_group(given(), mode="r")
        except (TrifoldError, MemoryError):
            raise
        except Exception as error:  # of a damaged description zarr raises all kinds
            raise DataError(f"{path!r} cannot be opened as a zarr folder: {error}. Give an h5ad file, or adata.write_zarr(path).") from None
        yield root  # chunks are looked at in any case

    return store


def by_zarrs(element: Any) -> Any:
    """The same group or array of a zarr folder on this machine, decoded by the package ``zarrs`` where it is installed.

    ``zarrs`` reads chunks itself, so that they are looked at beforehand (:func:`trifold.data.packed.require_pieces`).
    """
    folder = getattr(getattr(getattr(element, "store", None), "described", None), "folder", None)
    if folder is None or find_spec("zarrs") is None:
        return element
    import zarr

    with warnings.catch_warnings(), zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        warnings.filterwarnings("ignore", message=".*ZarrsCodecPipeline")  # of a codec that zarrs lacks, for which it uses zarr's own
        return zarr.open(folder, mode="r", path=element.path)
