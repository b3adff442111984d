"""What a model knows of its data, as plain data: genes, kind of values, and the columns that play each role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from trifold.data import columns as cols
from trifold.data import growing, saved
from trifold.data.asked import names_of, refuse_idle, refuse_numeric_label, refuse_shared, refuse_unlabelled
from trifold.data.check import EMPTY, FRACTIONAL, KINDS, check, repeated, require_option
from trifold.data.columns import PARTIAL, Category, Column, Value
from trifold.data.confounding import confounded_roles, warn_confounded
from trifold.data.covariates import ROLES, design_of, design_of_combinations, joint, parts_of, policies, require_column, sizes
from trifold.data.covariates import observed as occurring
from trifold.data.matrix import Array
from trifold.data.source import open
from trifold.data.unlabelled import as_values, warn_mistyped
from trifold.errors import COPY, FormatError, SchemaError, listing, suggest


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
        unlabelled: Values that mean "not known" in the columns of invariant and label; they are no categories.
        confounded: Pairs of roles whose joint categories split the cells into blocks that share none, in the order condition, invariant,
            spurious, label; none for schemas saved before this was looked at.
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
    unlabelled: tuple[Value, ...] = ()
    confounded: tuple[tuple[str, str], ...] = ()

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
        unlabelled: Value | Sequence[Any] | None = None,
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
            unlabelled: Value, or several, that means "not known" in the columns of invariant and label, and there only: ``"unknown"``.
                Cells that have it, now or later, get a design of zeros (a number: its mean) and the joint code -1.
            size: Column of obs with library sizes (counts per cell); None: the sum over genes.
            kind: ``"counts"``, ``"real"`` or ``"binary"``; None: chosen from the data (booleans: binary; whole, not negative: counts).
            fractional: ``"allow"`` takes nonnegative values that are not whole as counts.
            empty: Cells without a count: ``"error"``, ``"drop"`` or ``"keep"``.
            obs: [n, columns], for arrays, DataFrames and sparse matrices.

        Raises:
            DataError: Values, names or a structure that cannot be used; the message names matrix, row and gene.
            SchemaError: A column that is missing, has missing values or no known one, or plays two roles.
        """
        require_option("fractional", fractional, FRACTIONAL)
        require_option("empty", empty, EMPTY)
        if kind is not None:
            require_option("kind", kind, KINDS)
        source = open(data, x, obs)
        asked = {r: names_of(c, r) for r, c in zip(ROLES, (condition, invariant, spurious, label), strict=True) if c is not None}
        refuse_shared(asked)
        blank = as_values(unlabelled)
        refuse_idle(blank, asked)
        away = {r: blank if r in PARTIAL else () for r in asked}
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
        roles = {r: tuple(cols.describe(source.obs[n], name=n, role=r, unlabelled=away[r]) for n in names) for r, names in asked.items()}
        refuse_numeric_label(roles)
        observed = {r: occurring(source.obs, c, r, away[r]) for r, c in roles.items()}
        refuse_unlabelled(roles, observed)
        warn_mistyped(source.obs, asked, blank)
        warn_confounded(source.obs, {r: [c.name for c in cs if isinstance(c, Category)] for r, cs in roles.items()}, blank)
        schema = cls(
            genes=source.genes,
            kind=kind,
            x=source.x,
            roles=roles,
            observed=observed,
            size=size,
            fractional=fractional,
            empty=empty,
            density=round(found.density, 6),
            unlabelled=blank,
        )
        return replace(schema, confounded=confounded_roles({r: schema.encoded(source.obs, r)[1] for r in roles}, asked))

    def __post_init__(self) -> None:
        for name, options in (("kind", KINDS), ("fractional", FRACTIONAL), ("empty", EMPTY)):
            require_option(name, getattr(self, name), options)
        if repeated(self.genes) or not self.genes:
            raise SchemaError(
                f"A schema needs genes of different names; found {len(self.genes)}, repeated: {listing(repeated(self.genes)) or 'none'}. "
                "Make it with Schema.of(data)."
            )
        for role in self.roles:
            require_option("role", role, ROLES)
        if set(self.observed) != set(self.roles):
            raise SchemaError(
                f"observed must have the roles {listing(self.roles) or '(none)'}; found {listing(self.observed) or '(none)'}. "
                "Make the schema with Schema.of(data)."
            )
        for role in self.roles:
            away = {cols.key(v) for v in self.unlabelled_in(role)}
            both = [v for c in self.roles[role] if isinstance(c, Category) for v in c.values if cols.key(v) in away]
            if both:
                raise SchemaError(f"unlabelled values are no categories; {both[0]!r} is one of {role}. Leave it out of either.")
        for pair in self.confounded:
            if not set(pair) <= set(self.roles):
                raise SchemaError(
                    f"confounded must pair roles of the schema ({listing(self.roles) or 'none'}); found {pair!r}. Leave it out."
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

    def combinations(self, role: str) -> tuple[Array, Array]:
        """([k, c] float32 design, [k] int64 code) of the joint combinations that occurred, in the order of ``categories(role)``.

        Numbers are at their mean, 0. What a model averages over where the role is unknown.
        """
        found = self.categories(role)
        return design_of_combinations(self.roles.get(role, ()), found), np.arange(len(found), dtype=np.int64)

    def unlabelled_in(self, role: str) -> tuple[Value, ...]:
        """Values that mean "not known" in the role's columns; none but for invariant and label."""
        require_option("role", role, ROLES)
        return self.unlabelled if role in PARTIAL else ()

    def column(self, name: str) -> Column:
        """The :class:`Category` or :class:`Number` of that name, in whichever role; of a label that shares it, the other role's.

        Raises:
            SchemaError: No role has such a column.
        """
        return self._owner(name)[1]

    def covariates(
        self, obs: pd.DataFrame, roles: Sequence[str] | None = None, *, unknown: str | Mapping[str, str] = "error"
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Covariates of some cells as numbers.

        Args:
            obs: [n, columns].
            roles: Those wanted; None for all that the schema has. A role that the schema lacks is left out.
            unknown: ``"error"`` refuses unseen and missing values and absent columns, ``"zero"`` and ``"marginalise"`` give them a design
                of zeros and the code -1; or role -> policy (roles not named: ``"error"``). A label that obs lacks is always unknown, and
                so are unlabelled values.

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
            parts, code[role] = self.encoded(obs, role, policy[role])
            design[role] = design_of(parts, self.roles[role])
        return design, code

    def encoded(self, obs: pd.DataFrame, role: str, unknown: str = "error") -> tuple[list[Array], Array]:
        """The columns of one role as arrays, before they become a design, and the joint code.

        Args:
            obs: [n, columns].
            role: One that the schema has.
            unknown: ``"error"``, ``"zero"`` or ``"marginalise"``.

        Returns:
            ([n] of each column: int32 position of its category, -1 unknown, or float32 standardised number; [n] int64 code).
        """
        parts, bad = parts_of(obs, self.roles[role], role, unknown, self.unlabelled_in(role))
        return parts, joint(parts, bad, self.roles[role], self.observed[role])

    def seen(self, obs: pd.DataFrame, roles: Sequence[str] | None = None) -> dict[str, Array]:
        """Role -> [n] whether the joint combination of the role's categories occurred in training.

        Raises:
            SchemaError: A missing column, but for a label.
        """
        for role in self._wanted(roles):
            for column in self.roles[role] if role != "label" else ():
                require_column(obs, column.name, role=role)
        _, code = self.covariates(obs, roles, unknown="zero")
        return {role: c >= 0 for role, c in code.items()}

    def under(self, obs: pd.DataFrame, to: Mapping[str, Value]) -> pd.DataFrame:
        """A copy of obs with other covariates: ``schema.under(obs, {"condition": "stimulated"})``.

        Raises:
            SchemaError: A column that no role has, or a value that is not known or means so.
        """
        out = obs.copy(deep=False)
        for name, value in to.items():
            role, column = self._owner(name)
            if any(cols.key(cols.plain(value)) == cols.key(v) for v in self.unlabelled_in(role)):
                known = f" Known: {listing(map(repr, column.values), 10)}." if isinstance(column, Category) else ""
                raise SchemaError(f"{name!r} ({role}) needs a known value to move to; {value!r} means that it is not known.{known}")
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

    def grown(self, obs: pd.DataFrame, roles: str | Sequence[str] = ("spurious",)) -> Schema:
        """The schema with the categories of new cells appended: for mapping them onto a trained reference.

        Known values, codes, joint codes and the columns of each category's design keep their order; new values and new joint combinations
        follow. Numbers keep mean and scale, ``confounded`` stays that of the training data. Where an early column of several gets
        longer, the columns of later ones move: :meth:`placed` says where to.

        Args:
            obs: [n, columns] of the new cells.
            roles: Those that grow; other roles are neither looked at nor changed.

        Raises:
            SchemaError: A role that the schema lacks, or a missing column or value.
        """
        return replace(self, **growing.grown(self, obs, roles))

    def placed(self, grown: Schema, role: str) -> Array:
        """[c] int64 position, in the design of a schema that grew out of this one, of each column of this one's design.

        ``wider[:, schema.placed(grown, role)] = weights`` puts learned weights in their new places.

        Raises:
            SchemaError: The other schema did not grow out of this one.
        """
        return growing.placed(self, grown, role)

    def to_spec(self) -> dict[str, Any]:
        """The schema as plain data: what ``json`` writes."""
        return saved.to_spec(self)

    @classmethod
    def from_spec(cls, spec: Any) -> Schema:
        """The schema that ``to_spec`` described; one of an earlier version has no unlabelled values and nothing confounded.

        Raises:
            FormatError: Unknown or missing keys, or values of the wrong type.
        """
        fields = saved.from_spec(spec)
        try:
            return cls(**fields)
        except SchemaError as error:
            raise FormatError(f"The saved schema cannot be used: {error} {COPY}") from None

    def _owner(self, name: str) -> tuple[str, Column]:
        known: dict[str, tuple[str, Column]] = {}
        for role in self._wanted(None):
            for column in self.roles[role]:
                known.setdefault(column.name, (role, column))
        if name not in known:
            raise SchemaError(f"No role of the schema has a column {name!r}.{suggest(name, known)} It has: {listing(known, 10) or 'none'}.")
        return known[name]

    def _wanted(self, roles: Sequence[str] | None) -> list[str]:
        for role in roles or ():
            require_option("role", role, ROLES)
        return [r for r in ROLES if r in self.roles and (roles is None or r in roles)]
