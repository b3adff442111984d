"""inVAE: an invariant block of the latent for biology, a spurious block for technique, each with a prior of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trifold.core import VAE, BlockPosterior, Decoder, Posterior
from trifold.core.prior import Blocks, ConditionalGaussian, Energy, Mixture, Prior, StandardNormal
from trifold.data import Schema
from trifold.data.columns import Number
from trifold.errors import SchemaError, SpecError, suggest
from trifold.model import Model
from trifold.nets import MLP
from trifold.presets.choices import likelihood_for
from trifold.schedule import Ramp
from trifold.terms import KL, NLL, Objective, Predictor, Probe, ScoreMatching, Term, TotalCorrelation
from trifold.train import Plan

PLAIN: dict[str, Any] = {"invariant": 20, "spurious": 5, "hidden": (128, 128), "independence": 3.0, "inject": "beside"}
PUBLISHED: dict[str, Any] = {"invariant": 30, "spurious": 5, "hidden": (128, 128), "independence": 0.0, "inject": "never"}
PRIORS = ("gaussian", "energy")
INJECT = ("beside", "instead", "never")
LABEL = 100.0  # weight of the label's cross-entropy
_STYLE: dict[str, Any] = {"norm": "layer", "activation": "gelu", "dropout": 0.1}
_PUBLISHED_STYLE: dict[str, Any] = {"norm": "batch", "activation": "relu", "dropout": 0.1}
_PLAN = Plan(batch=128, lr=2e-3, decay="cosine", plateau=None, patience=None, validation=0.1, steps=2_000)
_PUBLISHED_PLAN = Plan(batch=256, lr=1e-3, weight_decay=1e-4, clip=None, patience=None, plateau=None, validation=0.1)
_SPREAD = 2.0  # of the technical means that training begins with, in standard deviations within a category


def invae(
    schema: Schema,
    *,
    invariant: int | None = None,
    spurious: int | None = None,
    hidden: Sequence[int] | None = None,
    likelihood: str | None = None,
    prior: str = "gaussian",
    components: int = 16,
    independence: float | None = None,
    technique: float = 10.0,
    inject: str | None = None,
    label_dropout: float | None = None,
    published: bool = False,
    seed: int = 0,
) -> Model:
    r"""A model whose latent has an invariant block, biology, and a spurious block, technique.

    .. math:: p(z_I, z_S, x \mid d, e) = p(z_I \mid d)\, p(z_S \mid e)\, p(x \mid z_I, z_S)

    with d the role ``invariant`` and e the role ``spurious``. The encoders work from x alone: neither labels nor batches are needed to
    place a cell. Cells whose d is unknown (``Schema.of(unlabelled=...)``) count as of any category; without the role, the prior of the
    invariant block is a mixture of Gaussians.

    Args:
        schema: With a ``spurious`` role; ``invariant`` (what biology is known) and ``label`` (what is to be predicted) if there are.
        invariant, spurious: Number of latent dimensions of the blocks.
        hidden: Widths of the encoder's layers; the decoder mirrors them.
        likelihood: As in the other presets; None: from the data.
        prior: ``"gaussian"``: factorised; ``"energy"``: not factorised over the dimensions of the invariant block; score matching fits it.
        components: Gaussians of the prior of the invariant block where the schema has no invariant role.
        independence: Weight of what keeps the invariant block from telling e: a probe with reversed gradient that is told d, or, where d is
            unknown, the component of the prior that a cell most likely belongs to (plain); the blocks' total correlation (published).
        technique: Weight of the spurious block's divergence from its prior against that of the invariant block: above 1, what the blocks
            could both say is said by the invariant one.
        inject: ``"beside"``: the decoder sees e beside the spurious block (plain); ``"instead"``: in its place, there is no spurious block;
            ``"never"``: the spurious block is all that the decoder knows of e (published).
        label_dropout: None: the encoder does not see d. Else it does, and for so large a share of the cells it is hidden in training.
        published: The paper's own choices: the encoder sees d and e, BatchNorm and ReLU, latents 30 + 5, prior means 0, no independence
            term, batches of 256.
        seed: Of the initial weights.

    Returns:
        An untrained model.

    Raises:
        SchemaError: The schema has no spurious role, or no invariant one where it is needed.
        SpecError: An argument out of its range.

    Source: Aliee, Kapl, Hediyeh-Zadeh, Theis, arXiv 2307.00558. Deviations of the plain preset: docs/deviations.md.
    """
    given = {"invariant": invariant, "spurious": spurious, "hidden": hidden, "independence": independence, "inject": inject}
    chosen = (PUBLISHED if published else PLAIN) | {name: value for name, value in given.items() if value is not None}
    _check(schema, chosen, prior, components=components, technique=technique, label_dropout=label_dropout)
    if chosen["inject"] == "instead":
        chosen["spurious"] = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        style, transform = (_PUBLISHED_STYLE, "log1p") if published else (_STYLE, "lognorm")
        d_seen = published or label_dropout is not None
        seen = [role for role, is_seen in (("invariant", d_seen), ("spurious", published)) if is_seen and role in schema.roles]
        latent = chosen["invariant"] + chosen["spurious"]

        def encoder(latent: int) -> Posterior:
            network = MLP(len(schema.genes), chosen["hidden"], covariates=sum(schema.width(role) for role in seen), **style)
            at = transform if schema.kind == "counts" else "none"
            return Posterior(network, latent, roles=seen, transform=at, hidden_share=label_dropout or 0.0)

        told = () if chosen["inject"] == "never" else ("spurious",)
        width = sum(schema.width(role) for role in told)
        decoder = Decoder(MLP(latent, tuple(reversed(chosen["hidden"])), covariates=width, **style), roles=told)
        vae = VAE(
            BlockPosterior({name: encoder(chosen[name]) for name in ("invariant", "spurious") if chosen[name]}),
            Blocks(_priors(schema, chosen, prior, components, published=published)),
            decoder,
            likelihood_for(schema, decoder.width, name=likelihood),
        )
        terms, weights = _terms(schema, chosen, prior, components, technique, published=published)
    plan = _PUBLISHED_PLAN if published else _PLAN
    return Model(schema, vae, Objective(terms, weights), plan=plan, preset="invae")


def _priors(schema: Schema, chosen: Mapping[str, Any], prior: str, components: int, *, published: bool) -> dict[str, Prior]:
    """The prior of each block."""
    learned = "variance" if published else "both"
    d, known = chosen["invariant"], len(schema.categories("invariant"))
    numbers = _numbers(schema, "invariant")
    priors: dict[str, Prior] = {}
    if prior == "energy":
        priors["invariant"] = Energy(d, known, role="invariant", learned=learned)
    elif known:
        unknown = "normal" if published or numbers else "mixture"
        priors["invariant"] = ConditionalGaussian(d, known, role="invariant", learned=learned, numbers=numbers, unknown=unknown)
    else:
        priors["invariant"] = StandardNormal(d) if published else Mixture(d, components)
    if chosen["spurious"]:
        batches = len(schema.categories("spurious"))
        spread = 0.0 if published else _SPREAD
        numbers = _numbers(schema, "spurious")
        priors["spurious"] = ConditionalGaussian(
            chosen["spurious"], batches, role="spurious", learned=learned, numbers=numbers, spread=spread
        )
    return priors


def _terms(
    schema: Schema, chosen: Mapping[str, Any], prior: str, components: int, technique: float, *, published: bool
) -> tuple[dict[str, Term], dict[str, Any]]:
    """The objective's terms and weights."""
    blocks = {"invariant": 1.0, "spurious": 1.0 if published else technique}
    terms: dict[str, Term] = {"nll": NLL()}
    weights: dict[str, Any] = {}
    for name, weight in blocks.items():
        if chosen[name]:
            terms[f"kl_{name}"] = KL(name)
            weights[f"kl_{name}"] = weight if published else Ramp(weight, end=0.3)
    if prior == "energy":
        terms["score_matching"] = ScoreMatching("invariant")
    known = len(schema.categories("invariant"))
    mixture = not published and prior == "gaussian" and not _numbers(schema, "invariant")
    strata = known or (components if mixture else 0)
    batches = len(schema.categories("spurious"))
    if published and chosen["spurious"]:
        terms["independence"] = TotalCorrelation(one_sided=False, centred=False)
        weights["independence"] = chosen["independence"]
    elif not published and batches > 1:
        told: dict[str, Any] = {"within": "invariant", "strata": strata, "inferred": mixture} if strata > 1 else {}
        terms["independence"] = Probe(width=chosen["invariant"], categories=batches, **told)
        weights["independence"] = chosen["independence"]
    if not published and chosen["spurious"] and batches > 1:
        terms["technique"] = Predictor("spurious", "spurious", width=chosen["spurious"], categories=batches)
    target = "label" if "label" in schema.roles else "invariant"
    if len(schema.categories(target)) > 1:
        categories = len(schema.categories(target))
        terms["label"] = Predictor("invariant", target, width=chosen["invariant"], categories=categories)
        weights["label"] = LABEL
    return terms, weights


