"""Small models, and what the tests of faults in training compare."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path

import torch
from fault_cases import study

import trifold
from trifold import store
from trifold.terms import Objective

QUICK = {"batch": 16, "device": "cpu", "progress": False, "validation": 0.2}
EVERY = {*store.FILES, store.MANIFEST}


def model(schema=None, *, seed: int = 0):
    schema = schema or trifold.Schema.of(study(), "counts", condition="condition")
    return trifold.trvae(schema, latent=3, hidden=(8,), seed=seed)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def finite(one) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in one.network.state_dict().values() if t.is_floating_point())


def equal(a, b) -> bool:
    a, b = a.network.state_dict(), b.network.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@contextmanager
def quick():
    began = time.thread_time()
    yield
    assert time.thread_time() - began < 5


class Poison(trifold.Term):
    """Zero; from step ``at`` of training on, NaN or infinite, or with such a gradient."""

    def __init__(self, *, at: int, what: str):
        super().__init__()
        self.at, self.what, self.calls = at, what, 0

    def forward(self, p):
        zero = 0.0 * p.z.mean(1)
        if self.training:
            self.calls += 1
        if not self.training or self.calls <= self.at:
            return zero
        return {
            "nan": zero * float("nan"),
            "inf": zero + float("inf"),
            "nan in the gradient": torch.sqrt(zero * 0),  # a finite value, whose gradient is 0 * inf
            "inf in the gradient": torch.sqrt(p.z.mean(1) - p.z.mean(1).detach()),  # sqrt at 0
        }[self.what]


def poisoned(first, *, at: int, what: str):
    """A model like ``first``, untrained, with a :class:`Poison` among its terms."""
    plain = model(first.schema)
    return trifold.Model(first.schema, plain.vae, Objective({**plain.objective.terms, "mine": Poison(at=at, what=what)}), plan=plain.plan)
