"""Hypothesis strategies for AnnData of every odd kind: dtypes, forms, damage, values, names, categories, where the counts lie."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from hypothesis import strategies as st

DTYPES = (
    "float32",
    "float64",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint64",
    "bool",
    "complex64",
    "object",
    "U4",
)
FORMS = ("dense", "fortran", "csr", "csc", "coo", "bsr", "csr_array", "csc_array", "frame", "matrix", "big_endian", "read_only", "masked")
VALUES = (np.nan, np.inf, -np.inf, -1.0, 0.5, 1e7, 1e30, 1e39, 1e300, 5e-324, 2.0**24 + 1, -0.0)
DAMAGES = ("negative", "beyond", "huge", "decreasing", "short", "long", "start", "unsorted", "repeated", "values")
NAMES = ("", " ", "a/b", "line\nbreak", "ünï", "\udc80", "x" * 3000, "nan", "None", "0", "\x00", "ENSG00000000001.2", "GENE1")
COLUMNS = (
    "text",
    "category",
    "unused",
    "missing",
    "mixed",
    "number",
    "nan_number",
    "integer",
    "bool",
    "nullable",
    "dates",
    "objects",
    "constant",
    "odd",
)
PLACES = (None, "counts", "raw", "emb", "absent")


@dataclass
class Case:
    """Data with everything that was asked of it.

    Args:
        data: AnnData or what stands for one.
        x: Where the values lie.
        roles: role -> column of obs.
        options: For ``Schema.of``.
        told: What was drawn, for the message of a failure.
    """

    data: Any
    x: str | None
    roles: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    told: str = ""

    def __repr__(self) -> str:
        return f"Case({self.told})"


@st.composite
def matrices(draw: Any, n: int, g: int) -> tuple[Any, str]:
    """[n, g] values of any dtype and form, perhaps with a bad value and a damaged structure, and what it is."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    dtype, form = draw(st.sampled_from(("float32",) * 15 + DTYPES)), draw(st.sampled_from(("csr",) * 3 + FORMS))
    kind = draw(st.sampled_from(("counts", "counts", "counts", "log", "real", "zero", "binary")))
    values = rng.poisson(1.5, (n, g)).astype(np.float64)
    values = {"log": np.log1p(values), "real": rng.normal(size=(n, g)), "zero": values * 0, "binary": np.minimum(values, 1)}.get(
        kind, values
    )
    if n and kind == "counts":
        values[:, :1] += 1
    bad = draw(st.sampled_from((None,) * 30 + VALUES))
    if bad is not None and n and g:
        values[draw(st.integers(0, n - 1)), draw(st.integers(0, g - 1))] = bad
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            x = values.astype(dtype)
            m = form_of(x, form)
        except (ValueError, TypeError):  # numpy and scipy hold no such thing
            x, form = values, "dense"
            m = values
    damage = draw(st.sampled_from((None,) * 30 + DAMAGES)) if form in ("csr", "csc", "bsr", "csr_array", "csc_array") else None
    if damage is not None and m.nnz > 2:
        _damage(m, damage)
    return m, f"{n} x {g} {x.dtype} {form} {kind} bad={bad} damage={damage}"


def form_of(x: np.ndarray, form: str) -> Any:
    """The array in another form.

    Raises:
        ValueError, TypeError: numpy, scipy or pandas have no such form of this dtype.
    """
    if form == "fortran":
        return np.asfortranarray(x)
    if form in ("csr", "csc", "coo", "bsr"):
        return getattr(sp, f"{form}_matrix")(x)
    if form in ("csr_array", "csc_array"):
        return getattr(sp, form)(x)
    if form == "frame":
        return pd.DataFrame(x)
    if form == "matrix":
        return np.matrix(x)
    if form == "masked":
        return np.ma.masked_array(x)
    if form == "big_endian":
        return x.astype(x.dtype.newbyteorder(">"))
    x = x.copy()
    x.setflags(write=form != "read_only")
    return x


