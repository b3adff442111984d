"""Curvature against surfaces whose curvature is known by hand, what must not change it, and its three routes against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from trifold.core import VAE, Bernoulli, Decoder, EffectDecoder, Gaussian, NegativeBinomial, Posterior, StandardNormal
from trifold.errors import ShapeError, SpecError
from trifold.geometry import Chain, Surface, chain_of, christoffel, curvature, metric, rectifier
from trifold.geometry.chain import DERIVATIVES
from trifold.nets import ACTIVATIONS, MLP
from trifold.records import Batch, Rows

RADIUS, PITCH = 1.7, 0.4


def columns(*parts: Tensor) -> Tensor:
    return torch.stack(parts, 1)


def sphere(z: Tensor) -> Tensor:
    polar, round_ = z.T
    return RADIUS * columns(polar.sin() * round_.cos(), polar.sin() * round_.sin(), polar.cos())


FRAME = torch.linalg.qr(torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]


def into_200_dimensions(z: Tensor) -> Tensor:
    return sphere(z) @ FRAME.T.to(z) + 3


def cylinder(z: Tensor) -> Tensor:
    arc, height = z.T
    return columns(RADIUS * (arc / RADIUS).cos(), RADIUS * (arc / RADIUS).sin(), height)


def stretched(z: Tensor) -> Tensor:
    """Arc s = sinh u and height v + v³ / 3."""
    u, v = z.T
    return columns(u.sinh(), v + v**3 / 3)


def stretch_of_the_grid(z: Tensor) -> Tensor:
    """P of a product of two curves is the sum of s''² / s'⁴."""
    u, v = z.T
    return u.sinh() ** 2 / u.cosh() ** 4 + (2 * v) ** 2 / (1 + v**2) ** 4


def helix(z: Tensor) -> Tensor:
    t = z[:, 0]
    return columns(RADIUS * t.cos(), RADIUS * t.sin(), PITCH * t)


def paraboloid(z: Tensor) -> Tensor:
    return torch.cat([z, 0.5 * z.square().sum(1, keepdim=True)], 1)


def lift(z: Tensor) -> Tensor:
    """w² = 1 + x² + y² of the paraboloid: the squared length of its unscaled normal."""
    return 1 + z.square().sum(1)


def slant(z: Tensor) -> Tensor:
    return z @ torch.linspace(-2, 1.5, z.shape[1] * 5, dtype=z.dtype).reshape(z.shape[1], 5).sin() + 3


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.full((len(z),), value, dtype=z.dtype)


@dataclass(frozen=True)
class Known:
    """A map [n, d] -> [n, g] with the box its points come from and its two curvatures."""

    f: Callable[[Tensor], Tensor]
    box: tuple[tuple[float, float], ...]
    extrinsic: Callable[[Tensor], Tensor]
    parameter: Callable[[Tensor], Tensor]

    def points(self, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
        low, high = torch.tensor(self.box, dtype=torch.float64).T
        return (low + (high - low) * torch.rand(n, len(self.box), dtype=torch.float64, generator=torch.Generator().manual_seed(1))).to(
            dtype
        )


ROUND = ((0.4, 2.6), (-3.0, 3.0))
SQUARE = ((-1.5, 1.5), (-1.5, 1.5))
NONE = constant(0.0)
KNOWN = {
    "linear": Known(slant, ((-2, 2),) * 3, NONE, NONE),
    "circle": Known(lambda z: helix(z)[:, :2], ((-3, 3),), constant(1 / RADIUS**2), NONE),
    "helix": Known(helix, ((-3, 3),), constant((RADIUS / (RADIUS**2 + PITCH**2)) ** 2), NONE),
    "sphere": Known(sphere, ROUND, constant(2 / RADIUS**2), lambda z: 3 / (RADIUS * z[:, 0].tan()) ** 2),
    "sphere in 200 dimensions": Known(into_200_dimensions, ROUND, constant(2 / RADIUS**2), lambda z: 3 / (RADIUS * z[:, 0].tan()) ** 2),
    "cylinder by arc length": Known(cylinder, SQUARE, constant(1 / RADIUS**2), NONE),
    "cylinder, grid stretched": Known(lambda z: cylinder(stretched(z)), SQUARE, constant(1 / RADIUS**2), stretch_of_the_grid),
    "paraboloid": Known(paraboloid, SQUARE, lambda z: (1 + lift(z) ** -2) / lift(z), lambda z: (1 + lift(z) ** -2) * (1 - 1 / lift(z))),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", KNOWN)
def test_exact_curvature_is_the_closed_form(name, dtype, tolerance):
    known = KNOWN[name]
    z = known.points(50, dtype)
    for route in ("func", "auto"):
        found = curvature(known.f, z, route=route)
        assert found.extrinsic.dtype == dtype
        torch.testing.assert_close(found.extrinsic, known.extrinsic(z), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.parameter, known.parameter(z), rtol=tolerance, atol=tolerance)


def assert_mean(draws: Tensor, truth: Tensor, floor: float = 1e-9) -> None:
    """The mean over the first axis is the truth within 4 standard errors."""
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - truth).abs() <= 4 * error + floor).all(), (draws.mean(0), truth, error)


