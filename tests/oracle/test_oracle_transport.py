"""Transport: equal features give x back, and what is moved follows the target's law."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from trifold.core import Bernoulli, Gaussian, NegativeBinomial, Poisson, ZeroInflated
from trifold.records import Batch, Rows

GENES, CELLS = 4, 20_000


def make(name: str):
    likelihoods = {
        "negative_binomial": lambda: NegativeBinomial(3, GENES),
        "by_condition": lambda: NegativeBinomial(3, GENES, dispersion="condition", conditions=2),
        "zero_inflated": lambda: ZeroInflated(3, GENES),
        "zero_inflated_by_condition": lambda: ZeroInflated(3, GENES, dispersion="condition", conditions=2),
        "poisson": lambda: Poisson(3, GENES),
        "bernoulli": lambda: Bernoulli(3, GENES),
        "gaussian_fixed": lambda: Gaussian(3, GENES, variance="fixed", value=0.7),
        "gaussian_gene": lambda: Gaussian(3, GENES, variance="gene"),
        "gaussian_cell": lambda: Gaussian(3, GENES, variance="cell"),
    }
    torch.manual_seed(4)
    like = likelihoods[name]()
    with torch.no_grad():
        for key, parameter in like.named_parameters():
            parameter.add_((0.06 if "theta" in key else 0.6) * torch.randn(parameter.shape))
    return like


NAMES = [
    "negative_binomial",
    "by_condition",
    "zero_inflated",
    "zero_inflated_by_condition",
    "poisson",
    "bernoulli",
    "gaussian_fixed",
    "gaussian_gene",
    "gaussian_cell",
]


def cells(like, h: torch.Tensor, code: int, rng: torch.Generator) -> Batch:
    n = len(h)
    batch = Batch(Rows.of_dense(torch.zeros(n, GENES)), torch.full((n, 1), 12.0), code={"condition": torch.full((n,), code)})
    x = like.sample(h, batch, generator=rng)
    return Batch(Rows.of_dense(x), batch.size, code=batch.code)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_equal_features_give_the_cells_back(name):
    like, rng = make(name), torch.Generator().manual_seed(0)
    h = torch.randn(500, 3, generator=rng)
    batch = cells(like, h, 1, rng)
    moved = like.transport(h, h, batch, batch, generator=rng)
    if like.kind == "real":
        torch.testing.assert_close(moved, batch.rows.dense)
    else:
        assert torch.equal(moved, batch.rows.dense)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_moved_follows_the_targets_law(name):
    """Mean and variance within 4.5 standard errors for each gene; for counts also every frequency, by chi-square at p > 1e-4."""
    like, rng = make(name), torch.Generator().manual_seed(7)
    h, target = (torch.randn(1, 3, generator=rng).expand(CELLS, 3) for _ in range(2))
    batch = cells(like, h, 0, rng)
    under = batch.under(code={"condition": torch.ones(CELLS, dtype=torch.int64)})
    moved = like.transport(h, target, batch, under, generator=rng).double()
    law = like.distribution(target[:1], under.head(1))
    source = like.distribution(h[:1], batch.head(1))
    assert float((law.mean - source.mean).abs().max()) > 0.1
    centred = moved - law.mean.double()
    error = moved.std(0) / math.sqrt(CELLS)
    assert (centred.mean(0).abs() < 4.5 * error).all()
    squared = centred.square()
    assert ((squared.mean(0) - law.variance.double()[0]).abs() < 4.5 * squared.std(0) / math.sqrt(CELLS) + 1e-6).all()
    if like.kind == "real":
        return
    for gene in range(GENES):
        top = int(moved[:, gene].max()) + 1
        found = torch.bincount(moved[:, gene].long(), minlength=top).double()
        values = torch.arange(top, dtype=torch.float32)[:, None].expand(top, GENES)
        expected = CELLS * law.log_prob(values).double().exp()[:, gene]
        full = expected >= 5
        found = torch.cat([found[full], found[~full].sum()[None]])
        expected = torch.cat([expected[full], (CELLS - expected[full].sum())[None]]).clamp_min(1e-9)
        if expected[-1] < 5:  # too rare to test
            found, expected = found[:-1], expected[:-1]
        chi2 = float(((found - expected) ** 2 / expected).sum())
        assert stats.chi2.sf(chi2, max(1, len(found) - 1)) > 1e-4, f"gene {gene}"


@torch.no_grad()
def test_counts_keep_their_own_noise_and_few_molecules_change():
    like, rng = make("negative_binomial"), torch.Generator().manual_seed(1)
    h = torch.randn(4000, 3, generator=rng)
    target = h + 0.15 * torch.randn(4000, 3, generator=rng)
    batch = cells(like, h, 0, rng)
    moved = like.transport(h, target, batch, batch, generator=rng)
    fresh = like.sample(target, batch, generator=rng)
    x = batch.rows.dense
    assert (moved - x).abs().mean() < 0.25 * (fresh - x).abs().mean()


@torch.no_grad()
def test_a_cell_that_stays_in_its_condition_is_given_back_whatever_the_others_do():
    like, rng = make("by_condition"), torch.Generator().manual_seed(1)
    h, target = torch.randn(60, 3, generator=rng), torch.randn(60, 3, generator=rng)
    batch = cells(like, h, 1, rng)
    code = torch.arange(60) % 2
    batch = batch.under(code={"condition": code})
    target = torch.where(code[:, None] == 1, h, target)
    moved = like.transport(h, target, batch, batch.under(code={"condition": torch.ones_like(code)}), generator=rng)
    assert torch.equal(moved[code == 1], batch.rows.dense[code == 1])


@torch.no_grad()
def test_a_count_that_the_model_held_to_be_impossible_is_given_back_too():
    like = Poisson(1, 2)
    like.out.weight.zero_()
    like.out.bias.copy_(torch.tensor([0.0, -60.0]))
    batch, h = Batch(Rows.of_dense(torch.tensor([[3.0, 2.0]])), torch.tensor([[5.0]])), torch.zeros(1, 1)
    assert like.transport(h, h, batch, batch).tolist() == [[3.0, 2.0]]
