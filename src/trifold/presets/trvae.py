"""trVAE: match conditions by MMD in the first decoder layer, then decode cells under another condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trifold.core import VAE, Decoder, EffectDecoder, Gaussian, Posterior, StandardNormal
from trifold.data import Schema
from trifold.errors import SchemaError, SpecError
from trifold.model import Model
from trifold.nets import MLP
from trifold.presets.choices import likelihood_for, role_of
from trifold.schedule import Ramp
from trifold.terms import KL, MMD, NLL, Objective, Shrinkage
from trifold.terms.mmd import PUBLISHED_BANDWIDTHS
from trifold.train import Plan

PLAIN: dict[str, Any] = {"latent": 20, "hidden": (128, 128), "mmd": 1.0, "kl": 1.0}
PUBLISHED: dict[str, Any] = {"latent": 40, "hidden": (800, 800, 128), "mmd": 10.0, "kl": 1e-6}  # per cell; kl per latent dimension


def trvae(
    schema: Schema,
    *,
    latent: int | None = None,
    hidden: Sequence[int] | None = None,
    likelihood: str | None = None,
    dispersion: str = "condition",
    mmd: float | None = None,
    within: str | None = None,
    kl: float | None = None,
    rank: int = 8,
    blind: float = 0.1,
    shrinkage: float = 1.0,
    published: bool = False,
    seed: int = 0,
) -> Model:
    r"""A model that predicts cells under a condition never seen for their type. Cell-type labels are not used in training.

    .. math:: L = -\log p(x \mid z, s) + \mathrm{kl} \cdot \mathrm{KL} + \mathrm{mmd} \cdot \overline{\mathrm{MMD}^2}
              + \mathrm{shrinkage} \cdot \mathrm{prior}(\delta, U, \theta) / n

    in nats per cell. The decoder adds to each cell's log rate (or value) one effect per condition, and a low-rank departure from it that
    varies smoothly with z; both are shrunk to zero (:class:`trifold.core.EffectDecoder`). It trains on all cells for a number of steps that
    the data decide; pass ``validation=0.1, patience=30`` to ``fit`` for early stopping instead.

    Args:
        schema: With a ``condition``.
        latent: Number of latent dimensions d.
        hidden: Widths of the encoder's layers; the decoder mirrors them.
        likelihood: ``"gaussian"``, ``"negative_binomial"``, ``"zero_inflated"``, ``"poisson"``, ``"bernoulli"``, or None: from the data.
        dispersion: Inverse dispersion of counts: one per ``"gene"``, or one per gene and ``"condition"``.
        mmd: Weight of the MMD between conditions.
        within: Match conditions only inside the categories of this column (or role), where their proportions differ between conditions.
        kl: Weight of the KL divergence.
        rank: Rank of the departures from the mean effect (plain preset).
        blind: Share of the genes that the encoder does not see: those that the condition changes most (plain preset).
        shrinkage: Weight of the prior on effects and inverse dispersions (plain preset; :class:`trifold.terms.Shrinkage`).
        published: The paper's own choices: Gaussian on log-normalised values, BatchNorm, 800-800-128, d = 40, biased MMD with 19 fixed
            bandwidths, summed over pairs, weight 10 per cell (see docs/units.md).
        seed: Of the initial weights.

    Returns:
        An untrained model.

    Raises:
        SchemaError: The schema has no condition.
        SpecError: A likelihood that is not for data of this kind, or another argument out of its range.

    Source: Lotfollahi, Naghipourfar, Theis, Wolf. Bioinformatics 36 (2020) i610. Deviations of the plain preset: docs/deviations.md.
    """
    if not schema.roles.get("condition"):
        raise SchemaError("trvae needs a condition; this schema has none. Make it with Schema.of(data, condition=<column of obs>).")
    given = {"latent": latent, "hidden": hidden, "mmd": mmd, "kl": kl}
    chosen = (PUBLISHED if published else PLAIN) | {name: value for name, value in given.items() if value is not None}
    _check(chosen, rank=rank, shrinkage=shrinkage)
    inside = role_of(schema, within)
    match = {
        "groups": len(schema.categories("condition")),
        "within": inside,
        "strata": len(schema.categories(inside)) if inside else 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if published:
            return _published(schema, likelihood, match, **chosen)
        return _plain(schema, likelihood, dispersion, match, rank=rank, blind=blind, shrinkage=shrinkage, **chosen)


def _plain(
    schema: Schema,
    likelihood: str | None,
    dispersion: str,
    match: Mapping[str, Any],
    *,
    latent: int,
    hidden: Sequence[int],
    mmd: float,
    kl: float,
    rank: int,
    blind: float,
    shrinkage: float,
) -> Model:
    style: dict[str, Any] = {"norm": "layer", "activation": "gelu", "dropout": 0.1}
    transform = "lognorm" if schema.kind == "counts" else "none"
    encoder = MLP(len(schema.genes), hidden, **style)
    decoder = EffectDecoder(
        MLP(latent, tuple(reversed(hidden)), **style),
        MLP(latent, (64,), norm="layer", activation="gelu"),
        rank=rank,
        covariates=schema.width("condition"),
        roles=("condition",),
    )
    vae = VAE(
        Posterior(encoder, latent, transform=transform, blind=blind),
        StandardNormal(latent),
        decoder,
        likelihood_for(schema, decoder.width, name=likelihood, dispersion=dispersion),
    )
    objective = Objective(
        {"nll": NLL(), "kl": KL(), "mmd": MMD(**match), "shrinkage": Shrinkage()},
        {"kl": Ramp(kl, end=0.3), "mmd": mmd, "shrinkage": shrinkage},
    )
    plan = Plan(batch=128, lr=2e-3, decay="cosine", plateau=None, patience=None, validation=0.0, balance="condition", steps=1_500)
    return Model(schema, vae, objective, plan=plan, preset="trvae")


def _published(
    schema: Schema, likelihood: str | None, match: Mapping[str, Any], *, latent: int, hidden: Sequence[int], mmd: float, kl: float
) -> Model:
    if schema.kind != "real" or likelihood not in (None, "gaussian"):
        raise SpecError(
            f"The published trVAE is Gaussian on log-normalised values; found {schema.kind} values and likelihood={likelihood!r}. "
            "Normalise first (scanpy.pp.normalize_total, scanpy.pp.log1p) and make the schema of that layer, or leave out published=True."
        )
    style: dict[str, Any] = {"norm": "batch", "activation": "leaky_relu", "slope": 0.3, "dropout": 0.2, "init": "glorot_normal"}
    style["covariates"] = schema.width("condition")
    decoder = Decoder(MLP(latent, tuple(reversed(hidden)), **style), roles=("condition",))
    squares = Gaussian(decoder.width, len(schema.genes), variance="fixed", value=0.5, nonnegative=True)  # -log p is the sum of squares
    torch.nn.init.xavier_normal_(squares.out.weight)
    posterior = Posterior(MLP(len(schema.genes), hidden, **style), latent, roles=("condition",))
    vae = VAE(posterior, StandardNormal(latent), decoder, squares)
    match = {**match, "bandwidths": PUBLISHED_BANDWIDTHS, "unbiased": False, "reduction": "sum"}
    objective = Objective({"nll": NLL(), "kl": KL(), "mmd": MMD(**match)}, {"kl": kl / latent, "mmd": mmd})
    plan = Plan(batch=512, lr=1e-3, clip=None, patience=20, plateau=10, steps=6_000)
    return Model(schema, vae, objective, plan=plan, preset="trvae")


def _check(chosen: Mapping[str, Any], *, rank: int, shrinkage: float) -> None:
    for name, value, least in (
        ("latent", chosen["latent"], 1),
        ("rank", rank, 0),
        ("mmd", chosen["mmd"], 0),
        ("kl", chosen["kl"], 0),
        ("shrinkage", shrinkage, 0),
        *(("hidden", width, 1) for width in chosen["hidden"]),
    ):
        if value < least:
            raise SpecError(f"trvae needs {name} >= {least}; found {value}.")
    if not chosen["hidden"]:
        raise SpecError("trvae needs at least one hidden layer, whose activations are matched; found hidden=(). Pass hidden=(128, 128).")
