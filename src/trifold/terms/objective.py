"""The objective: named, weighted terms; it prints as a table."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trifold.errors import SpecError, suggest
from trifold.records import Pass, Progress, Report
from trifold.schedule import Schedule, weight_now
from trifold.share import ALONE, Share
from trifold.spec import Component, arguments
from trifold.terms.base import Term
from trifold.terms.whole import whole


class Objective(Component, nn.Module):
    """The weighted sum of named terms, in nats per cell.

    Args:
        terms: name -> term.
        weights: name -> number or schedule; a missing name weighs 1.

    Raises:
        SpecError: A weight for a term that is not there, or no term.
    """

    share: Share = ALONE

    def __init__(self, terms: Mapping[str, Term], weights: Mapping[str, float | Schedule] | None = None):
        super().__init__()
        unknown = [name for name in weights or {} if name not in terms]
        if unknown or not terms:
            found = "found none. Pass Objective({'nll': NLL(), 'kl': KL()})."
            if terms:
                found = f"none is named {unknown[0]!r}.{suggest(unknown[0], terms)} There are: {', '.join(terms)}."
            raise SpecError(f"Objective needs terms, and one for each weight; {found}")
        wrong = [name for name, term in terms.items() if not isinstance(term, Term)]
        if wrong:
            raise SpecError(
                f"Objective needs terms that derive from Term; {wrong[0]!r} is a {type(terms[wrong[0]]).__name__}. "
                "Derive its class from trifold.Term."
            )
        self._terms = nn.ModuleDict(terms)
        self.weights: dict[str, float | Schedule] = {name: (weights or {}).get(name, 1.0) for name in terms}

    @property
    def terms(self) -> dict[str, Term]:
        """name -> term."""
        return dict(self._terms.items())  # type: ignore[arg-type]

    @property
    def joint(self) -> bool:
        """Whether any term is not a sum over cells."""
        return any(term.joint for term in self.terms.values())

    def forward(self, p: Pass) -> Report:
        """The weighted sum, each raw value, and the weights at this progress. A term of weight 0 is not evaluated."""
        values: dict[str, Tensor] = {}
        together = whole(p, self.share) if self.joint else p
        weights = {name: weight_now(w, p.progress) for name, w in self.weights.items()}
        loss: Tensor | None = None
        for name, term in self.terms.items():
            if weights[name] == 0 and not isinstance(self.weights[name], Schedule):
                continue
            value = term(together if term.joint else p).mean()
            values[name] = value.detach()
            if weights[name] != 0:
                weighed = value if weights[name] == 1 else weights[name] * value
                loss = weighed if loss is None else loss + weighed
        loss = torch.zeros((), device=p.z.device) if loss is None else loss
        return Report(loss=loss, values=values, weights=weights)

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows of (name, weight, term, kind) for people."""
        rows = []
        for name, term in self.terms.items():
            weight = self.weights[name]
            at = (
                f"{weight:g}"
                if not isinstance(weight, Schedule)
                else f"{weight_now(weight, Progress(0, 1)):g} → {weight_now(weight, Progress.done()):g}"
            )
            rows.append((name, at, _signature(term), "joint" if term.joint else "per cell"))
        return rows

    def __repr__(self) -> str:
        rows = [("term", "weight", "value", "kind"), *self.table()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _signature(term: Term) -> str:
    """The term as one would write it: arguments that are not their defaults."""
    known = inspect.signature(type(term)).parameters if arguments(type(term)) else {}
    shown = {name: getattr(term, name) for name, p in known.items() if getattr(term, name) != p.default}
    return f"{type(term).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items() if not isinstance(v, tuple) or len(v) < 4)})"
