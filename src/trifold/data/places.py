"""Where files lie: a path on this machine, or an address such as ``s3://bucket/a.zarr`` that fsspec reads."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

from trifold.errors import DataError

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

Store = Callable[[], AbstractContextManager[Any]]


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

    Raises:
        DataError: No such file or folder, or a protocol whose package is not installed.
    """
    if is_address(path):
        return _remote(path)
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder {path!r}. Give the path of an h5ad file or zarr folder.")
    return _zarr(path, path) if os.path.isdir(path) else _h5(path, lambda: path)


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
        return _h5(path, lambda: files.open(inside, "rb"))
    from zarr.storage import FsspecStore

    return _zarr(path, FsspecStore.from_url(path, read_only=True))


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


def _h5(path: str, given: Callable[[], Any]) -> Store:
    @contextmanager
    def store() -> Iterator[Any]:
        import h5py

        with ExitStack() as stack:
            try:
                held = given()
                held = held if isinstance(held, str) else stack.enter_context(held)
                file = stack.enter_context(h5py.File(held, "r"))
            except OSError as error:
                raise DataError(f"{path!r} cannot be opened as an h5ad file: {error}. Check that it is complete.") from None
            yield file

    return store


def _zarr(path: str, where: Any) -> Store:
    @contextmanager
    def store() -> Iterator[Any]:
        import zarr

        with _decoder() if where is path else nullcontext():
            try:
                root = zarr.open_group(where, mode="r")
            except (OSError, KeyError, ValueError) as error:
                raise DataError(
                    f"{path!r} cannot be opened as a zarr folder: {error}. Give an h5ad file, or adata.write_zarr(path)."
                ) from None
            yield root

    return store


@contextmanager
def _decoder() -> Iterator[None]:
    """Within it, zarr arrays are opened with the codecs of the package ``zarrs`` where it is installed; values are the same."""
    if find_spec("zarrs") is None:
        yield
        return
    import zarr

    with warnings.catch_warnings(), zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        warnings.filterwarnings("ignore", message=".*ZarrsCodecPipeline")  # of a codec that zarrs lacks, for which it uses zarr's own
        yield
