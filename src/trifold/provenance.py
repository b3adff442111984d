"""Where a run came from: versions, a fingerprint of the data, and which combinations of covariates were trained on."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_FEW = 50  # different numbers up to which each counts as a level of its own
_PACKAGES = ("trifold", "torch", "lightning-fabric", "anndata", "scanpy", "numpy", "scipy", "pandas", "safetensors")


def card_of(**facts: Any) -> dict[str, Any]:
    """The facts of a run with the versions that made it, as plain data."""
    return {"written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions(), **facts}


def versions() -> dict[str, str]:
    """Package -> version, for those that are installed, and Python's own."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def fingerprint(genes: Sequence[str], names: Any, size: np.ndarray) -> str:
    """SHA-256 over gene names, cell names and the sums of all cells: says whether two runs saw the same data.

    Args:
        genes: Names of the genes.
        names: Names of the cells.
        size: Sum of each cell, any shape.
    """
    digest = hashlib.sha256()
    for part in (genes, names):
        digest.update("\x1f".join(map(str, part)).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(size, dtype=np.float64).tobytes())
    return digest.hexdigest()


def seen_in(obs: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """The combinations of some columns that a table holds, as plain data, and the range of those that hold many different numbers.

    Columns that the table lacks are left out.
    """
    there = [c for c in dict.fromkeys(columns) if c in obs]
    many = [c for c in there if obs[c].dtype.kind == "f" and obs[c].nunique() > _FEW]
    few = [c for c in there if c not in many]
    rows = obs[few].astype(object).drop_duplicates()
    return {
        "columns": few,
        "values": [[plain(v) for v in row] for row in rows.itertuples(index=False)],
        "ranges": {c: [float(obs[c].min()), float(obs[c].max())] for c in many},
    }


def was_seen(obs: pd.DataFrame, seen: Mapping[str, Any]) -> np.ndarray:
    """[n] whether each row's combination was trained on, as far as the table has the columns."""
    place = [i for i, c in enumerate(seen["columns"]) if c in obs]
    known = {tuple(row[i] for i in place) for row in seen["values"]}
    columns = [seen["columns"][i] for i in place]
    inside = np.ones(len(obs), dtype=bool)
    for column, (low, high) in seen["ranges"].items():
        inside &= obs[column].between(low, high).to_numpy() if column in obs else True
    if not columns:
        return inside
    return inside & np.fromiter(
        (tuple(map(plain, row)) in known for row in obs[columns].itertuples(index=False)), dtype=bool, count=len(obs)
    )


def plain(value: Any) -> Any:
    """A value, or a mapping or sequence of values, as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
