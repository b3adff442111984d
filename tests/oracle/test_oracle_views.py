"""The four views of each likelihood agree; Gaussian and Bernoulli equal torch's."""

from __future__ import annotations

import math

import pytest
import torch
from test_oracle_counts import csr_rows
from test_oracle_transport import GENES, NAMES, cells, make

from trifold.core import Bernoulli, Gaussian, NegativeBinomial
from trifold.errors import SpecError
from trifold.records import Batch, Rows


def batch_for(like, n: int = 60) -> tuple[torch.Tensor, Batch]:
    rng = torch.Generator().manual_seed(3)
    h = torch.randn(n, 3, generator=rng)
    batch = cells(like, h, 0, rng)
    size = torch.linspace(0.3, 900, n)[:, None]
    batch = Batch(batch.rows, size, code={"condition": torch.arange(n) % 3 - 1})
    return h, Batch(Rows.of_dense(like.sample(h, batch, generator=rng)), size, code=batch.code)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_log_prob_mean_and_shape_are_those_of_the_distribution(name):
    like = make(name)
    h, batch = batch_for(like)
    law = like.distribution(h, batch)
    x = batch.rows.dense
    assert tuple(law.batch_shape) == (60, GENES)
    assert law.event_shape == ()
    whole = law.log_prob(x).double().sum(1)
    # float32 relative to the largest terms that cancel: x log x in the Poisson's plain form
    tolerance = {"rtol": 5e-5, "atol": 1e-4} if name == "poisson" else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(like.log_prob(h, batch).double(), whole, **tolerance)
    sparse = Batch(csr_rows(x), batch.size, code=batch.code)
    torch.testing.assert_close(like.log_prob(h, sparse).double(), whole, **tolerance)
    torch.testing.assert_close(like.mean(h, batch), law.mean)
    if like.kind == "counts":
        shown = like.mean(h, batch) if name == "poisson" or "inflated" not in name else law.base.mean
        torch.testing.assert_close(shown.sum(1, keepdim=True), batch.size)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_many_samples_have_the_mean_and_variance_within_four_and_a_half_standard_errors(name):
    like, n = make(name), 20_000
    rng = torch.Generator().manual_seed(11)
    h = torch.randn(2, 3, generator=rng).repeat_interleave(n, 0)
    batch = cells(like, h, 0, rng)
    x, law = batch.rows.dense.double(), like.distribution(h, batch)
    for i in range(2):
        part = x[i * n : (i + 1) * n]
        mean, variance = law.mean[i * n].double(), law.variance[i * n].double()
        assert ((part.mean(0) - mean).abs() < 4.5 * part.std(0) / math.sqrt(n)).all()
        squared = (part - mean).square()
        assert ((squared.mean(0) - variance).abs() < 4.5 * squared.std(0) / math.sqrt(n) + 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_generator_decides_the_sample_and_the_global_one_is_left_alone(name):
    like = make(name)
    h, batch = batch_for(like)
    state = torch.get_rng_state()
    a, b = (like.sample(h, batch, generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, like.sample(h, batch, generator=torch.Generator().manual_seed(10)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("variance", ["fixed", "gene", "cell"])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_gaussian_log_prob_and_gradients_equal_torchs_normal(variance, nonnegative):
    like = Gaussian(3, 6, variance=variance, value=0.4, nonnegative=nonnegative)
    if variance == "cell":
        torch.nn.init.normal_(like.spread.weight)
    h, x = torch.randn(9, 3), torch.randn(9, 6) * 2
    got = like.log_prob(h, Batch(Rows.of_dense(x), torch.ones(9, 1)))
    mean = like.out(h)
    mean = mean.relu() if nonnegative else mean
    log_var = {"fixed": torch.tensor(math.log(0.4)), "gene": like.log_var, "cell": like.spread(h) if variance == "cell" else None}[variance]
    truth = torch.distributions.Normal(mean, torch.exp(0.5 * log_var)).log_prob(x).sum(1)
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(v.sum(), list(like.parameters()), retain_graph=True) for v in (got, truth))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_bernoulli_log_prob_equals_torchs_at_extreme_odds():
    like = Bernoulli(1, 3)
    with torch.no_grad():
        like.out.bias.copy_(torch.tensor([-80.0, 0.3, 80.0]))
    h, x = torch.randn(5, 1), torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    truth = torch.distributions.Bernoulli(logits=like.out(h).double()).log_prob(x.double()).sum(1)
    for rows in (Rows.of_dense(x), csr_rows(x)):
        torch.testing.assert_close(like.log_prob(h, Batch(rows, torch.ones(5, 1))).double(), truth, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_start_gives_the_datas_mean_at_untrained_features_even_with_constant_and_empty_genes(name):
    like = make(name)
    like.out.weight.zero_()
    mean, var = torch.tensor([0.0, 0.5, 0.25, 0.25]), torch.tensor([0.0, 0.1, 0.0, 0.2])
    like.start(mean, var)
    batch = Batch(Rows.of_dense(torch.zeros(1, GENES)), torch.ones(1, 1), code={"condition": torch.zeros(1, dtype=torch.int64)})
    h = torch.zeros(1, 3)
    got = like.distribution(h, batch).base.mean if "inflated" in name else like.mean(h, batch)
    torch.testing.assert_close(got[0], mean, atol=2e-3, rtol=0)
    assert torch.isfinite(like.log_prob(h, batch)).all()
    if "fixed" not in name and like.kind == "real":
        torch.testing.assert_close(like.distribution(h, batch).variance[0, [1, 3]], var[[1, 3]])


@pytest.mark.parametrize(
    ("make_one", "named"),
    [
        (lambda: Gaussian(2, 2, variance="both"), "variance"),
        (lambda: Gaussian(2, 2, value=0.0), "value"),
        (lambda: NegativeBinomial(2, 2, dispersion="cell"), "dispersion"),
        (lambda: NegativeBinomial(2, 2, dispersion="condition"), "conditions"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make_one, named):
    with pytest.raises(SpecError, match=named):
        make_one()
