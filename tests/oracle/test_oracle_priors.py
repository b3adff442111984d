"""Priors: sums over blocks, closed forms against Monte Carlo, densities that integrate, and what identifies the latent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from trifold.core import VAE, BlockPosterior, Blocks, ConditionalGaussian, Decoder, Energy, Gaussian, Mixture, Posterior, StandardNormal
from trifold.core.posterior import draw
from trifold.errors import ShapeError, SpecError
from trifold.nets import MLP
from trifold.records import Batch, Pass, Progress, Rows
from trifold.spec import from_spec, to_spec
from trifold.terms import KL, NLL, Objective, ScoreMatching


def gaussian(mean: torch.Tensor, scale: torch.Tensor) -> Independent:
    return Independent(Normal(mean, scale), 1)


def batch_of(n: int, categories: int = 3, numbers: int = 0) -> Batch:
    code = torch.arange(n) % (categories + 1) - 1
    design = torch.cat([torch.nn.functional.one_hot(code + 1, categories + 1)[:, 1:].float(), torch.randn(n, numbers)], 1)
    roles = {"invariant": code, "spurious": code.flip(0)}
    return Batch(Rows.of_dense(torch.zeros(n, 1)), torch.ones(n, 1), design={"invariant": design}, code=roles)


def pass_of(qz, prior, batch: Batch, generator: torch.Generator | None = None) -> Pass:
    class Holder:
        pass

    Holder.prior = prior
    return Pass(batch=batch, qz=qz, z=draw(qz, generator), h=qz.mean, vae=Holder, taps={}, progress=Progress.done())


def shaken(prior):
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_()
    return prior


def conditional(latent: int, role: str = "invariant") -> ConditionalGaussian:
    return shaken(ConditionalGaussian(latent, 3, role=role))


def energy(latent: int = 2, **options) -> Energy:
    return shaken(Energy(latent, 3, role="invariant", hidden=(6, 5), **options))


# -- blocks -----------------------------------------------------------------------------------------------------------------------


def test_blocks_cut_z_in_the_order_given_and_sum_their_densities():
    a, b, c = conditional(2), conditional(1, "spurious"), shaken(Mixture(3, 2))
    prior, batch, z = Blocks({"spurious": b, "invariant": a, "rest": c}), batch_of(9), torch.randn(9, 6)
    assert prior.slices == {"spurious": slice(0, 1), "invariant": slice(1, 3), "rest": slice(3, 6)}
    assert prior.latent == 6
    assert prior.distribution(batch) is None
    expected = b.log_prob(z[:, :1], batch) + a.log_prob(z[:, 1:3], batch) + c.log_prob(z[:, 3:], batch)
    torch.testing.assert_close(prior.log_prob(z, batch), expected)
    assert list(from_spec(to_spec(prior)).slices) == ["spurious", "invariant", "rest"]


@torch.no_grad()
def test_the_kl_of_gaussian_blocks_is_torchs_closed_form_and_monte_carlo_agrees_within_four_and_a_half_standard_errors():
    prior, batch = Blocks({"invariant": conditional(3), "spurious": conditional(2, "spurious")}), batch_of(50)
    qz = gaussian(torch.randn(50, 5), torch.rand(50, 5) + 0.1)
    closed = KL()(pass_of(qz, prior, batch))
    torch.testing.assert_close(closed, kl_divergence(qz, prior.distribution(batch)), rtol=1e-5, atol=1e-4)
    z = draw(Independent(Normal(*(t.expand(4000, 50, 5) for t in (qz.mean, qz.stddev))), 1), torch.Generator().manual_seed(0))
    draws = torch.stack([qz.log_prob(some) - prior.log_prob(some, batch) for some in z])
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - closed).abs() < 4.5 * error).all()


def test_a_block_without_a_closed_form_is_sampled_and_the_others_are_not():
    first = conditional(2)
    prior, batch = Blocks({"invariant": first, "spurious": energy(1)}), batch_of(20)
    qz = gaussian(torch.randn(20, 3), torch.rand(20, 3) + 0.1)
    p = pass_of(qz, prior, batch)
    q = [gaussian(qz.mean[:, s], qz.stddev[:, s]) for s in (slice(2), slice(2, 3))]
    expected = (
        kl_divergence(q[0], first.distribution(batch)) + q[1].log_prob(p.z[:, 2:]) - prior.blocks["spurious"].log_prob(p.z[:, 2:], batch)
    )
    torch.testing.assert_close(KL()(p), expected)


def test_free_bits_of_a_block_protect_that_block_only():
    prior, batch = Blocks({"invariant": StandardNormal(1), "spurious": StandardNormal(1)}), batch_of(2)
    mean = torch.tensor([[0.1, 0.1], [3.0, 0.1]], requires_grad=True)
    p = pass_of(gaussian(mean, torch.ones(2, 2)), prior, batch)
    value = KL(free={"spurious": 0.5})(p)
    torch.testing.assert_close(value, torch.tensor([0.505, 5.0]))
    value.sum().backward()
    torch.testing.assert_close(mean.grad, torch.tensor([[0.1, 0.0], [3.0, 0.0]]))
    torch.testing.assert_close(KL(free=0.5)(p), torch.tensor([0.5, 4.505]))
    with pytest.raises(SpecError, match=r"spurius.*Did you mean 'spurious'"):
        KL(free={"spurius": 0.5})(p)
    with pytest.raises(SpecError, match="up to a constant"):
        KL(free={"a": 0.5})(pass_of(gaussian(mean, torch.ones(2, 2)), Blocks({"a": energy()}), batch))
    with pytest.raises(SpecError, match="free"):
        KL(free={"spurious": -0.5})


@pytest.mark.parametrize(
    "blocks", [{}, {"a": 3}, {"a": Blocks({"b": StandardNormal(1)})}, {"a.b": StandardNormal(1)}, {"keys": StandardNormal(1)}]
)
def test_blocks_that_are_none_are_refused(blocks):
    with pytest.raises(SpecError, match=r"block|Block"):
        Blocks(blocks)


# -- gaussians and mixtures -------------------------------------------------------------------------------------------------------


def test_embedded_categories_share_a_low_rank_table_and_numbers_shift_it_linearly():
    prior = shaken(ConditionalGaussian(4, 3, role="invariant", embedding=2, numbers=(3, 4)))
    batch = batch_of(12, numbers=2)
    law, code, x = prior.distribution(batch), batch.code["invariant"], batch.design["invariant"][:, 3:]
    for i in range(12):
        e = torch.cat([prior.place[code[i]], torch.ones(1)])
        known = float(code[i] >= 0)
        torch.testing.assert_close(law.mean[i], known * (e @ prior.mean + x[i] @ prior.mean_slope))
        torch.testing.assert_close(law.variance[i].log(), known * (e @ prior.log_var + x[i] @ prior.log_var_slope), rtol=1e-4, atol=1e-5)
    assert [name for name, _ in ConditionalGaussian(2, 2, role="r").named_parameters()] == ["mean", "log_var"]
    with pytest.raises(SpecError, match="embedding"):
        ConditionalGaussian(2, 2, role="r", embedding=-1)
    with pytest.raises(ShapeError, match="'r'"):
        ConditionalGaussian(2, 2, role="r").log_prob(torch.zeros(12, 2), batch)


def test_a_prior_that_begins_untrained_is_the_standard_normal_or_close():
    batch, z = batch_of(8, numbers=1), torch.randn(8, 2)
    normal = StandardNormal(2).log_prob(z, batch)
    torch.testing.assert_close(ConditionalGaussian(2, 3, role="invariant", numbers=(3,)).log_prob(z, batch), normal)
    torch.testing.assert_close(ConditionalGaussian(2, 3, role="invariant", embedding=2).log_prob(z, batch), normal, rtol=0.05, atol=0.2)
    torch.testing.assert_close(Energy(2, 3, role="invariant").log_prob(z, batch), normal, rtol=0, atol=0.5)


def test_a_mixture_is_the_weighted_sum_of_its_gaussians_and_samples_follow_it():
    prior, batch, z = shaken(Mixture(2, 3)), batch_of(7), torch.randn(7, 2)
    share = prior.logit.softmax(0)
    parts = [
        w * MultivariateNormal(m, torch.diag(v.exp())).log_prob(z).exp() for w, m, v in zip(share, prior.mean, prior.log_var, strict=True)
    ]
    torch.testing.assert_close(prior.log_prob(z, batch), sum(parts).log(), rtol=1e-4, atol=1e-5)
    law = prior.distribution(batch_of(20_000))
    error = law.stddev[0] / math.sqrt(20_000)
    assert ((law.sample().mean(0) - share @ prior.mean).abs() < 4.5 * error).all()
    assert (Mixture(2, 3).mean.std(0) > 0).all(), "components must differ at the start"
    with pytest.raises(SpecError, match="components"):
        Mixture(2, 0)


# -- energy -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softplus", "silu", "gelu", "tanh"])
@torch.no_grad()
def test_an_energy_falls_off_as_its_gaussian_does_along_every_ray(activation):
    prior, batch = energy(4, activation=activation).double(), batch_of(40)
    for parameter in prior.parameters():
        parameter.mul_(3)
    u = torch.nn.functional.normalize(torch.randn(40, 4, dtype=torch.float64), dim=1)
    r = 1e8
    fall = prior.log_prob(r * u, batch) / r**2
    torch.testing.assert_close(fall, -0.5 * (u.square() / prior.gaussian.distribution(batch).variance).sum(1), rtol=1e-3, atol=0)


@torch.no_grad()
def test_an_energy_has_a_finite_integral_that_lies_within_a_finite_square():
    prior = energy(2).double()
    axis = torch.linspace(-60, 60, 1201, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    many = Batch(Rows.of_dense(torch.zeros(len(z), 1)), torch.ones(len(z), 1), code={"invariant": torch.ones(len(z), dtype=torch.int64)})
    height = prior.log_prob(z, many).exp().reshape(1201, 1201)
    whole, inner = float(height.sum()), float(height[300:901, 300:901].sum())
    assert 0 < whole < math.inf
    assert inner == pytest.approx(whole, rel=1e-6)


def test_derivatives_of_an_energy_equal_finite_differences_to_the_second_order():
    prior, batch = energy(3).double(), batch_of(5)
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: prior.log_prob(v, batch), z)
    assert torch.autograd.gradgradcheck(lambda v: prior.log_prob(v, batch), z)


def test_an_energy_without_tilt_is_its_gaussian_and_unknown_categories_are_standard_normal():
    prior, batch, z = energy(), batch_of(8), torch.randn(8, 2)
    unknown = batch.code["invariant"] < 0
    torch.testing.assert_close(prior.log_prob(z, batch)[unknown], StandardNormal(2).log_prob(z, batch)[unknown])
    with torch.no_grad():
        prior.tilt.zero_()
    torch.testing.assert_close(prior.log_prob(z, batch), prior.gaussian.log_prob(z, batch))
    with pytest.raises(SpecError, match="smooth"):
        Energy(2, 2, role="r", activation="relu")
    with pytest.raises(SpecError, match="layer"):
        Energy(2, 2, role="r", hidden=())


def moved(prior) -> set[str]:
    return {name for name, p in prior.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_kl_moves_the_encoder_and_the_normalised_block_and_score_matching_moves_the_energy_only():
    prior = Blocks({"invariant": energy(), "spurious": conditional(1, "spurious")})
    mean, raw = torch.randn(30, 3, requires_grad=True), torch.zeros(30, 3, requires_grad=True)
    p = pass_of(gaussian(mean, raw.exp()), prior, batch_of(30))
    torch.testing.assert_close(prior.held(p.z, p.batch), prior.log_prob(p.z, p.batch))
    KL()(p).sum().backward(retain_graph=True)
    assert moved(prior) == {"_blocks.spurious.mean", "_blocks.spurious.log_var"}
    assert (mean.grad[:, :2] != 0).all()
    assert (raw.grad[:, :2] != 0).all()
    prior.zero_grad()
    mean.grad = raw.grad = None
    ScoreMatching("invariant")(p).sum().backward()
    assert moved(prior) == {f"_blocks.invariant.{name}" for name, _ in energy().named_parameters()}
    assert mean.grad is None
    assert raw.grad is None


# -- identifiability --------------------------------------------------------------------------------------------------------------


def mcc(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute correlation of matched columns."""
    from scipy.optimize import linear_sum_assignment

    both = np.abs(np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :])
    return float(both[linear_sum_assignment(-both)].mean())


