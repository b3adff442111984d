"""What trials are compared by: sums of the objective's terms with weights that no trial chooses."""

from __future__ import annotations

from typing import Any

from trifold.errors import SpecError, suggest
from trifold.model import Model
from trifold.records import Progress
from trifold.schedule import Schedule, weight_now
from trifold.sweeps.ranges import number
from trifold.terms import KL, NLL


def columns_of(metric: str, model: Model) -> dict[str, float]:
    """Column of the history -> weight, of a metric.

    Raises:
        SpecError: A term that the objective has not got, or one that is not evaluated; for ``"elbo"``, an objective without both halves of
            the bound, or a prior that is known up to a constant.
    """
    terms, weights = model.objective.terms, model.objective.weights
    off = [name for name in terms if weights[name] == 0 and not isinstance(weights[name], Schedule)]
    if metric == "loss":
        return {"validation/loss": 1.0}
    if metric == "elbo":
        chosen = dict.fromkeys(_bound(model), 1.0)
    else:
        chosen = {}
        for part in metric.split("+"):
            weight, star, name = (text.strip() for text in part.rpartition("*"))
            if name not in terms:
                raise SpecError(
                    f"metric needs 'elbo', 'loss' or a sum of terms, 'nll+kl+100*mmd'; found {name!r}.{suggest(name, terms)} "
                    f"This objective has: {', '.join(terms)}."
                )
            chosen[name] = chosen.get(name, 0.0) + (float(number("the weight in metric=", weight, metric)) if star else 1.0)
    unseen = [name for name in chosen if name in off]
    if unseen:
        raise SpecError(
            f"metric={metric!r} needs the term {unseen[0]!r}, whose weight is 0, so that it is not evaluated. "
            "Choose its weight from a range above 0, or name a metric without it."
        )
    return {f"validation/{name}": weight for name, weight in chosen.items()}


def _bound(model: Model) -> list[str]:
    """Terms that make up the evidence lower bound."""
    terms = model.objective.terms
    kl = {name: term for name, term in terms.items() if isinstance(term, KL)}
    blocks = getattr(model.vae.prior, "blocks", {})
    whole = [name for name, term in kl.items() if term.block is None]
    names = whole[:1] or list(kl)
    covered = bool(whole) or {term.block for term in kl.values()} == set(blocks)
    nll = [name for name, term in terms.items() if isinstance(term, NLL)]
    if not model.vae.prior.normalised or not kl or not covered or len(nll) != 1:
        why = "its prior is known up to a constant" if not model.vae.prior.normalised else "its objective lacks a half of it"
        raise SpecError(
            f"metric='elbo' needs the evidence lower bound; {why}. Name terms of the objective: metric={'+'.join(nll or terms)!r}."
        )
    return [*nll, *names]


def comparable(model: Model, metric: str) -> dict[str, Any]:
    """What must not differ between trials for their scores to mean the same."""
    out: dict[str, Any] = {"values": model.vae.likelihood.kind, "genes": len(model.schema.genes)}
    if metric == "loss":
        out["weights of the loss"] = {name: weight_now(w, Progress.done()) for name, w in model.objective.weights.items()}
    return out
