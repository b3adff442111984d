"""The Triton kernels of the count likelihoods against the plain form and float64: in the interpreter, and on a GPU if there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

from trifold.dist import nb_log_prob, zinb_log_prob
from trifold.records import Rows

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton (Linux)")
WORKER = Path(__file__).with_name("triton_worker.py")
SMALL = (16, 8)  # genes and nonzeros at once: several rounds of each loop
WAYS = [
    "interpreter",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
FORMS = [(inflated, per_cell, sparse) for inflated in (False, True) for per_cell in (False, True) for sparse in (False, True)]


def work(*arguments: object, **variables: str) -> None:
    """The worker as a script; what it says on failure is the test's message."""
    done = subprocess.run([sys.executable, WORKER, *map(str, arguments)], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def problem(per_cell: bool) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    n, g = 5, 19
    x = torch.poisson(torch.full((n, g), 3.0), generator=rng) * (torch.rand(n, g, generator=rng) < 0.5)
    x[0], x[:, 1] = 0, 0  # an empty cell, a gene that never occurs
    x[1, 2], x[2, 3], x[3, 4], x[4, 0] = 40, 1e6, 25_000, 2.5
    scores, theta = 2 * torch.randn(n, g, generator=rng), 4 * torch.randn(n if per_cell else 1, g, generator=rng)
    size = x.sum(1, keepdim=True).clamp_min(1).log()
    return {
        "x": x,
        "scores": scores,
        "log_size": size,
        "log_theta": theta if per_cell else theta[0],
        "dropout": torch.randn(n, g, generator=rng),
    }


def csr(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    cell, gene = torch.nonzero(x, as_tuple=True)
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(cell, minlength=len(x)).cumsum(0)]), gene, x[cell, gene]


def case(inflated: bool, per_cell: bool, sparse: bool, *, grads: bool = True, change=None, **more) -> dict:
    out = problem(per_cell)
    if change is not None:
        change(out)
    if not inflated:
        out["dropout"] = None
    if sparse:
        out["csr"] = csr(out.pop("x"))
    return {**out, "grads": grads, **more}


def broken(parts: dict[str, torch.Tensor]) -> None:
    parts["scores"][2, 12] = float("nan")


def shut(parts: dict[str, torch.Tensor]) -> None:
    parts["scores"][:, 1] = -float("inf")  # a gene that never occurs


def padded() -> dict:
    out = case(True, False, True)
    crow, col, val = out["csr"]
    more = torch.zeros(7, dtype=torch.int64)
    crow = torch.cat([crow[:-1], crow[-1:] + 7])
    return {**out, "csr": (crow, torch.cat([col, more]).int(), torch.cat([val, more.float()])), "blocks": SMALL}


def grid() -> dict[str, torch.Tensor]:
    x = [1, 2, 3, 7, 19, 20, 21, 22, 50, 300, 1000, 12_345, 1e5, 3e5, 1e6]
    x, mean, theta = np.meshgrid(x, np.logspace(-8, 5, 14), np.logspace(-4, 6, 21))
    rng = np.random.default_rng(0)  # and counts near their mean, where large terms cancel
    some, wide = 10 ** rng.uniform(0, 6, 3_000), 10 ** rng.uniform(-1, 6, 3_000)
    near = np.maximum(1, rng.negative_binomial(wide, wide / (wide + some)))
    x, mean, theta = (np.concatenate([a.ravel(), b]) for a, b in ((x, near), (mean, some), (theta, wide)))
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in (("x", x), ("log_mu", np.log(mean)), ("log_theta", np.log(theta)))}


CASES = {
    **{form: case(*form, blocks=SMALL) for form in FORMS},
    "whole": case(True, False, True),
    "value": case(True, False, True, grads=False, blocks=SMALL),
    "padded": padded(),
    "unpadded": case(True, False, True, blocks=SMALL),
    **{("nan", sparse): case(True, False, sparse, change=broken) for sparse in (False, True)},
    "shut": case(False, False, True, change=shut),
    "none": {k: v if k == "log_theta" or v is None else v[:0] for k, v in problem(False).items()} | {"grads": True},
    "grid": grid(),
}


@pytest.fixture(scope="module", params=WAYS)
def answers(request, tmp_path_factory):
    """Case -> what the kernels give, all found in one process."""
    if request.param == "cuda":
        from triton_worker import answer

        return {name: answer(one, "cuda") for name, one in CASES.items()}
    folder = tmp_path_factory.mktemp("triton")
    torch.save(list(CASES.values()), folder / "cases.pt")
    work(folder / "cases.pt", folder / "answers.pt", TRITON_INTERPRET="1")
    return dict(zip(CASES, torch.load(folder / "answers.pt"), strict=True))