def encoded(x: torch.Tensor, segment: torch.Tensor, prior, steps: int = 1000) -> np.ndarray:
    """[n, d] posterior means of a linear VAE after training."""
    torch.manual_seed(0)
    d, g = prior.latent, x.shape[1]
    vae = VAE(Posterior(MLP(g, ()), d), prior, Decoder(MLP(d, ())), Gaussian(d, g, variance="shared"))
    batch = Batch(Rows.of_dense(x), torch.ones(len(x), 1), code={"segment": segment})
    objective, generator = Objective({"nll": NLL(), "kl": KL()}), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(vae(batch, generator=generator)).loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return vae.encode(batch).mean.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_variances_by_segment_identify_linear_sources_as_fastica_does_and_a_standard_normal_or_shuffled_segments_do_not(seed):
    """20 segments of 200 cells, 4 sources whose scale changes by segment, 20 noisy mixtures of them."""
    from sklearn.decomposition import FastICA

    rng = torch.Generator().manual_seed(seed)
    segment = torch.arange(20).repeat_interleave(200)
    scale = 0.3 + 2 * torch.rand(20, 4, generator=rng)
    source = scale[segment] * torch.randn(4000, 4, generator=rng)
    source = source / source.std(0)
    x = source @ torch.randn(4, 20, generator=rng) + 0.5 * torch.randn(4000, 20, generator=rng)
    ica = FastICA(4, random_state=seed, whiten="unit-variance", max_iter=1000).fit_transform(x.numpy().astype(np.float64))
    shuffled = segment[torch.randperm(4000, generator=rng)]
    found = {
        "conditional": encoded(x, segment, ConditionalGaussian(4, 20, role="segment", learned="variance")),
        "standard": encoded(x, segment, StandardNormal(4)),
        "shuffled": encoded(x, shuffled, ConditionalGaussian(4, 20, role="segment", learned="variance")),
    }
    score = {name: mcc(z, source.numpy()) for name, z in found.items()}
    assert score["conditional"] > mcc(ica, source.numpy()) - 0.01, score
    assert score["conditional"] > max(score["standard"], score["shuffled"]) + 0.08, score


