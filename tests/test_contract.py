"""One suite over every component and preset: gradients, independence of rows, plain data, purity, sparse and dense."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import trifold
from trifold.core import (
    VAE,
    Bernoulli,
    BlockPosterior,
    Blocks,
    ConditionalGaussian,
    Decoder,
    EffectDecoder,
    Energy,
    Gaussian,
    Mixture,
    NegativeBinomial,
    Poisson,
    Posterior,
    StandardNormal,
    ZeroInflated,
)
from trifold.errors import FormatError, SpecError, TrifoldWarning
from trifold.nets import MLP
from trifold.records import Batch, Progress, Rows
from trifold.schedule import Constant, Cosine, Ramp, weight_now
from trifold.spec import Component, arguments, from_spec, to_spec
from trifold.terms import (
    HSIC,
    KL,
    MMD,
    NLL,
    ConditionalMMD,
    Curvature,
    Isometry,
    Objective,
    Predictor,
    Probe,
    ScoreMatching,
    Shrinkage,
    TotalCorrelation,
)
from trifold.train import Plan

GENES, LATENT, WIDTH, CONDITIONS = 12, 3, 5, 3
ROLES = ("condition",)
LEARNED = ("mean", "variance", "both", "neither")


def mlp(inputs: int, **options) -> MLP:
    return MLP(inputs, (WIDTH,), activation="tanh", **options)


POSTERIORS: dict[str, Callable[[], Posterior | BlockPosterior]] = {
    "plain": lambda: Posterior(mlp(GENES), LATENT),
    "covariates": lambda: Posterior(mlp(GENES, covariates=CONDITIONS), LATENT, roles=ROLES),
    "lognorm": lambda: Posterior(mlp(GENES), LATENT, transform="lognorm"),
    "log1p, batch norm": lambda: Posterior(mlp(GENES, norm="batch"), LATENT, transform="log1p"),
    "linear": lambda: Posterior(mlp(GENES, covariates=CONDITIONS), LATENT, roles=ROLES, transform="lognorm", linear=True),
    "covariates hidden": lambda: Posterior(mlp(GENES, covariates=CONDITIONS), LATENT, roles=ROLES, hidden_share=0.5),
    "blocks": lambda: BlockPosterior(
        {"invariant": Posterior(mlp(GENES), 2), "spurious": Posterior(mlp(GENES, covariates=CONDITIONS), 1, roles=ROLES)}
    ),
    "deep": lambda: Posterior(MLP(GENES, (6, WIDTH), norm="none", activation="leaky_relu", slope=0.3, dropout=0.2), LATENT),
}
PRIORS: dict[str, Callable[[], trifold.Prior]] = {
    "standard": lambda: StandardNormal(LATENT),
    **{f"conditional {w}": (lambda w=w: ConditionalGaussian(LATENT, CONDITIONS, role="condition", learned=w)) for w in LEARNED},
    **{
        f"conditional {w}, embedding, numbers": (
            lambda w=w: ConditionalGaussian(LATENT, CONDITIONS, role="condition", learned=w, embedding=2, numbers=(1, 2))
        )
        for w in LEARNED
    },
    "conditional, unknown anywhere": lambda: ConditionalGaussian(LATENT, CONDITIONS, role="condition", unknown="mixture", spread=1.0),
    "mixture": lambda: Mixture(LATENT, 4),
    "one gaussian": lambda: Mixture(LATENT, 1),
    "energy": lambda: Energy(LATENT, CONDITIONS, role="condition", hidden=(4, WIDTH), activation="tanh"),
    "blocks": lambda: Blocks(
        {
            "invariant": ConditionalGaussian(2, 2, role="label", unknown="mixture"),
            "spurious": ConditionalGaussian(1, CONDITIONS, role="condition"),
        }
    ),
    "blocks, energy": lambda: Blocks({"invariant": Energy(2, 2, role="label", hidden=(WIDTH,)), "spurious": Mixture(1, 2)}),
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Decoder(mlp(LATENT)),
    "covariates": lambda: Decoder(mlp(LATENT, covariates=CONDITIONS), roles=ROLES),
    "effects": lambda: EffectDecoder(mlp(LATENT), mlp(LATENT), rank=2, covariates=CONDITIONS, roles=ROLES),
    "linear": lambda: Decoder(MLP(LATENT, ())),
    "skip": lambda: Decoder(mlp(LATENT, covariates=CONDITIONS, norm="none", dropout=0.1), roles=ROLES, skip=True),
    "skip, layer norm": lambda: Decoder(mlp(LATENT), skip=True),
}
LIKELIHOODS: dict[str, Callable[[int], trifold.Likelihood]] = {
    "negative_binomial": lambda h: NegativeBinomial(h, GENES),
    "negative_binomial by condition": lambda h: NegativeBinomial(h, GENES, dispersion="condition", conditions=CONDITIONS),
    "zero_inflated": lambda h: ZeroInflated(h, GENES),
    "zero_inflated by condition": lambda h: ZeroInflated(h, GENES, dispersion="condition", conditions=CONDITIONS),
    "poisson": lambda h: Poisson(h, GENES),
    "bernoulli": lambda h: Bernoulli(h, GENES),
    "gaussian fixed": lambda h: Gaussian(h, GENES, variance="fixed", value=0.5, nonnegative=True),
    "gaussian shared": lambda h: Gaussian(h, GENES, variance="shared"),
    "gaussian gene": lambda h: Gaussian(h, GENES),
    "gaussian cell": lambda h: Gaussian(h, GENES, variance="cell"),
}
INDEPENDENCE: dict[str, Callable[[], trifold.Term]] = {
    "total correlation": TotalCorrelation,
    "total correlation, published": lambda: TotalCorrelation(one_sided=False, centred=False),
    "hsic": HSIC,
    "hsic within": lambda: HSIC(within="label", strata=2, one_sided=False, bandwidths=(0.5, 2.0)),
    "conditional mmd": lambda: ConditionalMMD(role="condition", within="label"),
    "conditional mmd, all cells": lambda: ConditionalMMD(role="condition", within=None, bandwidths=(1.0,)),
    "probe": lambda: Probe(role="condition", width=2, categories=CONDITIONS, hidden=(4,)),
    "probe within, inferred": lambda: Probe(role="condition", width=2, categories=CONDITIONS, within="label", strata=2, inferred=True),
    "probe within": lambda: Probe(role="condition", width=2, categories=CONDITIONS, within="label", strata=2, hidden=(), strength=0.5),
}
TERMS: dict[str, Callable[[], trifold.Term]] = {
    "nll": NLL,
    "kl": lambda: KL(free=0.1),
    "kl by block": lambda: KL(free={"spurious": 0.1}),
    "kl of a block": lambda: KL("spurious", free=0.1),
    "score matching of a block": lambda: ScoreMatching("invariant"),
    "mmd": lambda: MMD(groups=CONDITIONS),
    "mmd within": lambda: MMD(tap="z", groups=CONDITIONS, within="label", strata=2, reduction="sum", unbiased=False, bandwidths=(0.5, 2.0)),
    "shrinkage": lambda: Shrinkage(shared=0.2),
    "curvature": lambda: Curvature(extrinsic=0.5, parameter=2.0, points=9, directions=2, ridge=1e-2),
    "isometry": lambda: Isometry(points=9),
    "score matching": ScoreMatching,
    **INDEPENDENCE,
    "predictor": lambda: Predictor(None, "label", width=LATENT, categories=2),
    "predictor, irm": lambda: Predictor(
        None, "label", width=LATENT, categories=2, hidden=(4,), environment="condition", environments=CONDITIONS, irm=1.0
    ),
}
OF_BLOCKS = {"kl by block", "kl of a block", "score matching of a block", *INDEPENDENCE}
SCHEDULES = {"constant": lambda: Constant(2.0), "ramp": lambda: Ramp(1.0, begin=0.1, end=0.2, start=0.5), "cosine": lambda: Cosine(3.0)}


def vae_of(posterior: str = "plain", prior: str = "standard", decoder: str = "effects", likelihood: str = "negative_binomial") -> VAE:
    torch.manual_seed(1)
    part = DECODERS[decoder]()
    return VAE(POSTERIORS[posterior](), PRIORS[prior](), part, LIKELIHOODS[likelihood](part.width))


VAES = {
    **{f"posterior {k}": (lambda k=k: vae_of(posterior=k)) for k in POSTERIORS},
    **{f"prior {k}": (lambda k=k: vae_of(prior=k)) for k in PRIORS},
    **{f"decoder {k}": (lambda k=k: vae_of(decoder=k)) for k in DECODERS},
    **{f"likelihood {k}": (lambda k=k: vae_of(likelihood=k)) for k in LIKELIHOODS},
}

COMPONENTS: dict[str, Callable[[], Component]] = {
    **VAES,
    **{f"term {k}": v for k, v in TERMS.items()},
    **{f"schedule {k}": v for k, v in SCHEDULES.items()},
    "plan": lambda: Plan(epochs=3, lr=0.1, clip=None, balance="condition", decay="cosine"),
    "objective": lambda: Objective({k: v() for k, v in TERMS.items()}, {"kl": Ramp(1.0), "mmd": 0.5}),
    "mlp": lambda: MLP(4, (3, 2), covariates=2, norm="batch", activation="leaky_relu", slope=0.3, dropout=0.2, init="glorot_normal"),
}


def batch_of(n: int = 24, *, kind: str = "counts", sparse: bool = True, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.full((n, GENES), 1.5), generator=rng) * (torch.rand(n, GENES, generator=rng) < 0.6)
    x[:, 0] += 1
    if kind == "binary":
        x = (x > 1).float()
    code = torch.arange(n) % CONDITIONS
    rows = Rows.of_dense(x)
    if sparse:
        cell, gene = torch.nonzero(x, as_tuple=True)
        crow = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(cell, minlength=n).cumsum(0)])
        rows = Rows.of_csr(crow, gene, x[cell, gene], (n, GENES))
    size = x.sum(1, keepdim=True) if kind == "counts" else torch.ones(n, 1)
    design = {"condition": torch.nn.functional.one_hot(code, CONDITIONS).float(), "label": torch.ones(n, 1)}
    return Batch(rows, size, design=design, code={"condition": code, "label": torch.arange(n) // 3 % 2})


def run(vae: VAE, batch: Batch, seed: int = 3):
    return vae(batch, Progress.done(100), generator=torch.Generator().manual_seed(seed))


def tensors(batch: Batch) -> list[torch.Tensor]:
    rows = batch.rows
    parts = rows.csr() if rows.sparse else (rows.to_dense(),)
    return [*parts, batch.size, *batch.design.values(), *batch.code.values()]


def first_gradients(vae: VAE) -> torch.Tensor:
    """Of the first layers of the encoders."""
    parts = getattr(vae.posterior, "blocks", {"": vae.posterior}).values()
    return torch.cat([part.network.first.weight.grad.clone() for part in parts], 1)


def without_gradient(vae: VAE) -> set[str]:
    """What no batch of known categories can move: the unknown category's row is masked, and what is not learned is frozen."""
    return {name for name, p in vae.named_parameters() if not p.requires_grad}


