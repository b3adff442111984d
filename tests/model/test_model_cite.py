"""What a model is cited with: the preset's paper, and the sources of the parts that it has, not of those it could have."""

from __future__ import annotations

import pytest
from block_cases import schema_of, study

import trifold
from trifold import Objective
from trifold.cite import bibtex
from trifold.spec import to_spec

PAPERS = {
    "aliee2023conditionally", "ganin2016domain", "hershey2007approximating", "hyvarinen2005estimation", "gretton2005measuring",
    "song2012feature", "chen2018isolating", "arjovsky2019invariant", "gretton2012kernel",
}  # fmt: skip


def cited(text: str) -> set[str]:
    return {key for key in PAPERS if text.count(f"{{{key},") == 1}


@pytest.mark.parametrize(
    ("roles", "given", "more"),
    [
        ({}, {}, {"ganin2016domain", "hershey2007approximating"}),
        ({"invariant": None}, {}, {"ganin2016domain", "hershey2007approximating"}),
        ({}, {"prior": "energy"}, {"ganin2016domain", "hyvarinen2005estimation"}),
        ({}, {"published": True}, {"chen2018isolating"}),
    ],
)
def test_invae_is_cited_with_the_parts_in_use(roles, given, more):
    model = trifold.invae(schema_of(study(60), **roles), **given)
    assert cited(model.cite()) == {"aliee2023conditionally", *more}


@pytest.mark.parametrize(
    ("term", "keys"),
    [
        (lambda: trifold.HSIC(), {"gretton2005measuring", "song2012feature"}),
        (lambda: trifold.ConditionalMMD(), {"gretton2012kernel"}),
        (lambda: trifold.TotalCorrelation(), {"chen2018isolating"}),
        (lambda: trifold.ScoreMatching(), {"hyvarinen2005estimation"}),
        (lambda: trifold.Probe(width=2, categories=2), {"ganin2016domain"}),
        (lambda: trifold.Predictor("invariant", "label", width=2, categories=2), set()),
        (lambda: trifold.Predictor("invariant", "label", width=2, categories=2, irm=1.0), {"arjovsky2019invariant"}),
    ],
)
def test_terms_bring_their_sources(term, keys):
    text = bibtex(to_spec({"objective": Objective({"nll": trifold.NLL(), "term": term()}, {"term": 1.0})}))
    assert cited(text) == keys


def test_every_entry_has_as_many_braces_open_as_closed():
    from trifold.cite import _ENTRIES

    for name, entry in _ENTRIES.items():
        assert entry.count("{") == entry.count("}"), name
        assert all(f"{field} " in entry for field in ("title", "author", "year")), name
