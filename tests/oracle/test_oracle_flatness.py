"""The terms of flatness: closed forms, units, where gradients go, precision, and decoders on the way to collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trifold.core import (
    VAE,
    Bernoulli,
    Decoder,
    EffectDecoder,
    Gaussian,
    NegativeBinomial,
    Poisson,
    Posterior,
    StandardNormal,
    ZeroInflated,
)
from trifold.errors import SpecError
from trifold.geometry import curvature
from trifold.nets import MLP
from trifold.records import Batch, Rows
from trifold.terms import Curvature, Isometry
from trifold.terms.points import places

GENES, CELLS, CONDITIONS = 17, 40, 3
TERMS = {"curvature": Curvature, "isometry": Isometry, "curvature, tiny ridge": lambda **more: Curvature(ridge=1e-7, **more)}
LIKELIHOODS = {
    **{f"gaussian {v}": (lambda h, g, v=v: Gaussian(h, g, variance=v)) for v in ("fixed", "shared", "gene", "cell")},
    "negative_binomial": NegativeBinomial,
    "zero_inflated": ZeroInflated,
    "poisson": Poisson,
    "bernoulli": Bernoulli,
}


def batch_of(n: int = CELLS, genes: int = GENES) -> Batch:
    x = torch.poisson(torch.full((n, genes), 2.0), generator=torch.Generator().manual_seed(0)).clamp_max(1)
    design = torch.eye(CONDITIONS)[torch.arange(n) % CONDITIONS]
    return Batch(Rows.of_dense(x), x.sum(1, keepdim=True).clamp_min(1), {"condition": design}, {"condition": torch.arange(n) % CONDITIONS})


def decoder_of(d: int, activation: str = "softplus", *, norm: str = "none", skip: bool = True, hidden: tuple[int, ...] = (12,)) -> Decoder:
    return Decoder(MLP(d, hidden, norm=norm, activation=activation, covariates=CONDITIONS, dropout=0.1), roles=["condition"], skip=skip)


def vae_of(decoder: nn.Module | None = None, likelihood=Gaussian, *, d: int = 3, genes: int = GENES) -> VAE:
    torch.manual_seed(1)
    part = decoder_of(d) if decoder is None else decoder
    vae = VAE(Posterior(MLP(genes, (8,), covariates=0), d), StandardNormal(d), part, likelihood(part.width, genes))
    nn.init.normal_(vae.likelihood.out.weight)
    return vae


def value(term, vae: VAE, batch: Batch | None = None, *, seed: int = 5) -> Tensor:
    """The term at the same points each time."""
    p = vae(batch_of() if batch is None else batch, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(seed)
    return term(p)


def exact(vae: VAE, z: Tensor, batch: Batch) -> Tensor:
    """[n] E + P at the points."""
    found = curvature(vae.surface(batch), z, ridge=1e-3)
    return found.extrinsic + found.parameter


def test_curvature_is_the_weighted_mean_over_the_points_times_their_squared_radius_in_data_space():
    vae, batch = vae_of().eval(), batch_of()
    p = vae(batch, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    z, surface, square = places(p, 64)
    found = curvature(surface, z, ridge=1e-3)
    decoded = surface(z)
    torch.testing.assert_close(square, (decoded - decoded.mean(0)).square().sum(1).mean(), rtol=1e-5, atol=0)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (0.5, 100.0)):
        torch.testing.assert_close(
            value(Curvature(extrinsic=a, parameter=b), vae), square * (a * found.extrinsic.mean() + b * found.parameter.mean())
        )


def test_half_of_the_points_are_latents_of_cells_and_half_lie_on_lines_through_two_of_them_at_most_a_fifth_beyond():
    vae, batch = vae_of(d=5).eval(), batch_of()
    p = vae(batch, generator=torch.Generator().manual_seed(2))
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        z, surface, _ = places(p, 20)
        assert z.shape == (20, 5)
        own = torch.cdist(z, p.z, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert (own.values[:10] < 1e-6).all()
        assert len(set(own.indices[:10].tolist())) == 10
        # the covariates go with the cells: those of the ten are their own
        torch.testing.assert_close(surface.chain.given[0][:10], batch.design["condition"][own.indices[:10]])
        for i in range(10, 20):
            starts = torch.arange(CELLS)[(batch.design["condition"] == surface.chain.given[0][i]).all(1)]
            way, lines = z[i] - p.z[starts], p.z[None] - p.z[starts][:, None]
            share = (lines * way[:, None]).sum(2) / lines.square().sum(2).clamp_min(1e-12)
            off = (way[:, None] - share[..., None] * lines).norm(dim=2)
            off[share.abs() < 1e-9] = 1
            at = off.flatten().argmin()
            assert off.flatten()[at] < 1e-5
            shares.append(share.flatten()[at].item())
    shares = torch.tensor(shares)
    assert shares.min() >= -0.2 - 1e-4
    assert shares.max() <= 1.2 + 1e-4
    assert abs(shares.mean() - 0.5) < 4 * 1.4 / math.sqrt(12 * len(shares))
    assert ((shares < 0) | (shares > 1)).any()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", TERMS)
def test_scaling_the_last_layer_changes_no_term(name, likelihood):
    vae = vae_of(likelihood=LIKELIHOODS[likelihood]).eval()
    first = value(TERMS[name](), vae)
    assert first > 1e-3
    for scale in (0.01, 7.0, 300.0):
        with torch.no_grad():
            vae.likelihood.out.weight.mul_(scale)
        torch.testing.assert_close(value(TERMS[name](), vae), first, rtol=2e-3, atol=1e-6)
        with torch.no_grad():
            vae.likelihood.out.weight.div_(scale)


@pytest.mark.parametrize("name", TERMS)
def test_no_term_pulls_on_the_scale_of_the_last_layer(name):
    vae = vae_of().eval()
    value(TERMS[name](), vae).backward()
    weight = vae.likelihood.out.weight
    pull = (weight.grad * weight).sum()  # derivative in the log of the scale
    assert abs(pull) < 1e-3 * weight.grad.norm() * weight.norm()


def linear(weight: Tensor) -> VAE:
    """Decodes z to z @ weight."""
    d, g = weight.shape
    vae = VAE(Posterior(MLP(g, (8,)), d), StandardNormal(d), Decoder(MLP(d, ())), Gaussian(d, g))
    with torch.no_grad():
        vae.likelihood.out.weight.copy_(weight.T)
    return vae


@pytest.mark.parametrize("d", [2, 8])
def test_curvature_of_a_linear_decoder_is_zero(d):
    torch.manual_seed(0)
    assert value(Curvature(), linear(torch.randn(d, GENES))).item() == 0
    skipping = vae_of(decoder_of(d), d=d)
    with torch.no_grad():
        skipping.likelihood.out.weight[:, :12] = 0
    assert value(Curvature(), skipping).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("d", [1, 2, 8])
def test_isometry_of_an_orthogonal_map_times_any_scale_is_zero_and_of_a_diagonal_map_its_closed_form(d):
    torch.manual_seed(0)
    frame, _ = torch.linalg.qr(torch.randn(GENES, d))
    for scale in (1e-3, 1.0, 40.0):
        assert value(Isometry(), linear(scale * frame.T)).item() == pytest.approx(0, abs=1e-5)
    stretch = torch.arange(1.0, d + 1)
    expected = d * stretch.pow(4).sum() / stretch.square().sum() ** 2 - 1
    torch.testing.assert_close(value(Isometry(), linear(stretch[:, None] * frame.T)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoder", ["chain", "layer norm", "effects"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", ["curvature", "isometry"])
def test_each_term_moves_the_decoder_and_the_last_layer_and_nothing_else_for_every_likelihood(name, likelihood, decoder):
    small = {"norm": "layer", "activation": "silu"}
    part = {
        "chain": lambda: decoder_of(3),
        "layer norm": lambda: decoder_of(3, norm="layer"),
        "effects": lambda: EffectDecoder(MLP(3, (9,), **small), MLP(3, (5,), **small), rank=2, covariates=CONDITIONS, roles=["condition"]),
    }[decoder]()
    vae = vae_of(part, LIKELIHOODS[likelihood])
    loss = value(TERMS[name](points=16), vae)
    assert loss.shape == torch.Size([])
    assert loss > 0
    loss.backward()
    for key, parameter in vae.named_parameters():
        moved = key.startswith("decoder.") or key == "likelihood.out.weight"
        assert (parameter.grad is not None and bool((parameter.grad != 0).any())) == moved, key
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("name", ["curvature", "isometry"])
def test_under_autocast_the_term_is_computed_in_float32(name, norm):
    vae = vae_of(decoder_of(3, norm=norm)).eval()
    p = vae(batch_of(), generator=torch.Generator().manual_seed(2))
    found = []
    for autocast in (False, True):
        torch.manual_seed(0)
        vae.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = TERMS[name](points=16)(p)
        loss.backward()
        found.append((loss.detach(), vae.likelihood.out.weight.grad, vae.decoder.network.first.weight.grad))
    assert found[0][0].dtype == torch.float32
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def collapsed(how: str, d: int) -> tuple[VAE, Batch]:
    vae, batch = vae_of(decoder_of(d, skip=how != "no skip, one direction dead"), d=d), batch_of()
    out, first = vae.likelihood.out.weight, vae.decoder.network.first.weight
    with torch.no_grad():
        if how.startswith("last layer"):
            out.mul_(float(how.split()[-1]))
        elif how == "one direction dead":
            first[0] = 0
            out[:, 12] = 0
        elif how == "no skip, one direction dead":
            first[0] = 0
        elif how == "all directions dead":
            first.zero_()
            out[:, 12:] = 0
        elif how == "one gene":
            out[1:] = 0
        elif how == "huge":
            out.mul_(1e6)
        elif how == "all points equal":
            vae.posterior.head.weight.zero_()
            vae.posterior.head.bias.zero_()
            vae.posterior.head.bias[d:] = -1e9
    if how == "all points equal":
        batch = batch_of(1).bare(torch.zeros(CELLS, dtype=torch.int64))
        batch = Batch(Rows.of_dense(torch.zeros(CELLS, GENES)), batch.size, batch.design, batch.code)
    return vae, batch_of(int(how.split()[0])) if how.endswith("cells") else batch


HOW = [
    *(f"last layer times {s}" for s in ("0", "1e-30", "1e-20", "1e-12", "1e-8", "1e-6", "1e-4")),
    "one direction dead",
    "no skip, one direction dead",
    "all directions dead",
    "one gene",
    "huge",
    "all points equal",
    "1 cells",
    "2 cells",
    "3 cells",
]


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("likelihood", [Gaussian, NegativeBinomial])
@pytest.mark.parametrize("name", TERMS)
def test_on_the_way_to_collapse_value_and_gradient_stay_finite(name, likelihood, how, d):
    vae, batch = collapsed(how, d)
    vae.likelihood = vae.likelihood if likelihood is Gaussian else _as_counts(vae)
    loss = value(TERMS[name](), vae, batch)
    assert torch.isfinite(loss)
    assert loss >= 0
    loss.backward()
    for key, parameter in vae.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


def _as_counts(vae: VAE) -> NegativeBinomial:
    other = NegativeBinomial(vae.decoder.width, GENES)
    other.out = vae.likelihood.out
    return other


@pytest.mark.parametrize("how", ["one direction dead", "no skip, one direction dead"])
def test_a_dead_direction_costs_no_more_than_what_the_others_cost(how):
    vae, batch = collapsed(how, 3)
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    batch = batch.bare(torch.zeros(30, dtype=torch.int64))
    surface = vae.surface(batch)
    whole = curvature(surface, z, ridge=1e-3)
    others = curvature(lambda y: surface(torch.cat([z[:, :1], y], 1)), z[:, 1:], ridge=1e-7)
    for part in ("extrinsic", "parameter"):
        assert torch.isfinite(getattr(whole, part)).all()
        assert (getattr(whole, part) <= 1.01 * getattr(others, part) + 1e-6).all()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_a_kinked_decoder_is_refused_at_the_first_step_with_what_to_type(activation):
    with pytest.raises(SpecError, match="activation='softplus'"):
        value(Curvature(), vae_of(decoder_of(3, activation)))
    assert value(Isometry(), vae_of(decoder_of(3, activation, norm="layer"))) > 0


def test_batch_norm_is_refused_in_training_and_fine_in_evaluation():
    vae = vae_of(decoder_of(3, norm="batch")).train()
    with pytest.raises(SpecError, match="norm='layer'"):
        value(Curvature(), vae)
    assert torch.isfinite(value(Curvature(), vae.eval()))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"extrinsic": -1.0}, "extrinsic"),
        ({"parameter": -0.1}, "parameter"),
        ({"parameter": float("nan")}, "parameter"),
        ({"points": 1}, "points"),
        ({"directions": 0}, "directions"),
        ({"ridge": 0.0}, "ridge"),
    ],
)
def test_a_wrong_number_is_refused_by_name(wrong, named):
    with pytest.raises(SpecError, match=named):
        Curvature(**wrong)
    if named == "points":
        with pytest.raises(SpecError, match=named):
            Isometry(**wrong)


class Wide(TorchDispatchMode):
    """Collects the shapes of results that have an axis of one length."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.shapes |= {tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor) and self.length in t.shape}
        return out