def by_category(vae: VAE, key: str) -> bool:
    """Whether a parameter has a row for each category, the last for the unknown one."""
    owner, _, name = key.rpartition(".")
    part = vae.get_submodule(owner)
    tables = {ConditionalGaussian: ("place",) if getattr(part, "embedding", 0) else ("mean", "log_var"), Energy: ("tilt",)}
    return name in tables.get(type(part), ())


@pytest.mark.parametrize("name", VAES)
def test_every_parameter_gets_a_finite_gradient(name):
    vae = VAES[name]().train()
    batch = batch_of(kind=vae.likelihood.kind)
    p = run(vae, batch)
    loss = NLL()(p).mean() + KL()(p).mean()
    (loss if vae.prior.normalised else loss + ScoreMatching()(p).mean()).backward()
    for key, parameter in vae.named_parameters():
        if key in without_gradient(vae):
            assert "prior" in key
            continue
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        moved = parameter.grad.abs().reshape(len(parameter), -1).sum(1) if parameter.dim() else parameter.grad.abs()
        if by_category(vae, key):
            assert (moved[-1] == 0).item(), "the unknown category's row is fixed"
            moved = moved[:-1]
        assert (moved > 0).float().mean() > 0.8, f"{key}: {int((moved == 0).sum())} of {len(moved)} rows get none"