# -- cells of unknown category, and moving between categories ---------------------------------------------------------------------


def open_prior(latent: int = 2, **options) -> ConditionalGaussian:
    return shaken(ConditionalGaussian(latent, 3, role="invariant", unknown="mixture", **options))


def test_a_cell_of_unknown_category_has_the_mean_density_of_all_categories():
    prior, z = open_prior(), torch.randn(8, 2)
    every = torch.stack([prior.log_prob(z, known(8, k)) for k in range(3)])
    assert torch.allclose(prior.log_prob(z, known(8, -1)).exp(), every.exp().mean(0), rtol=1e-5)
    assert torch.equal(prior.log_prob(z, known(8, 1)), every[1])


def known(n: int, category: int) -> Batch:
    code = torch.full((n,), category)
    return Batch(Rows.of_dense(torch.zeros(n, 1)), torch.ones(n, 1), code={"invariant": code, "spurious": code})


@pytest.mark.parametrize("embedding", [0, 2])
def test_the_divergence_of_unlabelled_cells_is_an_upper_bound_that_is_tight_where_categories_are_far_apart_or_the_same(embedding):
    torch.manual_seed(0)
    prior = open_prior(embedding=embedding)
    qz = gaussian(torch.randn(6, 2), torch.rand(6, 2) + 0.2)
    bound = KL()(pass_of(qz, prior, known(6, -1)))
    estimate = torch.stack([qz.log_prob(z) - prior.log_prob(z, known(6, -1)) for z in qz.sample((4_000,))])
    error = estimate.std(0) / math.sqrt(len(estimate))
    assert (bound > estimate.mean(0) - 4.5 * error).all()
    with torch.no_grad():
        for table in (prior.mean, prior.log_var):
            table.copy_(table[:1].expand_as(table) * (0 if embedding else 1))
    same = KL()(pass_of(qz, prior, known(6, -1)))
    assert torch.allclose(same, KL()(pass_of(qz, prior, known(6, 1))), atol=1e-5)