@pytest.mark.parametrize("d", [3, 8])
@pytest.mark.parametrize("likelihood", [Gaussian, NegativeBinomial])
@pytest.mark.parametrize("name", ["curvature", "isometry"])
def test_nothing_but_the_weight_has_an_axis_as_long_as_the_genes_forward_or_backward(name, likelihood, d):
    genes = 2003
    vae = vae_of(likelihood=likelihood, d=d, genes=genes)
    p = vae(batch_of(genes=genes))
    with Wide(genes) as seen:
        TERMS[name](points=16)(p).backward()
    width = vae.decoder.width
    assert seen.shapes <= {(genes, width), (width, genes)}
    with Wide(genes) as seen:
        vae.likelihood.out(p.h)
    assert (CELLS, genes) in seen.shapes  # the mode sees what it is there to see


def test_training_on_curvature_alone_flattens_the_surface_and_keeps_its_size():
    vae, batch = vae_of(decoder_of(2, "tanh"), d=2), batch_of()
    optimizer = torch.optim.Adam(vae.decoder.parameters(), lr=0.02)
    z = torch.randn(CELLS, 2, generator=torch.Generator().manual_seed(3))
    before = exact(vae, z, batch).mean().detach()
    for _ in range(80):
        optimizer.zero_grad()
        Curvature()(vae(batch)).backward()
        optimizer.step()
    assert exact(vae, z, batch).mean() < 0.1 * before