def rows_of(batch: Batch, at: slice) -> Batch:
    """Some rows of a dense batch."""
    design, code = ({r: t[at] for r, t in m.items()} for m in (batch.design, batch.code))
    return Batch(Rows.of_dense(batch.rows.dense[at]), batch.size[at], design, code)


def change_of_row(batch: Batch, i: int) -> Batch:
    """Every row but the i-th replaced by that of another cell, its covariates too."""
    x = batch.rows.to_dense().clone()
    others = torch.arange(batch.n) != i
    x[others] = x.flip(0)[others] + 1
    roll = {r: torch.where(others[:, None], t.roll(1, 0), t) for r, t in batch.design.items()}
    code = {r: torch.where(others, t.roll(1, 0), t) for r, t in batch.code.items()}
    size = torch.where(others[:, None], batch.size + 3, batch.size)
    return Batch(Rows.of_dense(x), size, design=roll, code=code)


@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_row_i_of_the_output_depends_on_row_i_of_the_input_only(name):
    vae, i = VAES[name]().eval(), 7
    batch = batch_of(kind="counts", sparse=False)
    if vae.likelihood.kind == "binary":
        batch = batch_of(kind="binary", sparse=False)
    other = change_of_row(batch, i)
    for a, b in ((batch, other), (batch, rows_of(batch, slice(i, None)))):
        j = i if b is other else 0
        first, second = vae.encode(a), vae.encode(b)
        torch.testing.assert_close(first.mean[i], second.mean[j], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(first.stddev[i], second.stddev[j], rtol=1e-6, atol=1e-6)
        h, k = vae.decode(first.mean, a), vae.decode(second.mean, b)
        torch.testing.assert_close(vae.likelihood.mean(h, a)[i], vae.likelihood.mean(k, b)[j], rtol=1e-5, atol=1e-6)
        if vae.likelihood.kind != "binary":
            torch.testing.assert_close(vae.likelihood.log_prob(h, a)[i], vae.likelihood.log_prob(k, b)[j], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vae.prior.log_prob(first.mean, a)[i], vae.prior.log_prob(second.mean, b)[j], rtol=1e-5, atol=1e-5)
    assert (vae.encode(batch).mean[8] - vae.encode(other).mean[8]).abs().max() > 0


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_specification_survives_json_with_the_same_names_and_shapes(name):
    component = COMPONENTS[name]()
    spec = json.loads(json.dumps(to_spec(component), allow_nan=False))
    again = from_spec(spec)
    assert type(again) is type(component)
    assert to_spec(again) == spec
    if isinstance(component, nn.Module):
        shapes = [{k: (v.shape, v.dtype) for k, v in c.state_dict().items()} for c in (component, again)]
        assert shapes[0] == shapes[1]
        again.load_state_dict(component.state_dict())
    for argument in arguments(type(component)):
        assert hasattr(component, argument), f"{name} does not keep {argument}"


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_the_same_function_after_json(name):
    schedule = SCHEDULES[name]()
    again = from_spec(json.loads(json.dumps(to_spec(schedule))))
    for step in range(11):
        assert weight_now(schedule, Progress(step, 10)) == weight_now(again, Progress(step, 10))


@pytest.mark.parametrize("name", VAES)
def test_a_pass_and_its_terms_change_nothing(name):
    vae = VAES[name]().eval()
    batch = batch_of(kind=vae.likelihood.kind)
    before, state = [t.clone() for t in tensors(batch)], copy.deepcopy(vae.state_dict())
    modes = [m.training for m in vae.modules()]
    p = run(vae, batch)
    kept = {k: v.clone() for k, v in p.taps.items()}, p.z.clone(), p.h.clone()
    terms = {k: make().eval() for k, make in TERMS.items() if k != "shrinkage" or isinstance(vae.decoder, EffectDecoder)}
    if not p.taps:
        terms.pop("mmd")
    if not vae.prior.slices:
        terms = {k: term for k, term in terms.items() if k not in OF_BLOCKS}
    elif vae.prior.blocks["invariant"].candidates(batch) is None:
        terms.pop("probe within, inferred")
    Objective(terms)(p).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(batch), strict=True))
    assert all(torch.equal(v, vae.state_dict()[k]) for k, v in state.items())
    assert modes == [m.training for m in vae.modules()]
    assert torch.equal(p.z, kept[1])
    assert torch.equal(p.h, kept[2])
    assert all(torch.equal(p.taps[k], v) for k, v in kept[0].items())
    assert run(vae, batch).z.equal(p.z)


