"""What the tests of hostile data files share: the study in every format, changed descriptions, and what must be refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import anndata
import pytest
from fault_cases import study

from trifold.data import open
from trifold.errors import DataError

FORMATS = ("h5ad", "v2", "v3")


def write_formats(folder: Path) -> Path:
    """The study as an h5ad file and as zarr folders of both formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata and zarr, on their next versions
        study().write_h5ad(folder / "h5ad", compression="gzip")
        plain = {"auto_shard_zarr_v3": False} if hasattr(anndata.settings, "auto_shard_zarr_v3") else {}
        for k in (2, 3):
            with anndata.settings.override(zarr_write_format=k, **plain):
                study().write_zarr(folder / f"v{k}")
    return folder


def describe(folder: Path, array: str, **change: object) -> None:
    """Change the description of an array of a zarr folder, here and where descriptions are gathered."""
    new = folder.name == "v3"
    path = folder / array / ("zarr.json" if new else ".zarray")
    said = json.loads(path.read_text()) | change
    path.write_text(json.dumps(said))
    root = folder / ("zarr.json" if new else ".zmetadata")
    whole = json.loads(root.read_text())
    members = (whole.get("consolidated_metadata") or {}).get("metadata") if new else whole["metadata"]
    if members:
        members[array if new else f"{array}/.zarray"] = said
        root.write_text(json.dumps(whole))


def refused(path: Path | str, *words: str) -> str:
    """The message with which a file is refused; it must hold the words."""
    with pytest.raises(DataError) as caught:
        read(path)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    return str(caught.value)


def read(path: Path | str) -> None:
    """Open a file and read its first cells."""
    source = open(path)
    source.rows(range(min(source.n, 10)))