def whole_formula(parts: dict) -> tuple[torch.Tensor, ...]:
    """Log-probabilities and gradients of the whole formula in float64, by autograd."""
    x = parts["x"].double()
    s, t = parts["scores"].double().requires_grad_(), parts["log_theta"].double().expand(x.shape).clone().requires_grad_()
    log_mu, theta = torch.log_softmax(s, 1) + parts["log_size"].double(), t.exp()
    soft = torch.nn.functional.softplus
    log_p = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1) - theta * soft(log_mu - t) - x * soft(t - log_mu)
    if parts["dropout"] is None:
        return log_p.sum(1).detach(), *torch.autograd.grad(log_p.sum(), (s, t))
    d = parts["dropout"].double().requires_grad_()
    log_p = torch.where(x > 0, log_p, torch.logaddexp(d, log_p)) - soft(d)
    return log_p.sum(1).detach(), *torch.autograd.grad(log_p.sum(), (s, t, d))


def plain(parts: dict) -> tuple[torch.Tensor, ...]:
    """The same of the form that runs without Triton."""
    s, t = parts["scores"].clone().requires_grad_(), parts["log_theta"].expand(parts["x"].shape).clone().requires_grad_()
    rows = Rows.of_csr(*csr(parts["x"]), tuple(parts["x"].shape))
    if parts["dropout"] is None:
        out = nb_log_prob(s, parts["log_size"], t, rows)
        return out.detach(), *torch.autograd.grad(out.sum(), (s, t))
    d = parts["dropout"].clone().requires_grad_()
    out = zinb_log_prob(s, parts["log_size"], t, d, rows)
    return out.detach(), *torch.autograd.grad(out.sum(), (s, t, d))


def agree(got, truth, relative: float) -> None:
    torch.testing.assert_close(got[0].double(), truth[0].double(), rtol=relative, atol=1e-5)
    for ours, theirs in zip(got[1:], truth[1:], strict=False):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=10 * relative, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("form", FORMS)
def test_the_kernels_and_their_gradients_equal_the_whole_formula_in_float64(answers, form):
    parts = case(*form[:2], False)
    agree(answers[form], whole_formula(parts), 2e-6)
    assert (answers[form][3] is None) == (not form[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_kernels_give_the_numbers_of_the_plain_form(answers, form):
    agree(answers[form], plain(case(*form[:2], False)), 2e-6)


def test_how_many_genes_are_taken_at_once_changes_nothing_but_the_order_of_sums(answers):
    for one, other in zip(answers["whole"], answers[(True, False, True)], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)


def test_the_log_probability_is_the_same_bits_without_gradients(answers):
    assert torch.equal(answers["value"][0], answers["unpadded"][0])
    assert answers["value"][1:] == (None, None, None)


def test_zeros_stored_after_the_last_row_change_no_bit(answers):
    for one, other in zip(answers["padded"], answers["unpadded"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_nan_among_the_scores_comes_out_as_nan_in_its_row_only(answers, sparse):
    out, d_scores, *_ = answers[("nan", sparse)]
    assert out.isnan().tolist() == [i == 2 for i in range(len(out))]
    assert d_scores[2].isnan().all()
    agree([t[3:] for t in answers[("nan", sparse)]], [t[3:] for t in plain(case(True, False, False))], 2e-6)


def test_a_gene_that_can_not_occur_and_does_not_takes_no_part(answers):
    out, d_scores, d_logtheta, _ = answers["shut"]
    assert all(t.isfinite().all() for t in (out, d_scores, d_logtheta))
    assert (d_scores[:, 1] == 0).all()
    parts = case(False, False, False)
    others = [j for j in range(19) if j != 1]
    parts = {k: v if k in ("log_size", "dropout") or not hasattr(v, "shape") else v[..., others] for k, v in parts.items()}
    agree((out, d_scores[:, others], d_logtheta[:, others]), whole_formula(parts), 2e-6)


def test_no_cells_give_no_numbers(answers):
    assert [None if t is None else tuple(t.shape) for t in answers["none"]] == [(0,), (0, 19), (0, 19), (0, 19)]


def test_each_entry_equals_scipy_for_counts_to_a_million_and_theta_from_1e_minus_4_to_1e6(answers):
    log_p, digammas = (t.double().numpy() for t in answers["grid"])
    x, log_mu, log_theta = (t.double().numpy() for t in CASES["grid"].values())
    mean, theta = np.exp(log_mu), np.exp(log_theta)
    truth = -np.log(x) - special.betaln(x, theta) - x * np.log1p(theta / mean) - theta * np.log1p(mean / theta)
    near = len(x) - 3_000  # where the terms cancel, the difference is to be small in nats
    np.testing.assert_allclose(log_p[:near], truth[:near], rtol=3e-5, atol=1e-9)
    np.testing.assert_allclose(log_p[near:], truth[near:], rtol=5e-5, atol=2e-4)
    # psi(theta + x) - psi(theta) as a sum where it has few terms, which does not cancel
    few = x <= 1000
    summed = np.array([(1 / (t + np.arange(k))).sum() for t, k in zip(theta[few], x[few], strict=True)])
    np.testing.assert_allclose(digammas[few], summed, rtol=2e-6)
    np.testing.assert_allclose(digammas, special.digamma(theta + x) - special.digamma(theta), rtol=2e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_form_compiles_to_machine_code_without_a_gpu(capability, tmp_path):
    work("compile", capability, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bits_again():
    from triton_worker import answer

    for one, other in zip(*(answer(CASES["whole"], "cuda") for _ in range(2)), strict=True):
        assert torch.equal(one, other)