@pytest.mark.parametrize("name", VAES)
def test_sparse_rows_give_what_dense_rows_give(name):
    vae = VAES[name]().eval()
    kind = vae.likelihood.kind
    found = []
    for sparse in (True, False):
        batch = batch_of(kind=kind, sparse=sparse)
        vae.zero_grad()
        p = run(vae, batch)
        value = vae.likelihood.log_prob(p.h, batch)
        value.sum().backward()
        found.append((p.qz.mean.detach(), value.detach(), first_gradients(vae)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_one_number_per_cell_or_one_number_as_it_declares(name):
    term = TERMS[name]()
    value = term(run(vae_of(prior="blocks"), batch_of()))
    assert value.shape in {torch.Size([24]), torch.Size([])}
    if term.joint:
        assert value.shape == torch.Size([])
    assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", VAES)
def test_geometry_looks_at_each_cell_alone_and_moves_nothing_but_decoder_and_last_layer(name):
    vae = VAES[name]().eval()
    batch = batch_of(kind=vae.likelihood.kind, sparse=False)
    z = run(vae, batch).z.detach()
    whole = trifold.geometry.curvature(vae.surface(batch), z)
    part = trifold.geometry.curvature(vae.surface(rows_of(batch, slice(5, 9))), z[5:9])
    for quantity in ("extrinsic", "parameter", "metric"):
        torch.testing.assert_close(getattr(whole, quantity)[5:9], getattr(part, quantity), rtol=1e-3, atol=1e-4)
    for term in ("curvature", "isometry"):
        vae.zero_grad()
        value = TERMS[term]()(run(vae, batch))
        value.backward()
        moved = {key for key, p in vae.named_parameters() if p.grad is not None and (p.grad != 0).any()}
        assert torch.isfinite(value)
        assert moved <= {key for key, _ in vae.named_parameters() if key.startswith("decoder.") or key == "likelihood.out.weight"}


@pytest.mark.parametrize("name", [n for n, make in TERMS.items() if not make().joint and n != "shrinkage"])
@torch.no_grad()
def test_a_term_that_is_not_joint_is_a_sum_over_cells(name):
    term, vae, batch = TERMS[name](), vae_of(prior="blocks").eval(), batch_of(sparse=False)
    p = run(vae, batch)
    part = rows_of(batch, slice(9))
    q = type(p)(batch=part, qz=vae.encode(part), z=p.z[:9], h=p.h[:9], vae=vae, taps={}, progress=p.progress)
    torch.testing.assert_close(term(p)[:9], term(q), rtol=1e-5, atol=1e-5)


def test_every_component_of_the_package_is_in_this_suite():
    def leaves(cls: type) -> set[type]:
        below = set().union(*(leaves(c) for c in cls.__subclasses__())) if cls.__subclasses__() else set()
        return below | ({cls} if cls.__module__.startswith("trifold.") and not getattr(cls, "__abstractmethods__", None) else set())

    covered: set[type] = set()

    def visit(spec: object) -> None:
        if isinstance(spec, dict):
            if "class" in spec:
                covered.add(type(from_spec(spec)))
            for value in spec.values():
                visit(value)

    for make in COMPONENTS.values():
        visit(to_spec(make()))
    missing = {c for c in leaves(Component) if c.__init__ is not object.__init__} - covered
    assert not {c.__name__ for c in missing}, "add them to the tables at the top"


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"class": "trifold.terms.elbo:KL", "fre": 1.0}, "'fre'.*Did you mean 'free'"),
        ({"class": "trifold.terms.elbo:KLL"}, "KLL"),
        ({"class": "trifold.nowhere:KL"}, "nowhere"),
        ({"class": "trifold.errors:TrifoldError"}, "not a component"),
        ({"class": "trifold.spec:json"}, "json"),
        ({"class": "os:system"}, "trust"),
        ({"class": "trifoldx.terms:KL"}, "trust"),
        ({"class": 7}, "7"),
        ({"class": "trifold.schedule:Ramp"}, "value"),
        ({"class": "trifold.schedule:Ramp", "value": 1.0, "end": "x"}, "Ramp"),
        ({"class": "trifold.nets:MLP", "inputs": -1, "hidden": [3]}, "MLP"),
        ({"class": "trifold.nets:MLP", "inputs": "many", "hidden": [3]}, "MLP"),
    ],
)
def test_a_specification_that_cannot_be_built_is_refused_with_its_name(spec, named):
    with pytest.raises(FormatError, match=named):
        from_spec(spec)