def _damage(m: Any, how: str) -> None:
    """Damage a compressed matrix in place, past the checks of scipy."""
    at = len(m.indices) // 2
    if how in ("negative", "beyond", "huge"):
        m.indices[at] = {"negative": -1, "beyond": max(m.shape), "huge": 2**30}[how]
    elif how == "decreasing":
        m.indptr[len(m.indptr) // 2] = m.indptr[-1] + 3
    elif how == "start":
        m.indptr[0] = 1
    elif how == "short":
        m.indptr = m.indptr[:-1]
    elif how == "long":
        m.indptr = np.append(m.indptr, m.indptr[-1]).astype(m.indptr.dtype)
    elif how == "values":
        m.data = m.data[:-1]
    elif how == "repeated":
        m.indices[1] = m.indices[0]
    else:
        m.indices[:] = m.indices[::-1].copy()
    if hasattr(m, "has_sorted_indices"):
        m.has_sorted_indices = m.has_canonical_format = how not in ("unsorted", "repeated")


@st.composite
def columns(draw: Any, n: int) -> tuple[Any, str]:
    """A column of obs, [n], of any kind."""
    kind = draw(st.sampled_from(("text", "category") * 6 + COLUMNS))
    i = np.arange(n)
    two = np.array(["control", "stimulated"], dtype=object)[i % 2]
    if kind == "category":
        return pd.Categorical(two), kind
    if kind == "unused":
        return pd.Categorical(two, categories=["never", "stimulated", "control"]), kind
    if kind in ("missing", "mixed", "objects", "odd"):
        other = {"missing": [None, np.nan, pd.NA], "mixed": [1, True, 1.0, "1"], "objects": [(1, 2), {}, b"b", 1j, [1]], "odd": list(NAMES)}
        value = draw(st.sampled_from(other[kind]))
        out = list(two)
        if n:
            out[draw(st.integers(0, n - 1))] = value
        series = pd.Series(out, dtype=object)
        return series.to_numpy(), f"{kind} {value!r:.20}"
    makers = {
        "number": lambda: i * 0.5,
        "nan_number": lambda: np.where(i == n // 2, draw(st.sampled_from([np.nan, np.inf, 1e308])), i * 1.0),
        "integer": lambda: (i % 3).astype(draw(st.sampled_from(["int8", "uint64", "int64"]))),
        "bool": lambda: i % 2 == 0,
        "nullable": lambda: pd.array([None if k == 1 else k % 2 for k in i], dtype=draw(st.sampled_from(["Int64", "boolean", "Float64"]))),
        "dates": lambda: pd.Timestamp("2020-01-01") + pd.to_timedelta(i % 3, unit="D"),
        "constant": lambda: np.zeros(n),
    }
    return makers.get(kind, lambda: two.astype(str))(), kind


@st.composite
def names(draw: Any, k: int, stem: str) -> list[str]:
    """k names, perhaps with an odd one or one that occurs twice."""
    out = [f"{stem}{j}" for j in range(k)]
    odd = draw(st.sampled_from((None,) * 40 + NAMES))
    if odd is not None and k:
        out[draw(st.integers(0, k - 1))] = odd
    if k > 1 and draw(st.integers(0, 19)) == 19:
        out[1] = out[0]
    return out


@st.composite
def cases(draw: Any) -> Case:
    """An AnnData with counts somewhere and columns of any kind, whole, a view, or a bare matrix."""
    n, g = draw(st.sampled_from((12,) * 12 + (0, 1, 2))), draw(st.sampled_from((5,) * 12 + (0, 1)))
    m, told = draw(matrices(n, g))
    place = draw(st.sampled_from((None, "counts") * 4 + PLACES))
    a = draw(st.integers(0, 19))
    if a == 19:  # no AnnData at all
        bare = draw(st.sampled_from([m, np.zeros(3), np.zeros((2, 2, 2)), 3.5, "no/such/file.h5ad", [], None, {}, [m], b"x"]))
        return Case(bare, place, {}, told=f"bare {type(bare).__name__} {told}")
    obs: dict[str, Any] = {}
    kinds = []
    for name in ("condition", "cell_type"):
        obs[name], kind = draw(columns(n))
        kinds.append(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = _anndata(m, obs, place, draw(names(n, "cell")), draw(names(g, "GENE")))
        if data is None:  # anndata itself has none of it
            data = anndata.AnnData(np.ones((n, g), np.float32), obs=pd.DataFrame(obs, index=[f"cell{k}" for k in range(n)]))
            told += " (not taken by anndata)"
        if n > 2 and g > 2 and draw(st.integers(0, 5)) == 0:
            data = data[::-2, [2, 0, 1]]
            told += " view"
    role = draw(st.sampled_from(("condition", "condition", "invariant", "spurious", "label")))
    roles = {role: draw(st.sampled_from(("condition",) * 12 + ("no_such", "cell_type")))}
    if draw(st.booleans()):
        roles[draw(st.sampled_from(("label", "spurious", "condition")))] = "cell_type"
    options: dict[str, Any] = {
        "kind": draw(st.sampled_from((None,) * 12 + ("counts", "counts", "real", "real", "binary", "odd"))),
        "fractional": draw(st.sampled_from(("error", "allow") * 6 + ("odd",))),
        "empty": draw(st.sampled_from(("keep", "drop", "error") * 5 + ("odd",))),
    }
    return Case(data, place, roles, options, f"{told} x={place} roles={roles} columns={kinds} options={options}")


def _anndata(m: Any, obs: dict[str, Any], place: str | None, cells: list[str], genes: list[str]) -> Any:
    frame, var = pd.DataFrame(obs, index=cells), pd.DataFrame(index=genes)
    try:
        plain = sp.csr_matrix((len(cells), len(genes)), dtype=np.float32)
        a = anndata.AnnData(plain, obs=frame, var=var)
        if isinstance(m, pd.DataFrame):
            m = m.set_axis(a.obs_names, axis=0).set_axis(a.var_names, axis=1) if a.obs_names.is_unique else m.to_numpy()
        if place == "counts":
            a.layers["counts"] = m
        elif place == "emb":
            a.obsm["emb"] = m
        elif place == "raw":
            a.raw = anndata.AnnData(m, obs=frame, var=var)
        else:
            a.X = m
    except Exception:
        return None
    return a