@pytest.mark.parametrize("name", KNOWN)
def test_random_pairs_of_directions_have_the_closed_form_as_their_mean_within_four_standard_errors(name):
    known, draws = KNOWN[name], 2000
    z = known.points(3)
    many = curvature(known.f, z.repeat(draws, 1), route="random", directions=1, generator=torch.Generator().manual_seed(0))
    assert_mean(many.extrinsic.reshape(draws, 3), known.extrinsic(z))
    assert_mean(many.parameter.reshape(draws, 3), known.parameter(z))


def test_more_pairs_of_directions_average_over_as_many_draws():
    known = KNOWN["paraboloid"]
    z = known.points(1).repeat(3000, 1)
    spread = [
        curvature(known.f, z, route="random", directions=k, generator=torch.Generator().manual_seed(k)).extrinsic.std() for k in (1, 9)
    ]
    assert (spread[0] / spread[1]).item() == pytest.approx(3, rel=0.15)


def test_jets_of_a_network_give_the_closed_form_of_the_curve_tanh():
    """The graph of y = tanh(a x + b): E = (y'' / (1 + y'²)^{3/2})² and P = (y' y'')² / (1 + y'²)³."""
    weight, bias = 1.3, -0.2
    chain = Chain(((torch.full((1, 1), weight, dtype=torch.float64), torch.full((1,), bias, dtype=torch.float64)),), "tanh", skip=True)
    z = torch.linspace(-2, 2, 31).double()[:, None]
    y = torch.tanh(weight * z[:, 0] + bias)
    first = weight * (1 - y**2)
    second = -2 * weight * y * first
    found = curvature(Surface(lambda z: chain.jets(z).value, chain=chain), z, route="jets")
    torch.testing.assert_close(found.extrinsic, second**2 / (1 + first**2) ** 3, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.parameter, (first * second) ** 2 / (1 + first**2) ** 3, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.metric[:, 0, 0], 1 + first**2, rtol=1e-12, atol=0)


def wavy(g: int = 6, d: int = 3) -> Callable[[Tensor], Tensor]:
    """A smooth immersion without symmetry."""
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(d, g, dtype=torch.float64, generator=generator) for _ in range(2))
    return lambda z: z @ a + 0.5 * torch.sin(z @ b + 1)