def test_far_apart_an_unlabelled_cell_pays_its_own_category_and_the_log_of_their_number():
    prior = open_prior()
    with torch.no_grad():
        prior.mean.copy_(torch.tensor([[-50.0, 0.0], [0.0, 50.0], [50.0, 0.0], [0.0, 0.0]]))
        prior.log_var.zero_()
    qz = gaussian(prior.mean[[1, 1]] + 0.3, torch.full((2, 2), 0.7))
    own = KL()(pass_of(qz, prior, known(2, 1)))
    assert torch.allclose(KL()(pass_of(qz, prior, known(2, -1))), own + math.log(3), atol=1e-4)


def test_the_divergence_from_a_mixture_is_a_bound_and_exact_for_one_component():
    torch.manual_seed(1)
    prior, batch = shaken(Mixture(2, 3)), known(5, -1)
    qz = gaussian(torch.randn(5, 2), torch.rand(5, 2) + 0.2)
    estimate = torch.stack([qz.log_prob(z) - prior.log_prob(z, batch) for z in qz.sample((4_000,))])
    assert (KL()(pass_of(qz, prior, batch)) > estimate.mean(0) - 4.5 * estimate.std(0) / math.sqrt(4_000)).all()
    one = shaken(Mixture(2, 1))
    exact = kl_divergence(qz, gaussian(one.mean.expand(5, 2), torch.exp(0.5 * one.log_var).expand(5, 2)))
    assert torch.allclose(KL()(pass_of(qz, one, batch)), exact, atol=1e-5)


