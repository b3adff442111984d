"""Γ-VAE: penalise the curvature of the decoder's surface, so that straight lines in the latent mean something beyond the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trifold.core import VAE, Decoder, Gaussian, Likelihood, Posterior, StandardNormal
from trifold.data import Schema
from trifold.errors import SpecError
from trifold.model import Model
from trifold.nets import MLP
from trifold.presets.choices import likelihood_for
from trifold.schedule import Ramp
from trifold.terms import KL, NLL, Curvature, Isometry, Objective, Term
from trifold.train import Plan

PLAIN: dict[str, Any] = {"latent": 10, "hidden": (128, 128), "extrinsic": 1.0, "parameter": 3.0}
PUBLISHED: dict[str, Any] = {"latent": 3, "hidden": (200, 100, 50), "extrinsic": 0.5, "parameter": 100.0, "isometry": 100.0}
_ROLES = ("spurious",)  # technique is given to the decoder; biology is for z to find


def gamma_vae(
    schema: Schema,
    *,
    latent: int | None = None,
    hidden: Sequence[int] | None = None,
    likelihood: str | None = None,
    extrinsic: float | None = None,
    parameter: float | None = None,
    isometry: float | None = None,
    kl: float = 1.0,
    refine: int | None = None,
    published: bool = False,
    seed: int = 0,
) -> Model:
    r"""A model whose decoder spans a surface as flat, with a latent grid as even, as the data allow.

    .. math:: L = -\log p(x \mid z) + \mathrm{kl} \cdot \mathrm{KL} + \tfrac{g}{1000}\,\left(
              \mathrm{extrinsic}\,R^2\,\overline{E} + \mathrm{parameter}\,R^2\,\overline{P} + \mathrm{isometry}\,\overline{D}\right)

    in nats per cell, with g the number of genes, E and P the extrinsic and parameter-effects curvature of the decoder's surface
    (:func:`trifold.geometry.curvature`), R² the mean squared distance of decoded points to their centroid, and D the relaxed distortion
    (:class:`trifold.terms.Isometry`). Curvature is taken in the last linear space: the mean of real values, the log rate of counts less its
    mean over genes. With weights of 0 this is a VAE with the same networks, trained the same way.

    Encoder and decoder are a linear map plus a network each, and begin at the data's principal components; a trained model improves each
    cell's latent by a few steps on the decoder's own terms (:func:`trifold.core.locate`). If the schema has ``spurious`` columns the
    decoder sees them; other roles are left for z to find.

    Args:
        schema: For bulk, log values (``kind="real"``); for single cells, counts.
        latent: Number of latent dimensions d. Curvature is exact up to 6, by random directions above.
        hidden: Widths of the encoder's layers; the decoder mirrors them.
        likelihood: ``"gaussian"``, ``"negative_binomial"``, ``"zero_inflated"``, ``"poisson"``, ``"bernoulli"``, or None: from the data.
        extrinsic: Weight of what bends the surface; 1 if None.
        parameter: Weight of what bends the latent grid; 3 if None.
        isometry: Weight of the relaxed distortion; 0 by default: coordinates are rectified afterwards, ``model.latent(rectified=True)``.
        kl: Weight of the KL divergence.
        refine: Steps by which a cell's latent is improved; 0: the encoder's answer as it is. None: 10 for real values, where a step is
            cheap and helps with cells unlike those of training; 0 for counts, where it changed nothing that we measured.
        published: What is known of the authors' 2026 follow-up: 200-100-50, softplus, d = 3, weight 100 on everything that distorts
            distances and 0.5 on extrinsic curvature; no linear paths, no refinement. What is not known is said in docs/deviations.md.
        seed: Of the initial weights.

    Returns:
        An untrained model.

    Raises:
        SpecError: A likelihood that is not for data of this kind, or another argument out of its range.

    Source: Kim, Perrin-Gilbert, Narmanli, Klein, Myers, Cohen, Waterfall, Sethna. arXiv 2403.01078 (2024).
    """
    given = {"latent": latent, "hidden": hidden, "extrinsic": extrinsic, "parameter": parameter, "isometry": isometry, "refine": refine}
    defaults = {"isometry": 0.0, "refine": 10 if _gaussian(schema, likelihood) and not published else 0} | (
        PUBLISHED if published else PLAIN
    )
    chosen = defaults | {name: value for name, value in given.items() if value is not None} | {"kl": kl}
    _check(chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = _vae(schema, likelihood, published, chosen)
    objective = _objective(len(schema.genes), published, chosen)
    plan = Plan(batch=128, lr=2e-3, decay="cosine", plateau=None, patience=None, validation=0.0, steps=800)
    return Model(schema, vae, objective, plan=plan, preset="gamma_vae")


def _vae(schema: Schema, likelihood: str | None, published: bool, chosen: Mapping[str, Any]) -> VAE:
    genes, latent, hidden = len(schema.genes), chosen["latent"], tuple(chosen["hidden"])
    roles = tuple(role for role in _ROLES if role in schema.roles)
    covariates = sum(schema.width(role) for role in roles)
    smooth: dict[str, Any] = {"norm": "none", "activation": "softplus"}
    encoder = MLP(genes, hidden, **(smooth if published else {"norm": "layer", "activation": "gelu", "dropout": 0.1}))
    network = MLP(latent, tuple(reversed(hidden)), covariates=covariates, **smooth)
    decoder = Decoder(network, roles=roles, skip=not published)
    transform = "lognorm" if schema.kind == "counts" else "none"
    noise: Likelihood
    if _gaussian(schema, likelihood):
        noise = Gaussian(decoder.width, genes, variance="fixed" if published else "shared")
    else:
        noise = likelihood_for(schema, decoder.width, name=likelihood)
    posterior = Posterior(encoder, latent, transform=transform, linear=not published)
    return VAE(posterior, StandardNormal(latent), decoder, noise, refine=chosen["refine"])


def _gaussian(schema: Schema, likelihood: str | None) -> bool:
    """Whether the noise is Gaussian on real values."""
    return schema.kind == "real" and likelihood in (None, "gaussian")


def _objective(genes: int, published: bool, chosen: Mapping[str, Any]) -> Objective:
    terms: dict[str, Term] = {"nll": NLL(), "kl": KL()}
    weights: dict[str, Any] = {"kl": Ramp(chosen["kl"], end=0.3) if published else chosen["kl"]}
    unit = genes / 1000
    if chosen["extrinsic"] or chosen["parameter"]:
        terms["curvature"] = Curvature(extrinsic=chosen["extrinsic"], parameter=chosen["parameter"])
        weights["curvature"] = Ramp(unit, begin=0.1, end=0.4)
    if chosen["isometry"]:
        terms["isometry"] = Isometry()
        weights["isometry"] = Ramp(unit * chosen["isometry"], begin=0.1, end=0.4)
    return Objective(terms, weights)


def _check(chosen: Mapping[str, Any]) -> None:
    least = {"latent": 1, "extrinsic": 0, "parameter": 0, "isometry": 0, "kl": 0, "refine": 0}
    for name, value in [*((name, chosen[name]) for name in least), *(("hidden", width) for width in chosen["hidden"])]:
        if not value >= least.get(name, 1):
            raise SpecError(f"gamma_vae needs {name} >= {least.get(name, 1)}; found {value}.")
    if not chosen["hidden"]:
        raise SpecError("gamma_vae needs at least one hidden layer; found hidden=(). Without one the surface is flat: use PCA.")
