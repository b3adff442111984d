"""What a model knows of its data, as plain data: genes, kind of values, and the columns that play each role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from trifold.data import columns as cols
from trifold.data.check import EMPTY, FRACTIONAL, KINDS, check, repeated, require_option
from trifold.data.columns import Category, Column, Number, Value
from trifold.data.confounding import warn_confounded
from trifold.data.covariates import ROLES, design_of, joint, parts_of, policies, require_column, sizes
from trifold.data.covariates import observed as combinations
from trifold.data.matrix import Array
from trifold.data.source import open
from trifold.errors import FormatError, SchemaError, listing, suggest

_KEYS = {"genes", "x", "kind", "roles", "observed", "size", "fractional", "empty", "density"}


@dataclass(frozen=True)
class Schema:
    """The data that a model is made for; make one with :meth:`of`.

    Args:
        genes: [g] names, in the order of the model's inputs.
        kind: ``"counts"``, ``"real"`` or ``"binary"``.
        x: None for X, else a layer, ``"raw"`` or a key of obsm.
        roles: role -> columns; roles are condition, invariant, spurious, label; an absent role plays no part.
        observed: role -> joint combinations that occurred, one value for each categorical column; ``code`` counts through them.
        size: Column of obs that holds library sizes; None: the sum over genes.
        fractional: Whether counts may be fractional: ``"error"`` or ``"allow"``.
        empty: Cells without a count: ``"error"``, ``"drop"``, or ``"keep"`` (their library size is taken as 1).
        density: Share of values other than zero, which decides whether batches are sparse.
    """

    genes: tuple[str, ...]
    kind: str = "counts"
    x: str | None = None
    roles: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    observed: Mapping[str, tuple[tuple[Value, ...], ...]] = field(default_factory=dict)
    size: str | None = None
    fractional: str = "error"
    empty: str = "error"
    density: float = 1.0

    @classmethod
    def of(
        cls,
        data: Any,
        x: str | None = None,
        *,
        condition: str | Sequence[str] | None = None,
        invariant: str | Sequence[str] | None = None,
        spurious: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        size: str | None = None,
        kind: str | None = None,
        fractional: str = "error",
        empty: str = "error",
        obs: pd.DataFrame | None = None,
    ) -> Schema:
        """The schema of some data, every value of which is looked at once.

        Args:
            data: AnnData, path of an h5ad file or zarr folder, array, DataFrame, scipy sparse matrix, or Source. Never changed.
            x: None for X, else a layer, ``"raw"`` or a key of obsm.
            condition, invariant, spurious, label: Columns of obs, one or several. Numeric columns are continuous; make an integer column
                categorical to have categories.
            size: Column of obs with library sizes (counts per cell); None: the sum over genes.
            kind: ``"counts"``, ``"real"`` or ``"binary"``; None: chosen from the data (booleans: binary; whole, not negative: counts).
            fractional: ``"allow"`` takes nonnegative values that are not whole as counts.
            empty: Cells without a count: ``"error"``, ``"drop"`` or ``"keep"``.
            obs: [n, columns], for arrays, DataFrames and sparse matrices.

        Raises:
            DataError: Values, names or a structure that cannot be used; the message names matrix, row and gene.
            SchemaError: A column that is missing, has missing values, or plays two roles.
        """
        require_option("fractional", fractional, FRACTIONAL)
        require_option("empty", empty, EMPTY)
        if kind is not None:
            require_option("kind", kind, KINDS)
        source = open(data, x, obs)
        asked = {r: _names(c, r) for r, c in zip(ROLES, (condition, invariant, spurious, label), strict=True) if c is not None}
        _refuse_shared(asked)
        for role, names in asked.items():
            for name in names:
                require_column(source.obs, name, role=role, other=source.other)
        if size is not None:
            sizes(source.obs, size, other=source.other)
        found = check(source, fractional=fractional, empty=empty)
        found.require("real", empty="keep")
        kind = kind or found.kind(fractional=fractional)
        found.require(kind, fractional=fractional, empty=empty)
        found.warn()
        roles = {r: tuple(cols.describe(source.obs[n], name=n, role=r) for n in names) for r, names in asked.items()}
        _refuse_numeric_label(roles)
        observed = {r: combinations(source.obs, c, r) for r, c in roles.items()}
        warn_confounded(source.obs, {r: [c.name for c in cs if isinstance(c, Category)] for r, cs in roles.items()})
        return cls(source.genes, kind, source.x, roles, observed, size, fractional, empty, round(found.density, 6))

    def __post_init__(self) -> None:
        for name, options in (("kind", KINDS), ("fractional", FRACTIONAL), ("empty", EMPTY)):
            require_option(name, getattr(self, name), options)
        if repeated(self.genes) or not self.genes:
            raise SchemaError(
                f"A schema needs genes of different names; found {len(self.genes)}, repeated: {listing(repeated(self.genes)) or 'none'}."
            )
        for role in self.roles:
            require_option("role", role, ROLES)
        if set(self.observed) != set(self.roles):
            raise SchemaError(
                f"observed must have the roles {listing(self.roles) or '(none)'}; found {listing(self.observed) or '(none)'}."
            )

    @property
    def sparse(self) -> bool:
        """Whether batches are sparse: at most a third of the values are not zero."""
        return self.density <= 1 / 3

    def width(self, role: str) -> int:
        """Columns of the role's design: one for each category of each categorical column, one for each number; 0 for an absent role."""
        require_option("role", role, ROLES)
        return sum(c.width for c in self.roles.get(role, ()))

    def categories(self, role: str) -> tuple[tuple[Value, ...], ...]:
        """Joint combinations that occurred, in the order of ``code``: one value for each categorical column of the role.

        A role of numbers only has one combination, ``()``; an absent role has none.
        """
        require_option("role", role, ROLES)
        return self.observed.get(role, ())

    def column(self, name: str) -> Column:
        """The :class:`Category` or :class:`Number` of that name, in whichever role.

        Raises:
            SchemaError: No role has such a column.
        """
        known = {c.name: c for cs in self.roles.values() for c in cs}
        if name not in known:
            raise SchemaError(f"No role of the schema has a column {name!r}.{suggest(name, known)} It has: {listing(known, 10) or 'none'}.")
        return known[name]

    def covariates(
        self, obs: pd.DataFrame, roles: Sequence[str] | None = None, *, unknown: str | Mapping[str, str] = "error"
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Covariates of some cells as numbers.

        Args:
            obs: [n, columns].
            roles: Those wanted; None for all that the schema has. A role that the schema lacks is left out.
            unknown: ``"error"`` refuses unseen and missing values, ``"zero"`` gives them a design of zeros and the code -1; or
                role -> policy (roles not named: ``"error"``). A label that obs lacks is always unknown.

        Returns:
            (design: role -> [n, c] float32, one-hot categories and standardised numbers; code: role -> [n] int64, position in
            ``categories(role)``, -1 where unknown or a combination that never occurred).

        Raises:
            SchemaError: A missing column or, with ``"error"``, an unseen or missing value.
        """
        policy = policies(unknown)
        design: dict[str, Array] = {}
        code: dict[str, Array] = {}
        for role in self._wanted(roles):
            parts, bad = parts_of(obs, self.roles[role], role, policy[role])
            design[role] = design_of(parts, self.roles[role])
            code[role] = joint(parts, bad, self.roles[role], self.observed[role])
        return design, code

    def seen(self, obs: pd.DataFrame, roles: Sequence[str] | None = None) -> dict[str, Array]:
        """Role -> [n] whether the joint combination of the role's categories occurred in training."""
        _, code = self.covariates(obs, roles, unknown="zero")
        return {role: c >= 0 for role, c in code.items()}

    def under(self, obs: pd.DataFrame, to: Mapping[str, Value]) -> pd.DataFrame:
        """A copy of obs with other covariates: ``schema.under(obs, {"condition": "stimulated"})``.

        Raises:
            SchemaError: A column that no role has, or a value that is not known.
        """
        out = obs.copy(deep=False)
        for name, value in to.items():
            column = self.column(name)
            role = next(r for r, cs in self.roles.items() if column in cs)
            dtype = object if isinstance(column, Category) else np.float64
            try:
                one = pd.Series([value], dtype=dtype)
            except (TypeError, ValueError):
                raise SchemaError(f"{name!r} ({role}) is a column of numbers; found {value!r}. Pass a number.") from None
            if isinstance(column, Category):
                at = int(cols.codes(one, column, role=role, unknown="error")[0])
                out[name] = pd.Categorical.from_codes(np.full(len(out), at), categories=pd.Index(column.values, dtype=object))
            else:
                cols.numbers(one, column, role=role, unknown="error")
                out[name] = np.full(len(out), float(one.iloc[0]))
        return out

    def to_spec(self) -> dict[str, Any]:
        """The schema as plain data: what ``json`` writes."""
        return {
            "genes": list(self.genes),
            "x": self.x,
            "kind": self.kind,
            "roles": {r: [cols.to_spec(c) for c in cs] for r, cs in self.roles.items()},
            "observed": {r: [list(o) for o in os] for r, os in self.observed.items()},
            "size": self.size,
            "fractional": self.fractional,
            "empty": self.empty,
            "density": self.density,
        }

    @classmethod
    def from_spec(cls, spec: Any) -> Schema:
        """The schema that ``to_spec`` described.

        Raises:
            FormatError: Unknown or missing keys, or values of the wrong type.
        """
        if not isinstance(spec, dict):
            raise FormatError(f"A schema is a dictionary; found {type(spec).__name__}.")
        cols.require_keys(spec, _KEYS, "The schema")
        texts = [("genes", spec["genes"])] + [(k, [spec[k]]) for k in ("kind", "fractional", "empty")]
        texts += [(k, [spec[k]]) for k in ("x", "size") if spec[k] is not None]
        for key, values in texts:
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise FormatError(f"{key} of a schema must be text; found {spec[key]!r:.80}.")
        density = spec["density"]
        if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 <= density <= 1:
            raise FormatError(f"density of a schema must lie in 0 to 1; found {density!r}.")
        roles = {r: tuple(cols.from_spec(c) for c in _list(cs, f"role {r!r}")) for r, cs in _dict(spec["roles"], "roles").items()}
        observed = {}
        for role, found in _dict(spec["observed"], "observed").items():
            known = [c for c in roles.get(role, ()) if isinstance(c, Category)]
            places = [c.positions() for c in known]
            observed[role] = tuple(tuple(_list(o, "a combination")) for o in _list(found, f"observed[{role!r}]"))
            for o in observed[role]:
                if len(o) != len(known) or not all(cols.is_plain(v) and cols.key(v) in at for v, at in zip(o, places, strict=True)):
                    raise FormatError(f"observed[{role!r}] of a schema holds {o!r}, which is not made of the role's categories.")
        try:
            return cls(
                tuple(spec["genes"]),
                spec["kind"],
                spec["x"],
                roles,
                observed,
                spec["size"],
                spec["fractional"],
                spec["empty"],
                float(density),
            )
        except SchemaError as error:
            raise FormatError(f"The saved schema cannot be used: {error}") from None

    def _wanted(self, roles: Sequence[str] | None) -> list[str]:
        for role in roles or ():
            require_option("role", role, ROLES)
        return [r for r in ROLES if r in self.roles and (roles is None or r in roles)]


def _names(given: str | Sequence[str], role: str) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    if not names or not all(isinstance(n, str) for n in names):
        raise SchemaError(f"{role} must name a column of obs, or several; found {given!r}. Leave it out to have none.")
    if repeated(names):
        raise SchemaError(f"{role} names the column {repeated(names)[0]!r} twice. Name it once.")
    return names


def _refuse_shared(asked: Mapping[str, Sequence[str]]) -> None:
    """Refuse a column with two roles; a label may be one of another role's columns, since it is only read by a predictor."""
    owner: dict[str, str] = {}
    for role in ("condition", "invariant", "spurious"):
        for name in asked.get(role, ()):
            if name in owner:
                raise SchemaError(
                    f"obs[{name!r}] is asked for as {owner[name]} and as {role}; a column plays one role. "
                    f"Asked for: {'; '.join(f'{r}: {listing(ns)}' for r, ns in asked.items())}. Leave it out of one."
                )
            owner[name] = role


def _refuse_numeric_label(roles: Mapping[str, Sequence[Column]]) -> None:
    for column in roles.get("label", ()):
        if isinstance(column, Number):
            raise SchemaError(
                f"obs[{column.name!r}] (label) must hold categories; found numbers. "
                f"Make it categorical: adata.obs[{column.name!r}] = adata.obs[{column.name!r}].astype('category')."
            )


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{what} of a schema must be a list; found {type(value).__name__}.")
    return value


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what} of a schema must be a dictionary; found {type(value).__name__}.")
    return value