def shaken(n: int = 20, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_an_affine_change_of_the_latent_leaves_both_curvatures():
    f, y = wavy(), shaken()
    turn, shift = 0.8 * shaken(3, 3, 4) + torch.eye(3), shaken(1, 3, 5)
    moved, plain = curvature(lambda y: f(y @ turn + shift), y), curvature(f, y @ turn + shift)
    torch.testing.assert_close(moved.extrinsic, plain.extrinsic, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved.parameter, plain.parameter, rtol=1e-9, atol=1e-11)


def test_a_smooth_change_of_the_latent_leaves_extrinsic_and_moves_parameter_curvature():
    f, y = wavy(), shaken()

    def bent(y: Tensor) -> Tensor:
        return y + 0.4 * torch.sin(y.roll(1, 1))

    moved, plain = curvature(lambda y: f(bent(y)), y), curvature(f, bent(y))
    torch.testing.assert_close(moved.extrinsic, plain.extrinsic, rtol=1e-9, atol=1e-11)
    assert ((moved.parameter - plain.parameter).abs() > 1e-4).all()


def test_scaling_the_data_by_s_divides_both_by_s_squared_and_turning_it_changes_neither():
    f, z, s = wavy(), shaken(), 37.0
    turn, _ = torch.linalg.qr(shaken(6, 6, 9))
    plain, scaled, turned = curvature(f, z), curvature(lambda z: s * f(z), z), curvature(lambda z: f(z) @ turn + 5, z)
    for part in ("extrinsic", "parameter"):
        torch.testing.assert_close(getattr(scaled, part) * s**2, getattr(plain, part), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(getattr(turned, part), getattr(plain, part), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(scaled.metric, s**2 * plain.metric)


def by_hand(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inverse metric [d, d], normal parts [d, d, g] and tangential parts of the second derivatives at one point z [d], by projection."""
    one = lambda z: f(z[None])[0]  # noqa: E731
    slope = jacobian(one, z)
    second = jacobian(lambda z: jacobian(one, z, create_graph=True), z).movedim(0, 2)
    projector = slope @ torch.linalg.pinv(slope)
    return torch.linalg.inv(slope.T @ slope), second - second @ projector, second @ projector, slope


@pytest.mark.parametrize("d", [1, 2, 3])
def test_both_are_squared_norms_of_the_parts_of_the_second_derivatives_in_an_orthonormal_frame(d):
    f, z = wavy(d=d), shaken(d=d)
    found = curvature(f, z)
    for i in range(len(z)):
        inverse, normal, tangential, _ = by_hand(f, z[i])
        for part, value in ((normal, found.extrinsic[i]), (tangential, found.parameter[i])):
            torch.testing.assert_close(torch.einsum("ma,nb,mng,abg->", inverse, inverse, part, part), value, rtol=1e-9, atol=1e-12)


def scalar_curvature(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """R at one point z [d] from Christoffel symbols and their derivatives alone: the view from inside the surface."""
    symbols = lambda z: christoffel(f, z[None])[0]  # noqa: E731
    gamma, change = symbols(z), jacobian(symbols, z)  # change[k, m, n, a]: along a
    ricci = (
        torch.einsum("kmnk->mn", change)
        - torch.einsum("kkmn->mn", change)
        + torch.einsum("kkl,lmn->mn", gamma, gamma)
        - torch.einsum("knl,lkm->mn", gamma, gamma)
    )
    return (torch.linalg.inv(metric(f, z[None])[0]) * ricci).sum()


@pytest.mark.parametrize("name", ["sphere", "paraboloid", "wavy"])
def test_gauss_scalar_curvature_is_the_squared_mean_curvature_vector_less_extrinsic_curvature(name):
    f, z = (wavy(), shaken(4)) if name == "wavy" else (KNOWN[name].f, KNOWN[name].points(4))
    extrinsic = curvature(f, z).extrinsic
    for i in range(len(z)):
        inverse, normal, _, _ = by_hand(f, z[i])
        mean = torch.einsum("mn,mng->g", inverse, normal)
        inside = scalar_curvature(f, z[i])
        torch.testing.assert_close(inside, mean.square().sum() - extrinsic[i], rtol=1e-8, atol=1e-9)
        if name == "sphere":
            assert inside.item() == pytest.approx(2 / RADIUS**2, rel=1e-9)
        if name == "paraboloid":
            assert inside.item() == pytest.approx(2 / lift(z)[i].item() ** 2, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_extrinsic_curvature_is_half_the_dirichlet_energy_of_the_gauss_map(d):
    f, z = wavy(d=d), shaken(6, d)
    found = curvature(f, z).extrinsic

    def projector(z: Tensor) -> Tensor:
        slope = jacobian(lambda z: f(z[None])[0], z, create_graph=True)
        return slope @ torch.linalg.solve(slope.T @ slope, slope.T)

    for i in range(len(z)):
        change = jacobian(projector, z[i])
        inverse = torch.linalg.inv(metric(f, z[i : i + 1])[0])
        energy = torch.einsum("mn,ghm,ghn->", inverse, change, change)
        torch.testing.assert_close(0.5 * energy, found[i], rtol=1e-9, atol=1e-12)


# -- networks ----------------------------------------------------------------------------------------------------------------------

GENES, CELLS, CONDITIONS = 13, 5, 3


def batch_of(n: int = CELLS) -> Batch:
    design = torch.randn(n, CONDITIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    return Batch(Rows.of_dense(torch.zeros(n, GENES)), torch.ones(n, 1), {"condition": design})


def vae_of(decoder: nn.Module, likelihood: type = Gaussian, *, d: int) -> VAE:
    vae = VAE(Posterior(MLP(GENES, (4,)), d), StandardNormal(d), decoder, likelihood(decoder.width, GENES)).double()
    with torch.no_grad():
        nn.init.normal_(vae.likelihood.out.weight)
        nn.init.normal_(vae.likelihood.out.bias)
    return vae


def decoder_of(d: int, activation: str = "tanh", *, covariates: bool = False, skip: bool = False, **more) -> Decoder:
    network = MLP(d, (12, 10), norm=more.pop("norm", "none"), activation=activation, covariates=CONDITIONS * covariates, **more)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)  # more bent than at initialisation
    return Decoder(network, roles=("condition",) * covariates, skip=skip)


CASES = [
    (activation, d, (i + j) % 2 == 0, (i + j) % 3 == 0, (i + d) % 2 == 0)
    for i, activation in enumerate(DERIVATIVES)
    for j, d in enumerate((1, 2, 3, 8))
] + [("softplus", d, True, True, True) for d in (4, 5, 6, 7)]


@pytest.mark.parametrize(("activation", "d", "skip", "covariates", "centred"), CASES)
def test_the_routes_agree_on_networks_in_value_and_in_the_gradient_of_every_weight(activation, d, skip, covariates, centred):
    torch.manual_seed(d)
    vae = vae_of(decoder_of(d, activation, skip=skip, covariates=covariates), NegativeBinomial if centred else Gaussian, d=d)
    surface, z = vae.surface(batch_of()), shaken(CELLS, d)
    opened = replace(surface, chain=None)
    weights = [*vae.decoder.parameters(), vae.likelihood.out.weight]
    assert surface.chain is not None
    assert surface.centred == centred
    mix = torch.rand(2, CELLS, dtype=torch.float64)
    for pair in (
        (curvature(surface, z, route="jets"), curvature(opened, z, route="func")),
        tuple(curvature(s, z, route="random", directions=2, generator=torch.Generator().manual_seed(3)) for s in (surface, opened)),
    ):
        found = []
        for c in pair:
            loss = (mix[0] * c.extrinsic + mix[1] * c.parameter).sum()
            found.append((c.extrinsic, c.parameter, c.metric, *torch.autograd.grad(loss, weights)))
        for a, b in zip(*found, strict=True):
            size = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * size)
    auto = curvature(surface, z, generator=torch.Generator().manual_seed(3), directions=2)
    torch.testing.assert_close(auto.extrinsic, pair[0].extrinsic if d > 6 else curvature(opened, z, route="func").extrinsic)


def test_the_random_route_is_unbiased_and_so_is_its_gradient_in_every_weight_within_four_standard_errors():
    torch.manual_seed(0)
    vae, d, draws, n = vae_of(decoder_of(3, "softplus", skip=True), d=3), 3, 60, 150
    surface, z = vae.surface(batch_of(1)), shaken(1, d)
    weights = [*vae.decoder.parameters(), vae.likelihood.out.weight]
    generator = torch.Generator().manual_seed(0)

    def both(**options) -> Tensor:
        c = curvature(surface, z.repeat(1 if not options else n, 1), **options)
        rows = []
        for value in (c.extrinsic.mean(), c.parameter.mean()):
            rows.append(torch.cat([value[None], *(g.flatten() for g in torch.autograd.grad(value, weights, retain_graph=True))]).detach())
        return torch.stack(rows)

    truth = both()
    sampled = torch.stack([both(route="random", directions=1, generator=generator) for _ in range(draws)])
    along = torch.randn(truth.shape[1], 6, dtype=torch.float64, generator=generator)  # six directions among the weights
    along[:, 0] = torch.nn.functional.one_hot(torch.tensor(0), len(along))  # and, first, the value itself
    assert_mean(sampled @ along, truth @ along)


@pytest.mark.parametrize("activation", DERIVATIVES)
def test_derivatives_of_an_activation_are_those_of_torch(activation):
    # up to 15: beyond 20 torch's softplus is the identity, 2e-9 off
    p = torch.cat([torch.linspace(-15, 15, 400), torch.tensor([-1e-3, 1e-3])]).double().requires_grad_()
    module = ACTIVATIONS[activation]()
    value = module(p)
    (first,) = torch.autograd.grad(value.sum(), p, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), p)
    for a, b in zip(DERIVATIVES[activation](p), (value, first, second), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("activation", DERIVATIVES)
def test_derivatives_of_an_activation_are_finite_at_any_argument_in_float32(activation):
    p = torch.tensor([-1e18, -200.0, -90.0, 0.0, 90.0, 200.0, 1e18]).requires_grad_()
    parts = DERIVATIVES[activation](p)
    assert all(torch.isfinite(part).all() for part in parts)
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in parts), p)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("covariates", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_surface_is_the_likelihoods_linear_map_of_the_decoder_without_dropout(covariates, skip):
    for likelihood in (Gaussian, Bernoulli, NegativeBinomial):
        vae, batch, z = vae_of(decoder_of(3, covariates=covariates, skip=skip, dropout=0.5), likelihood, d=3), batch_of(), shaken(CELLS)
        surface = vae.train().surface(batch)
        found, opened = surface(z), replace(surface, chain=None)(z)
        assert vae.decoder.network.drop.training
        x = vae.likelihood.out(vae.eval().decode(z, batch))
        if likelihood is NegativeBinomial:
            x = x - x.mean(1, keepdim=True)
        torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(opened, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hidden", [(4,), (5, 4), (6, 5, 4)])
def test_a_chain_is_its_network_in_evaluation(hidden):
    network = MLP(3, hidden, covariates=2, norm="none", activation="gelu", dropout=0.4).double().eval()
    z, c = shaken(6), shaken(6, 2)
    jets = chain_of(network, c, skip=True).jets(z)
    torch.testing.assert_close(jets.value, torch.cat([network(z, c), z], 1), rtol=1e-13, atol=1e-13)
    slope = torch.stack([jacobian(lambda z, i=i: torch.cat([network(z[None], c[i : i + 1])[0], z]), z[i]) for i in range(6)])
    torch.testing.assert_close(jets.slope, slope.transpose(1, 2), rtol=1e-12, atol=1e-13)


def test_networks_without_a_closed_form_have_no_chain():
    assert chain_of(MLP(3, (4,), norm="layer", activation="tanh")) is None
    assert chain_of(MLP(3, (4,), norm="batch", activation="tanh")) is None
    assert chain_of(MLP(3, ())) is None
    assert chain_of(MLP(3, (4,), norm="none", activation="relu")) is None


@pytest.mark.parametrize("part", ["layer", "batch", "effects", "linear"])
def test_decoders_without_a_closed_form_have_the_curvature_of_their_values(part):
    """By projection of derivatives that autograd takes of decode and the likelihood's linear map, one cell at a time."""
    torch.manual_seed(2)
    small = {"norm": "layer", "activation": "silu"}
    decoder = {
        "layer": lambda: decoder_of(2, "softplus", norm="layer", covariates=True),
        "batch": lambda: decoder_of(2, "gelu", norm="batch"),
        "effects": lambda: EffectDecoder(MLP(2, (4,), **small), MLP(2, (4,), **small), rank=2, covariates=3, roles=["condition"]),
        "linear": lambda: Decoder(MLP(2, ())),
    }[part]()
    vae, batch, z = vae_of(decoder, d=2).eval(), batch_of(), shaken(CELLS, 2)
    found = curvature(vae.surface(batch), z)
    for i in range(CELLS):
        own = batch.bare(torch.tensor([i]))
        f = lambda z, own=own: vae.likelihood.out(vae.decode(z, own))  # noqa: E731
        inverse, normal, tangential, slope = by_hand(f, z[i])
        torch.testing.assert_close(found.metric[i], slope.T @ slope, rtol=1e-9, atol=1e-12)
        for half, value in ((normal, found.extrinsic[i]), (tangential, found.parameter[i])):
            torch.testing.assert_close(torch.einsum("ma,nb,mng,abg->", inverse, inverse, half, half), value, rtol=1e-8, atol=1e-10)


def test_a_shift_of_all_logits_does_not_touch_the_curvature_of_rates_even_in_float32():
    torch.manual_seed(0)
    vae, z = vae_of(decoder_of(2), NegativeBinomial, d=2).float(), shaken(CELLS, 2).float()
    before = curvature(vae.surface(batch_of()), z)
    with torch.no_grad():
        vae.likelihood.out.weight += 100 * torch.randn(vae.decoder.width)  # the same for all genes
    after = curvature(vae.surface(batch_of()), z)
    torch.testing.assert_close(after.extrinsic, before.extrinsic, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after.parameter, before.parameter, rtol=1e-3, atol=1e-4)


def test_a_surface_that_was_looked_at_without_gradients_still_gives_them_and_follows_its_weights():
    vae = vae_of(decoder_of(2), d=2)
    surface, z = vae.surface(batch_of()), shaken(CELLS, 2)
    with torch.inference_mode():
        before = curvature(surface, z).extrinsic
    for _ in range(2):
        vae.zero_grad()
        curvature(surface, z).extrinsic.sum().backward()
        assert vae.likelihood.out.weight.grad.abs().max() > 0
    with torch.no_grad():
        vae.likelihood.out.weight.mul_(2)
    torch.testing.assert_close(curvature(surface, z).extrinsic, before / 4)


# -- metric and Christoffel symbols ------------------------------------------------------------------------------------------------


def test_christoffel_symbols_of_polar_coordinates_and_of_the_sphere_are_those_of_the_textbook():
    z = KNOWN["sphere"].points(9)
    r = z[:, 0]
    polar = christoffel(lambda z: columns(z[:, 0] * z[:, 1].cos(), z[:, 0] * z[:, 1].sin()), z)
    expected = torch.zeros(9, 2, 2, 2).double()
    expected[:, 0, 1, 1] = -r
    expected[:, 1, 0, 1] = expected[:, 1, 1, 0] = 1 / r
    torch.testing.assert_close(polar, expected, rtol=1e-11, atol=1e-11)
    ball = christoffel(sphere, z)
    expected[:, 0, 1, 1] = -r.sin() * r.cos()
    expected[:, 1, 0, 1] = expected[:, 1, 1, 0] = 1 / r.tan()
    torch.testing.assert_close(ball, expected, rtol=1e-11, atol=1e-11)


def test_metrics_are_their_closed_forms():
    z = KNOWN["sphere"].points(9)
    torch.testing.assert_close(metric(sphere, z), RADIUS**2 * torch.diag_embed(columns(torch.ones(9).double(), z[:, 0].sin() ** 2)))
    z = KNOWN["paraboloid"].points(9)
    torch.testing.assert_close(metric(paraboloid, z), torch.eye(2).double() + z[:, :, None] * z[:, None])
    torch.testing.assert_close(curvature(paraboloid, z).metric, metric(paraboloid, z))


def test_distances_in_rectified_coordinates_of_a_linear_map_are_lengths_in_data_space():
    z, plane = shaken(12), shaken(3, 9, 7)
    straight = rectifier(metric(lambda z: z @ plane, z))
    torch.testing.assert_close(torch.cdist(z @ straight, z @ straight), torch.cdist(z @ plane, z @ plane), rtol=1e-9, atol=1e-9)
    assert rectifier(metric(lambda z: z @ plane.float(), z.float())).dtype == torch.float32


def test_the_mean_metric_in_rectified_coordinates_is_the_identity():
    f, z = wavy(), shaken(200)
    back = torch.linalg.inv(rectifier(metric(f, z)))
    mean = metric(lambda y: f(y @ back), z @ torch.linalg.inv(back)).mean(0)
    torch.testing.assert_close(mean, torch.eye(3).double(), rtol=0, atol=1e-9)


def test_a_direction_that_does_nothing_leaves_the_curvature_of_the_others_with_a_ridge():
    z = KNOWN["sphere"].points(9)
    more = torch.cat([z, shaken(9, 1)], 1)
    found = curvature(lambda z: sphere(z[:, :2]), more, ridge=1e-9)
    torch.testing.assert_close(found.extrinsic, KNOWN["sphere"].extrinsic(z), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.parameter, KNOWN["sphere"].parameter(z), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "rank"), [(2, 1), (8, 1), (8, 7), (20, 5)])
def test_a_map_without_full_rank_has_finite_curvature_and_a_rectifier_at_any_ridge(d, rank, dtype):
    torch.manual_seed(0)
    weight = (torch.randn(d, rank) @ torch.randn(rank, 30)).to(dtype)
    f, z = (lambda z: torch.sin(z @ weight[:, :rank]) @ weight[:rank] + z @ weight), torch.randn(40, d).to(dtype)
    for ridge in (None, 1e-30):
        for part in ("extrinsic", "parameter"):
            assert torch.isfinite(getattr(curvature(f, z, ridge=ridge), part)).all()
    metrics = metric(f, z)
    straight = rectifier(metrics)
    assert torch.isfinite(straight).all()
    torch.testing.assert_close(straight @ straight.T, metrics.mean(0), rtol=1e-4, atol=1e-4 * metrics.mean(0).abs().max().item())
    assert rectifier(torch.zeros(3, d, d, dtype=dtype)).abs().max() < 1e-3


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_activations_with_a_kink_and_batch_norm_in_training_are_refused_with_what_to_type(activation):
    kinked = vae_of(decoder_of(2, activation), d=2)
    for look in (curvature, christoffel):
        with pytest.raises(SpecError, match="activation='softplus'"):
            look(kinked.surface(batch_of()), shaken(CELLS, 2))
        with pytest.raises(SpecError, match="activation='softplus'"):
            look(nn.Sequential(nn.Linear(2, 3), nn.ReLU()).double(), shaken(CELLS, 2))
        moody = vae_of(decoder_of(2, norm="batch"), d=2).train()
        with pytest.raises(SpecError, match=r"norm='layer', or call eval\(\)"):
            look(moody.surface(batch_of()), shaken(CELLS, 2))
        look(moody.eval().surface(batch_of()), shaken(CELLS, 2))


def test_what_is_not_a_map_or_not_points_is_refused_by_name():
    with pytest.raises(SpecError, match="Did you mean 'func'"):
        curvature(sphere, shaken(2, 2), route="fun")
    with pytest.raises(SpecError, match="norm='none'"):
        curvature(sphere, shaken(2, 2), route="jets")
    with pytest.raises(SpecError, match="directions >= 1"):
        curvature(sphere, shaken(2, 2), directions=0)
    with pytest.raises(SpecError, match="callable"):
        curvature(3, shaken(2, 2))
    with pytest.raises(SpecError, match="weight="):
        curvature(Surface(sphere, centred=True), shaken(2, 2))
    for look in (curvature, metric, christoffel):
        for wrong in (shaken(2, 2)[0], shaken(2, 2).long(), shaken(2, 2).numpy(), torch.zeros(3, 0)):
            with pytest.raises(ShapeError, match=r"\[n, d\]"):
                look(sphere, wrong)


@pytest.mark.parametrize("d", [2, 7])
def test_the_gradient_through_layer_normalisation_is_the_slope_of_the_value(d):
    """Torch's forward derivatives of layer_norm are wrong from the second on (pytorch issue 196700): central differences as the judge."""
    torch.manual_seed(4)
    vae, z = vae_of(decoder_of(d, norm="layer", skip=True), d=d), shaken(CELLS, d)
    surface, step = vae.surface(batch_of()), 1e-5

    def value() -> Tensor:
        c = curvature(surface, z, generator=torch.Generator().manual_seed(1), directions=2)
        return (c.extrinsic + c.parameter).sum()

    weights = [*vae.decoder.parameters(), vae.likelihood.out.weight]
    along = [torch.randn_like(w) for w in weights]
    slope = sum((g * v).sum() for g, v in zip(torch.autograd.grad(value(), weights), along, strict=True))
    sides = []
    with torch.no_grad():
        for sign in (1, -2):  # from the middle one step up, then two down
            for w, v in zip(weights, along, strict=True):
                w += sign * step * v
            sides.append(value())
    torch.testing.assert_close(slope, (sides[0] - sides[1]) / (2 * step), rtol=1e-5, atol=1e-6)