def test_an_argument_that_is_not_plain_data_is_refused():
    for bad in (float("nan"), float("inf"), object(), {1: 2}, {"class": "x"}, np.ones(3)):
        with pytest.raises(SpecError):
            to_spec({"a": bad} if not isinstance(bad, dict) else bad)
    assert to_spec(np.float32(0.5)) == 0.5
    assert to_spec((1, "a", None, True)) == [1, "a", None, True]


# -- presets ----------------------------------------------------------------------------------------------------------------------

COUNTS = ("negative_binomial", "zero_inflated", "poisson")
PRESETS: dict[str, tuple[str, dict]] = {
    **{f"plain {k}": ("counts", {"likelihood": k}) for k in (*COUNTS, "gaussian")},
    **{f"plain {k} by condition": ("counts", {"likelihood": k, "dispersion": "condition"}) for k in COUNTS[:2]},
    "plain within": ("counts", {"within": "cell_type"}),
    "plain real": ("real", {}),
    "plain bernoulli": ("binary", {}),
    "plain without matching": ("counts", {"mmd": 0.0, "shrinkage": 0.0}),
    "published": ("real", {"published": True}),
    "published within": ("real", {"published": True, "within": "label"}),
    **{f"flat {k}": ("counts", {"likelihood": k}) for k in COUNTS},
    "flat real": ("real", {"isometry": 1.0}),
    "flat real, as encoded": ("real", {"refine": 0}),
    "flat counts, located": ("counts", {"refine": 3}),
    "flat bernoulli": ("binary", {}),
    "flat published": ("real", {"published": True}),
    **{f"blocks {k}": ("counts", {"likelihood": k}) for k in COUNTS},
    "blocks real": ("real", {}),
    "blocks bernoulli": ("binary", {}),
    "blocks instead": ("counts", {"inject": "instead"}),
    "blocks never": ("counts", {"inject": "never"}),
    "blocks energy": ("counts", {"prior": "energy"}),
    "blocks dropout": ("counts", {"label_dropout": 0.5}),
    "blocks unlabelled": ("counts", {"components": 5}),
    "blocks published": ("counts", {"published": True, "independence": 1.0}),
    "blocks published energy": ("real", {"published": True, "prior": "energy"}),
}