def test_cells_are_assigned_to_their_known_category_or_the_likeliest():
    prior, z = open_prior(), torch.randn(6, 2)
    batch = known(6, -1).under(code={"invariant": torch.tensor([-1, -1, 0, 1, 2, -1])})
    found = prior.candidates(batch).assign(z)
    likely = torch.stack([prior.log_prob(z, known(6, k)) for k in range(3)]).argmax(0)
    assert torch.equal(found, torch.tensor([int(likely[0]), int(likely[1]), 0, 1, 2, int(likely[5])]))
    mixture = shaken(Mixture(2, 3))
    own = mixture.distribution(batch)
    likely = (own.component_distribution.log_prob(z[:, None]) + own.mixture_distribution.logits).argmax(1)
    assert torch.equal(mixture.candidates(batch).assign(z), likely)
    assert conditional(2).candidates(batch) is None


def test_the_divergences_of_the_blocks_add_up_to_that_of_all():
    prior, batch = Blocks({"invariant": open_prior(), "spurious": conditional(1, "spurious")}), batch_of(9)
    p = pass_of(gaussian(torch.randn(9, 3), torch.rand(9, 3) + 0.1), prior, batch)
    assert torch.allclose(KL("invariant")(p) + KL("spurious")(p), KL()(p), atol=1e-5)


