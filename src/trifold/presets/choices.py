"""Choices that all presets make in the same way."""

from __future__ import annotations

from trifold.core import Bernoulli, Gaussian, Likelihood, NegativeBinomial, Poisson, ZeroInflated
from trifold.data import Schema
from trifold.errors import SchemaError, SpecError, suggest

_FOR_KIND = {"counts": "negative_binomial", "real": "gaussian", "binary": "bernoulli"}
LIKELIHOODS: dict[str, type[Gaussian | NegativeBinomial | ZeroInflated | Poisson | Bernoulli]] = {
    "gaussian": Gaussian,
    "negative_binomial": NegativeBinomial,
    "zero_inflated": ZeroInflated,
    "poisson": Poisson,
    "bernoulli": Bernoulli,
}


def likelihood_for(schema: Schema, features: int, *, name: str | None, dispersion: str = "gene", role: str = "condition") -> Likelihood:
    """The likelihood of a name, or the one for the schema's kind of values.

    Args:
        schema: Says the kind of the values, the number of genes and of conditions.
        features: Width h of the decoder's features.
        name: As presets name it, or None.
        dispersion: ``"gene"`` or ``"condition"``, for counts.
        role: Role whose joint category selects the inverse dispersion.

    Raises:
        SpecError: An unknown name, or a likelihood of other values than the schema's.
    """
    name = name or _FOR_KIND[schema.kind]
    if name not in LIKELIHOODS:
        raise SpecError(f"likelihood needs one of {', '.join(map(repr, LIKELIHOODS))}; found {name!r}.{suggest(name, LIKELIHOODS)}")
    cls = LIKELIHOODS[name]
    fits = cls.kind == schema.kind or cls.kind == "real"
    if not fits:
        raise SpecError(
            f"likelihood={name!r} is for {cls.kind}; the schema says that x holds {schema.kind} values. "
            f"Pass x=<layer with {cls.kind}> to Schema.of, or choose likelihood={_FOR_KIND[schema.kind]!r}."
        )
    genes = len(schema.genes)
    if issubclass(cls, (NegativeBinomial, ZeroInflated)):
        return cls(features, genes, dispersion=dispersion, conditions=len(schema.categories(role)), role=role)
    return cls(features, genes)


def role_of(schema: Schema, name: str | None) -> str | None:
    """The role that a column plays, for arguments that take either.

    Raises:
        SchemaError: Neither a role of the schema nor a column of one.
    """
    if name is None or name in schema.roles:
        return name
    for role, columns in schema.roles.items():
        if name in [column.name for column in columns]:
            return role
    known = [*schema.roles, *(c.name for columns in schema.roles.values() for c in columns)]
    raise SchemaError(
        f"within={name!r} is neither a role nor a column of the schema.{suggest(name, known)} It has: {', '.join(known) or 'none'}. "
        f"Make the schema with Schema.of(data, ..., label={name!r})."
    )
