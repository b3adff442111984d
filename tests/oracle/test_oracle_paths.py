"""Paths whose lengths are known: on a plane, a cylinder, a sphere; and genes that change along a direction."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trifold.core import VAE, Decoder, EffectDecoder, Gaussian, NegativeBinomial, Posterior, StandardNormal
from trifold.errors import ShapeError, SpecError
from trifold.geometry import geodesic, metric, signature, straight, straightness
from trifold.nets import MLP
from trifold.records import Batch, Rows

RADIUS = 1.7


def points(n: int, d: int = 2, *, low: float = -1.0, high: float = 1.0, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sphere(z: Tensor) -> Tensor:
    polar, round_ = z.T
    return RADIUS * torch.stack([polar.sin() * round_.cos(), polar.sin() * round_.sin(), polar.cos()], 1)


def stereographic(z: Tensor) -> Tensor:
    square = z.square().sum(1, keepdim=True)
    return RADIUS * torch.cat([2 * z, square - 1], 1) / (1 + square)


def great_circle(f, a: Tensor, b: Tensor) -> Tensor:
    return RADIUS * ((f(a) * f(b)).sum(1) / RADIUS**2).clamp(-1, 1).acos()


def polar(z: Tensor) -> Tensor:
    return torch.stack([z[:, 0] * z[:, 1].cos(), z[:, 0] * z[:, 1].sin()], 1)


def grid(z: Tensor) -> Tensor:
    """Arc s = u + u³ / 3 + v / 2 and height sinh v: neither by arc length nor at right angles."""
    u, v = z.T
    return torch.stack([u + u**3 / 3 + v / 2, v.sinh()], 1)


def cylinder(z: Tensor) -> Tensor:
    arc, height = grid(z).T
    return torch.stack([RADIUS * (arc / RADIUS).cos(), RADIUS * (arc / RADIUS).sin(), height], 1)


PLANE = points(3, 8, low=-2, high=2, seed=3)


def test_on_a_plane_the_straight_line_is_the_shortest():
    a, b = points(6, 3, seed=1), points(6, 3, seed=2)
    path = geodesic(lambda z: z @ PLANE + 1, a, b)
    torch.testing.assert_close(path.length, (a - b @ torch.eye(3).double()).matmul(PLANE).norm(dim=1), rtol=1e-10, atol=0)
    assert path.modes.abs().max() < 1e-8
    torch.testing.assert_close(straightness(lambda z: z @ PLANE, a, b), torch.ones(6).double(), rtol=1e-10, atol=0)


def test_in_polar_coordinates_of_the_plane_the_shortest_path_is_straight_in_the_plane():
    a, b = points(6, low=0.8, high=1.6, seed=1), points(6, low=0.8, high=1.6, seed=2)
    path = geodesic(polar, a, b)
    torch.testing.assert_close(path.length, (polar(a) - polar(b)).norm(dim=1), rtol=2e-6, atol=0)
    t = torch.linspace(0, 1, 11).double()
    track = polar(path.at(t).flatten(0, 1)).unflatten(0, (6, 11))
    on = polar(a)[:, None] + t[:, None] * (polar(b) - polar(a))[:, None]
    torch.testing.assert_close(track, on, rtol=0, atol=1e-4)  # and equal steps of t are equal lengths


@pytest.mark.parametrize(("f", "low", "high"), [(sphere, 0.7, 2.3), (stereographic, -0.9, 0.9)])
def test_on_a_sphere_the_shortest_path_is_the_great_circle(f, low, high):
    a, b = points(8, low=low, high=high, seed=4), points(8, low=low, high=high, seed=5)
    path = geodesic(f, a, b)
    torch.testing.assert_close(path.length, great_circle(f, a, b), rtol=1e-5, atol=0)
    assert (straight(f, a, b).length > path.length).all()
    assert (straightness(f, a, b) > 1 + 1e-4).any()


def test_between_two_points_of_a_parallel_the_shortest_path_leaves_it_by_the_right_amount():
    a, b = torch.tensor([[0.8, -0.7], [0.8, 0.7]], dtype=torch.float64).split(1)
    assert straight(sphere, a, b).length.item() == pytest.approx(RADIUS * math.sin(0.8) * 1.4, rel=1e-12)
    path = geodesic(sphere, a, b)
    assert path.length.item() == pytest.approx(great_circle(sphere, a, b).item(), rel=1e-5)
    half = path.at(torch.tensor([0.5]).double())[0, 0]
    middle = sphere(a) + sphere(b)
    torch.testing.assert_close(sphere(half[None]), RADIUS * middle / middle.norm(), rtol=0, atol=1e-3)


def test_a_cylinder_unrolls_into_a_plane():
    a, b = points(8, seed=6), points(8, seed=7)
    path = geodesic(cylinder, a, b)
    torch.testing.assert_close(path.length, (grid(a) - grid(b)).norm(dim=1), rtol=1e-6, atol=0)


def test_ends_and_equal_shares_of_a_path_are_where_they_should_be():
    a, b = points(5, seed=4, low=0.7, high=2.3), points(5, seed=5, low=0.7, high=2.3)
    path = geodesic(sphere, a, b)
    ends = path.at(torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(ends, torch.stack([a, b], 1), rtol=0, atol=1e-12)
    track = sphere(path.at(torch.linspace(0, 1, 401).double()).flatten(0, 1)).unflatten(0, (5, 401))
    steps = track.diff(dim=1).norm(dim=2)
    torch.testing.assert_close(steps.sum(1), path.length, rtol=1e-4, atol=0)
    assert ((steps / steps.mean(1, keepdim=True) - 1).abs() < 0.02).all()


def test_a_pair_has_the_path_that_it_has_alone_whatever_the_other_pairs():
    a, b = points(4, seed=4, low=0.7, high=2.3), points(4, seed=5, low=0.7, high=2.3)
    b[0] = a[0] + 1e-3  # a near pair beside far ones
    b[1] = a[1]  # and a pair that is one point
    together = geodesic(sphere, a, b)
    for i in range(4):
        alone = geodesic(sphere, a[i : i + 1], b[i : i + 1])
        torch.testing.assert_close(together.length[i], alone.length[0], rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(together.modes[i], alone.modes[0], rtol=0, atol=1e-4)
    assert together.length[1] < 1e-12
    assert straightness(sphere, a, b)[1] == pytest.approx(1)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(geodesic(sphere, a[order], b[order]).length, together.length[order], rtol=1e-7, atol=1e-12)


def network(decoder: str = "chain", likelihood: type = Gaussian) -> VAE:
    torch.manual_seed(0)
    part = {
        "chain": lambda: Decoder(MLP(2, (8,), norm="none", activation="tanh", covariates=3), roles=["condition"], skip=True),
        "layer": lambda: Decoder(MLP(2, (8,), norm="layer", activation="tanh", covariates=3), roles=["condition"]),
        "effects": lambda: EffectDecoder(MLP(2, (8,)), MLP(2, (8,)), rank=2, covariates=3, roles=["condition"]),
    }[decoder]()
    vae = VAE(Posterior(MLP(11, (4,)), 2), StandardNormal(2), part, likelihood(part.width, 11)).double()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter)
    return vae


def batch_of(n: int) -> Batch:
    return Batch(Rows.of_dense(torch.zeros(n, 11)), torch.ones(n, 1), {"condition": torch.eye(3).double()[torch.arange(n) % 3]})


@pytest.mark.parametrize("decoder", ["chain", "layer", "effects"])
def test_a_geodesic_is_never_longer_than_the_straight_line_even_after_one_step(decoder):
    vae = network(decoder, NegativeBinomial)
    a, b = points(9, low=-2, high=2, seed=1), points(9, low=-2, high=2, seed=2)
    for iterations in (1, 2, 25):
        path = geodesic(vae.surface(batch_of(9)), a, b, iterations=iterations)
        assert (path.length <= straight(vae.surface(batch_of(9)), a, b).length).all()
    assert (path.length < straight(vae.surface(batch_of(9)), a, b).length).any()


@pytest.mark.parametrize("decoder", ["chain", "layer", "effects"])
def test_each_pair_walks_under_its_own_covariates_and_one_row_of_them_stands_for_all(decoder):
    vae, batch = network(decoder), batch_of(4)
    a, b = points(4, seed=1), points(4, seed=2)
    lines = straight(vae.surface(batch), a, b).length
    for i in range(4):
        own = vae.surface(batch.bare(torch.tensor([i])))
        torch.testing.assert_close(straight(own, a[i : i + 1], b[i : i + 1]).length[0], lines[i])
    first = straight(vae.surface(batch.bare(torch.tensor([0]))), a, b).length
    torch.testing.assert_close(first[[0, 3]], lines[[0, 3]])
    assert not torch.isclose(first[1], lines[1])
    short, closed = (geodesic(vae.surface(c), a[:2], b[:2], iterations=30).length for c in (batch_of(2), batch_of(1)))
    torch.testing.assert_close(short[0], closed[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(geodesic(own, a, b, iterations=5).start, a)


def test_the_length_of_a_straight_line_is_that_of_its_decoded_points_in_closed_form_or_not():
    vae, a, b = network(), points(3, seed=1), points(3, seed=2)
    surface = vae.surface(batch_of(1))
    t = torch.linspace(0, 1, 4001).double()
    track = surface((a[:, None] + t[:, None] * (b - a)[:, None]).flatten(0, 1)).unflatten(0, (3, 4001))
    truth = track.diff(dim=1).norm(dim=2).sum(1)
    torch.testing.assert_close(straight(surface, a, b).length, truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(straight(replace(surface, chain=None), a, b).length, truth, rtol=1e-6, atol=0)
    short = [geodesic(s, a, b).length for s in (surface, replace(surface, chain=None))]
    torch.testing.assert_close(*short, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decoder", ["chain", "layer", "effects"])
def test_paths_are_the_same_under_inference_mode_and_leave_no_gradient(decoder):
    vae, a, b = network(decoder, NegativeBinomial), points(3, seed=1), points(3, seed=2)
    plain = geodesic(vae.surface(batch_of(3)), a, b, iterations=15)
    batch = batch_of(3)
    with torch.inference_mode():
        surface = vae.surface(batch)
        metric(surface, a)
        inside = geodesic(surface, a, b, iterations=15)
        made = geodesic(surface, a.clone(), b.clone(), iterations=15)
    assert torch.equal(inside.length, plain.length)
    assert torch.equal(made.modes, plain.modes)
    assert all(p.grad is None for p in vae.parameters())
    assert not plain.length.requires_grad
    with torch.no_grad():
        assert torch.equal(geodesic(vae.surface(batch), a, b, iterations=15).modes, plain.modes)


def test_float32_paths_agree_with_float64_ones():
    a, b = points(5, seed=4, low=0.7, high=2.3), points(5, seed=5, low=0.7, high=2.3)
    path = geodesic(sphere, a.float(), b.float())
    assert path.length.dtype == torch.float32
    torch.testing.assert_close(path.length.double(), great_circle(sphere, a, b), rtol=1e-4, atol=0)


def test_ends_that_do_not_match_and_no_iterations_are_refused():
    with pytest.raises(ShapeError, match="as many ends"):
        straight(sphere, points(2), points(3))
    with pytest.raises(ShapeError, match=r"\[n, d\]"):
        geodesic(sphere, points(2)[0], points(2)[0])
    with pytest.raises(SpecError, match="iterations >= 1"):
        geodesic(sphere, points(2), points(2), iterations=0)


# -- signatures --------------------------------------------------------------------------------------------------------------------


def test_the_signature_of_a_linear_map_is_its_row_of_unit_length_at_any_points():
    direction = torch.tensor([0.5, -1.0, 2.0]).double()
    for along in (direction, direction.expand(7, 3), 9 * direction):
        found = signature(lambda z: z @ PLANE + 4, points(7, 3), along)
        torch.testing.assert_close(found.change, direction @ PLANE / (direction @ PLANE).norm())
        assert found.error.isnan().all()
        assert (found.agreement == 1).all()


def test_directions_of_their_own_are_averaged_as_derivatives():
    along = points(7, 3, seed=9)
    mean = along.mean(0) @ PLANE
    torch.testing.assert_close(signature(lambda z: z @ PLANE, points(7, 3), along).change, mean / mean.norm())


def test_over_seeds_the_signature_has_the_mean_its_standard_error_and_the_share_of_equal_signs():
    maps = [torch.eye(4).double()[:3] + 0.3 * points(3, 4, seed=s) for s in range(5)]
    ways = [torch.tensor([1.0, 0.2, 0.0]).double() * (s + 1) for s in range(5)]
    found = signature([lambda z, m=m: z @ m for m in maps], [points(2, 3, seed=s) for s in range(5)], ways)
    each = torch.stack([w @ m / (w @ m).norm() for m, w in zip(maps, ways, strict=True)])
    torch.testing.assert_close(found.change, each.mean(0))
    torch.testing.assert_close(found.error, each.std(0) / math.sqrt(5))
    torch.testing.assert_close(found.agreement, (each.sign() == each.mean(0).sign()).double().mean(0))
    assert found.agreement.min() < 1


def test_the_signature_of_counts_is_of_the_log_rate_less_its_mean_over_genes():
    vae, z = network(likelihood=NegativeBinomial), points(1)
    along, step = torch.tensor([0.3, -0.7]).double(), 1e-6
    batch = batch_of(1)
    rates = [torch.log_softmax(vae.likelihood.out(vae.decode(z + s * step * along, batch)), 1)[0] for s in (1, -1)]
    slope = (rates[0] - rates[1]) / (2 * step)
    slope = slope - slope.mean()
    torch.testing.assert_close(signature(vae.surface(batch), z, along).change, (slope / slope.norm()).detach(), rtol=1e-6, atol=1e-7)


def test_signatures_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="one direction for each map"):
        signature([sphere, sphere], [points(2)], [points(2)])
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        signature(sphere, points(2), torch.zeros(3))