@pytest.mark.parametrize("prior", [conditional(2), energy(2)], ids=["gaussian", "energy"])
def test_carrying_takes_the_quantiles_of_one_category_to_those_of_the_other_and_back(prior):
    here, there, z = known(5, 0), known(5, 2), torch.randn(5, 2)
    law = prior.gaussian if isinstance(prior, Energy) else prior
    moved = prior.carry(z, here, there)
    assert torch.allclose(law.distribution(here).base_dist.cdf(z), law.distribution(there).base_dist.cdf(moved), atol=1e-5)
    assert torch.allclose(prior.carry(moved, there, here), z, atol=1e-5)
    assert prior.roles == ("invariant",)


def test_carrying_moves_each_block_along_its_own_role():
    prior, z = Blocks({"invariant": conditional(2), "spurious": conditional(1, "spurious")}), torch.randn(4, 3)
    here = known(4, 0)
    there = here.under(code={"spurious": torch.full((4,), 2)})
    moved = prior.carry(z, here, there)
    assert torch.allclose(moved[:, :2], z[:, :2], atol=1e-5)
    assert not torch.allclose(moved[:, 2], z[:, 2])
    assert prior.roles == ("invariant", "spurious")
    assert StandardNormal(3).carry(z, here, there) is z


def test_what_cannot_be_an_unknown_category_is_refused():
    with pytest.raises(SpecError, match="'normal' or, for a role without numbers, 'mixture'"):
        ConditionalGaussian(2, 3, role="invariant", unknown="mixture", numbers=(3,))
    with pytest.raises(SpecError, match="spread >= 0"):
        ConditionalGaussian(2, 3, role="invariant", spread=1.0, embedding=2)
    with pytest.raises(SpecError, match="free as a number"):
        KL("invariant", free={"invariant": 1.0})


def test_categories_begin_as_far_apart_as_asked():
    torch.manual_seed(0)
    means = ConditionalGaussian(50, 40, role="spurious", spread=2.0).mean.detach()
    assert abs(float(means.std()) - 2.0) < 0.1


# -- an encoder for each block ----------------------------------------------------------------------------------------------------


def test_a_block_posterior_is_its_parts_side_by_side_and_shares_nothing():
    parts = {"invariant": Posterior(MLP(6, (4,)), 3), "spurious": Posterior(MLP(6, (4,)), 2)}
    both = BlockPosterior(parts)
    batch = Batch(Rows.of_dense(torch.randn(5, 6)), torch.ones(5, 1))
    qz = both(batch)
    assert both.latent == 5
    assert torch.equal(qz.mean, torch.cat([part(batch).mean for part in parts.values()], 1))
    assert torch.equal(qz.stddev, torch.cat([part(batch).stddev for part in parts.values()], 1))
    qz.mean[:, 3:].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in parts["invariant"].parameters())
    with pytest.raises(SpecError, match="needs a Posterior"):
        BlockPosterior({"invariant": StandardNormal(2)})


def test_hidden_covariates_are_those_of_unknown_cells_and_only_in_training():
    torch.manual_seed(0)
    posterior = Posterior(MLP(2, (4,), covariates=3), 2, roles=("invariant",), hidden_share=0.4)
    x, one = torch.ones(2_000, 2), torch.tensor([[0.0, 1.0, 0.0]]).expand(2_000, 3)
    batch = Batch(Rows.of_dense(x), torch.ones(2_000, 1), design={"invariant": one})
    told, untold = posterior.eval()(batch).mean[0], posterior(batch.under(invariant=0 * one)).mean[0]
    mean = posterior.train()(batch).mean
    unseen = torch.isclose(mean, untold, atol=1e-5).all(1)
    assert torch.isclose(mean[~unseen], told, atol=1e-5).all()
    assert abs(float(unseen.float().mean()) - 0.4) < 4.5 * math.sqrt(0.4 * 0.6 / 2_000)