@pytest.fixture(scope="module")
def studies(study):
    """kind -> AnnData of that kind of values."""
    counts, real, binary = (study.adata.copy() for _ in range(3))
    real.X = sp.csr_matrix(np.log1p(real.X.toarray()))
    binary.X = sp.csr_matrix((binary.X.toarray() > 0).astype(np.float32))
    return {"counts": counts, "real": real, "binary": binary}


def dense(x: object) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def preset_of(name: str, studies, **more):
    kind, options = PRESETS[name]
    if name.startswith("flat"):
        schema = trifold.Schema.of(studies[kind], spurious="condition", label="cell_type", kind=kind)
        return trifold.gamma_vae(schema, latent=4, hidden=(8,), **options, **more), studies[kind]
    if name.startswith("blocks"):
        biology = {} if "unlabelled" in name else {"invariant": "cell_type"}
        schema = trifold.Schema.of(studies[kind], spurious="condition", kind=kind, **biology)
        return trifold.invae(schema, invariant=4, spurious=2, hidden=(8,), **options, **more), studies[kind]
    schema = trifold.Schema.of(studies[kind], condition="condition", label="cell_type", kind=kind)
    return trifold.trvae(schema, latent=4, hidden=(8,), **options, **more), studies[kind]


@pytest.fixture(scope="module")
def fitted(studies):
    """name -> (model after one epoch, its data); each is trained once for the whole suite."""
    done: dict[str, tuple] = {}

    def get(name: str):
        if name not in done:
            model, a = preset_of(name, studies)
            before = a.X.copy(), a.obs.copy()
            model.fit(a, epochs=1, batch=64, device="cpu", progress=False)
            assert (before[0] != a.X).nnz == 0
            assert a.obs.equals(before[1])
            done[name] = model, a
        return done[name]

    return get


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_of_a_preset_gets_a_finite_gradient(name, studies):
    model, a = preset_of(name, studies)
    network = nn.ModuleDict({"vae": model.vae, "objective": model.objective}).train()
    batch = trifold.data.Cells(a, model.schema).batch(np.arange(len(a)))
    model.objective(model.vae(batch, Progress(50, 100, cells=len(a)))).loss.backward()
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_json_and_the_same_seed_gives_the_same_weights_without_touching_the_global_generator(name, studies):
    state = torch.get_rng_state()
    model, _ = preset_of(name, studies, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    twin, _ = preset_of(name, studies, seed=3)
    other, _ = preset_of(name, studies, seed=4)
    first, second, third = (m.vae.state_dict() for m in (model, twin, other))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert any(not torch.equal(v, third[k]) for k, v in first.items())
    spec = json.loads(json.dumps(to_spec({"vae": model.vae, "objective": model.objective, "plan": model.plan})))
    again = from_spec(spec)
    assert to_spec(again) == spec
    assert {k: v.shape for k, v in again["vae"].state_dict().items()} == {k: v.shape for k, v in first.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_fitted_preset_is_saved_and_loaded_bit_for_bit(name, fitted, tmp_path):
    model, a = fitted(name)
    model.save(tmp_path / "run")
    again = trifold.load(tmp_path / "run")
    assert np.array_equal(again.latent(a), model.latent(a))
    assert np.array_equal(again.expression(a), model.expression(a))
    for kind in ("mean", "sample", "residual"):
        first, second = (m.predict(a, {"condition": "stimulated"}, kind=kind, seed=1) for m in (model, again))
        assert np.array_equal(dense(first.X), dense(second.X))
        assert first.obs.equals(second.obs)
    assert again.score(a).equals(model.score(a))
    assert again.history.rows == model.history.rows
    assert again.cite() == model.cite()
    assert repr(again) == repr(model)


@pytest.mark.parametrize("name", PRESETS)
def test_answers_come_in_the_order_asked_for_and_do_not_depend_on_the_other_cells(name, fitted):
    model, a = fitted(name)
    truth, predicted = model.latent(a), model.predict(a, {"condition": "stimulated"}).X
    order = np.random.default_rng(0).permutation(a.n_obs)[:50]
    near = 1e-3 if model.vae.refine else 1e-5  # a step that is taken or not taken can hang on the last bit
    np.testing.assert_allclose(model.latent(a[order]), truth[order], rtol=near, atol=near / 10)
    np.testing.assert_allclose(model.predict(a[order], {"condition": "stimulated"}).X, predicted[order], rtol=10 * near, atol=near)
    assert list(model.predict(a[order], {"condition": "stimulated"}).obs_names) == list(a.obs_names[order])


@pytest.mark.parametrize("name", PRESETS)
def test_genes_in_another_order_give_identical_answers(name, fitted):
    model, a = fitted(name)
    order = np.random.default_rng(1).permutation(a.n_vars)
    assert np.array_equal(model.latent(a[:, order].copy()), model.latent(a))


@pytest.mark.parametrize("name", PRESETS)
def test_every_form_of_the_matrix_gives_bit_equal_latents(name, fitted):
    model, a = fitted(name)
    truth = model.latent(a)
    for form in (sp.csc_matrix, sp.csr_array, lambda x: x.toarray()):
        other = a.copy()
        other.X = form(a.X)
        assert np.array_equal(model.latent(other), truth)


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_seed_trains_to_bit_identical_weights_and_leaves_the_global_generators(name, fitted, studies):
    model, a = fitted(name)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    twin, _ = preset_of(name, studies)
    twin.fit(a, epochs=1, batch=64, device="cpu", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, twin.vae.state_dict()[k]) for k, v in model.vae.state_dict().items())


@pytest.mark.parametrize("name", PRESETS)
def test_predictions_are_in_the_units_of_x(name, fitted):
    model, a = fitted(name)
    mean = model.predict(a, {"condition": "stimulated"}).X
    drawn = dense(model.predict(a, {"condition": "stimulated"}, kind="sample").X)
    moved = dense(model.predict(a, {"condition": "stimulated"}, kind="residual").X)
    assert mean.shape == drawn.shape == moved.shape == a.shape
    if model.vae.likelihood.kind == "counts":
        assert (drawn == np.round(drawn)).all()
        assert (moved == np.round(moved)).all()
        assert min(drawn.min(), moved.min()) >= 0
        if "zero_inflated" not in name:
            np.testing.assert_allclose(mean.sum(1), np.asarray(a.X.sum(1)).ravel(), rtol=1e-4)
    if model.vae.likelihood.kind == "binary":
        assert set(np.unique(drawn)) <= {0, 1}
        assert ((mean >= 0) & (mean <= 1)).all()
    stay = model.predict(a[a.obs["condition"] == "stimulated"].copy(), {"condition": "stimulated"}, kind="residual").X
    own = a.X[np.flatnonzero(a.obs["condition"] == "stimulated")].toarray()
    np.testing.assert_allclose(dense(stay), own, atol=1e-4)


def test_published_refuses_counts_and_a_wrong_argument_is_named(studies):
    schema = trifold.Schema.of(studies["counts"], condition="condition")
    with pytest.raises(SpecError, match="normalize_total"):
        trifold.trvae(schema, published=True)
    for name, wrong in (("latent", 0), ("mmd", -1.0), ("kl", -1.0), ("hidden", (0,)), ("likelihood", "bernoulli"), ("likelihood", "nb")):
        with pytest.raises(SpecError, match=name):
            trifold.trvae(schema, **{name: wrong})
    with pytest.raises(SpecError, match="hidden"):
        trifold.trvae(schema, hidden=())
    with pytest.raises(trifold.TrifoldError, match="cell_tpye"):
        trifold.trvae(schema, within="cell_tpye")
    with pytest.raises(trifold.TrifoldError, match="condition"):
        trifold.trvae(trifold.Schema.of(studies["counts"]))


def test_invae_names_what_is_missing_or_wrong(studies):
    schema = trifold.Schema.of(studies["counts"], spurious="condition")
    for name, wrong in (
        ("invariant", 0),
        ("spurious", 0),
        ("components", 0),
        ("independence", -1.0),
        ("technique", -1.0),
        ("hidden", (0,)),
        ("hidden", ()),
        ("prior", "normal"),
        ("inject", "besides"),
        ("likelihood", "nb"),
    ):
        with pytest.raises(SpecError, match=name):
            trifold.invae(schema, **{name: wrong})
    for more in ({"prior": "energy"}, {"label_dropout": 0.1}):
        with pytest.raises(trifold.TrifoldError, match="needs an invariant role"):
            trifold.invae(schema, **more)
    with pytest.raises(trifold.TrifoldError, match="needs a spurious role"):
        trifold.invae(trifold.Schema.of(studies["counts"]))


def test_one_category_warns_and_nothing_else_does(studies):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MMD(groups=1)
        MMD(groups=2)
    assert [w.category for w in caught] == [TrifoldWarning]