def _numbers(schema: Schema, role: str) -> list[int]:
    """Columns of the role's design that hold numbers."""
    found, start = [], 0
    for column in schema.roles.get(role, ()):
        if isinstance(column, Number):
            found.append(start)
        start += column.width
    return found


def _check(
    schema: Schema, chosen: Mapping[str, Any], prior: str, *, components: int, technique: float, label_dropout: float | None
) -> None:
    if not schema.roles.get("spurious"):
        raise SchemaError(
            "invae needs a spurious role (batch, donor, site); this schema has none. "
            "Make it with Schema.of(data, spurious=<column of obs>)."
        )
    if prior not in PRIORS:
        raise SpecError(f"prior needs 'gaussian' or 'energy'; found {prior!r}.{suggest(prior, PRIORS)}")
    if chosen["inject"] not in INJECT:
        raise SpecError(
            f"inject needs one of {', '.join(map(repr, INJECT))}; found {chosen['inject']!r}.{suggest(str(chosen['inject']), INJECT)}"
        )
    if not schema.roles.get("invariant"):
        for name, asked in (("prior='energy'", prior == "energy"), ("label_dropout", label_dropout is not None)):
            if asked:
                raise SchemaError(
                    f"{name} needs an invariant role; this schema has none. Make it with Schema.of(data, ..., invariant=<column of obs>)."
                )
    for name, value, least in (
        ("invariant", chosen["invariant"], 1),
        ("spurious", chosen["spurious"], 1),
        ("components", components, 1),
        ("independence", chosen["independence"], 0),
        ("technique", technique, 0),
        ("label_dropout", label_dropout or 0, 0),
        *(("hidden", width, 1) for width in chosen["hidden"]),
    ):
        if value < least:
            raise SpecError(f"invae needs {name} >= {least}; found {value}.")
    if not chosen["hidden"]:
        raise SpecError("invae needs at least one hidden layer; found hidden=(). Pass hidden=(128, 128).")
