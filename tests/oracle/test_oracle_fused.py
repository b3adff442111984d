"""The compiled kernels against plain PyTorch and against the known answer."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_oracle_counts import MEAN, THETA, X, csr_rows, problem, reference

from trifold import compiled
from trifold.core import BlockPosterior, NegativeBinomial, Posterior, ZeroInflated
from trifold.core.posterior import log_normalised
from trifold.dist import log_prob_of_features, nb_log_prob, zinb_log_prob
from trifold.dist.fused import split_fused
from trifold.dist.plain import split_plain
from trifold.errors import SpecError
from trifold.nets import MLP, RowsLinear, sparse_matmul
from trifold.records import Batch, Rows

NAMES = ("value", "scores", "log_theta", "dropout")


def larger(n: int = 40, g: int = 700, *, per_cell: bool, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Wider than a vector and than a block of it, with empty cells and both extremes of everything."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.poisson(3 * torch.rand(n, g, generator=rng), generator=rng) * (torch.rand(n, g, generator=rng) < 0.1)
    x[0], x[-1], x[:, 5] = 0, 0, 0
    x[1, 2], x[2, 3], x[3, 699] = 40, 1e6, 25_000
    scores = 3 * torch.randn(n, g, generator=rng)
    scores[4] *= 20  # rates that underflow
    log_theta = (5 * torch.randn((n, g) if per_cell else (g,), generator=rng)).clamp(math.log(1e-4), math.log(1e6))
    return x, scores, x.sum(1, keepdim=True).clamp_min(1).log(), log_theta, 6 * torch.randn(n, g, generator=rng)


def agree(ours, truth, *, relative: float, absolute: float):
    for name, a, b in zip(NAMES, ours, truth, strict=True):
        assert (a is None) == (b is None), name
        if b is not None:
            scale = b.abs().amax(-1, keepdim=True) if b.numel() else b  # of a cell's derivatives, the largest
            assert ((a.double() - b.double()).abs() <= relative * b.abs() + absolute * (1 + scale)).all(), name


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("inflated", [False, True])
def test_compiled_kernels_equal_the_plain_form_in_float64(inflated, per_cell, sparse):
    for make in (problem, larger):
        x, scores, log_size, log_theta, gate = make(per_cell=per_cell)
        rows = csr_rows(x) if sparse else Rows.of_dense(x)
        gate = gate if inflated else None
        double = [None if t is None else t.double() for t in (scores, log_size, log_theta, gate)]
        agree(
            split_fused(scores, log_size, log_theta, gate, rows, grads=True),
            split_plain(*double, rows, grads=True),
            relative=1e-5,
            absolute=2e-6,
        )


@pytest.mark.parametrize("inflated", [False, True])
def test_each_entry_of_the_grid_has_the_references_value_and_slopes(inflated):
    """Every count, mean and inverse dispersion of the oracle grid, as the first gene of a cell whose second gene takes the rest."""
    x, mean, theta = (a.ravel() for a in np.meshgrid(X, MEAN, THETA))
    keep = slice(None, None, 7)
    x, mean, theta = x[keep], mean[keep], theta[keep]
    size = 2e5
    scores = torch.tensor(np.stack([np.log(mean), np.log(size - mean)], 1), dtype=torch.float32)
    log_theta = torch.tensor(np.stack([np.log(theta), np.zeros_like(theta)], 1), dtype=torch.float32)
    counts = torch.tensor(np.stack([x, np.zeros_like(x)], 1), dtype=torch.float32)
    log_size = torch.full((len(x), 1), math.log(size))
    gate = torch.linspace(-8, 8, len(x))[:, None].expand(-1, 2).contiguous() if inflated else None
    got = split_fused(scores, log_size, log_theta, gate, csr_rows(counts), grads=True)
    double = [None if t is None else t.double() for t in (scores, log_size, log_theta, gate)]
    agree(got, split_plain(*double, Rows.of_dense(counts), grads=True), relative=1e-5, absolute=1e-6)
    plain = split_plain(scores, log_size, log_theta, gate, csr_rows(counts), grads=True)
    torch.testing.assert_close(got[0], plain[0], rtol=1e-4, atol=1e-4)
    for ours, other in zip(got[1:3], plain[1:3], strict=True):  # in float32 the plain form takes differences of terms as large as this
        terms = (counts.amax(1) + torch.tensor(theta * mean / (theta + mean), dtype=torch.float32))[:, None]
        assert ((ours - other).abs() <= 1e-6 * (terms + 1) + 1e-4 * other.abs()).all()
    if not inflated:
        m = torch.softmax(scores.double(), 1).numpy() * math.exp(log_size[0].double())
        of_zero = reference(np.zeros_like(x), m[:, 1], np.ones_like(x))
        truth = reference(x, m[:, 0], log_theta[:, 0].double().exp().numpy()) + of_zero
        np.testing.assert_allclose(got[0].double().numpy(), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inflated", [False, True])
def test_plain_slopes_in_float64_equal_finite_differences(inflated):
    x, *parts = problem(4, 6, per_cell=True)
    rows, single = Rows.of_dense(x), [t.double() for t in parts]
    single[2] = single[2].clamp(-3, 3)
    inputs = [single[0].requires_grad_(), single[2].requires_grad_(), single[3].requires_grad_()][: 2 + inflated]

    def value(scores, log_theta, gate=None):
        return nb_log_prob(scores, single[1], log_theta, rows) if gate is None else zinb_log_prob(scores, single[1], log_theta, gate, rows)

    assert value(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("inflated", [False, True])
def test_the_layer_and_the_likelihood_as_one_function_equal_the_two_apart(inflated):
    x, _, log_size, log_theta, _ = larger(per_cell=False)
    rows, up = csr_rows(x), torch.rand(len(x))  # cells weigh differently
    h, weight, bias = torch.randn(len(x), 6), torch.randn(700, 6), torch.randn(700)
    inputs = [h, weight, bias, log_theta, *((0.3 * torch.randn(700, 6), torch.randn(700)) if inflated else ())]

    def slopes(dtype):
        own = [t.to(dtype).requires_grad_() for t in inputs]
        gate = tuple(own[4:]) or None
        value = log_prob_of_features(own[0], (own[1], own[2]), log_size.to(dtype), own[3], rows, gate=gate)
        return value.detach(), torch.autograd.grad((value * up.to(dtype)).sum(), own)

    value, ours = slopes(torch.float32)
    with compiled.plain_kernels():
        other, plain = slopes(torch.float32)
    _, truth = slopes(torch.float64)
    torch.testing.assert_close(value, other, rtol=2e-6, atol=1e-5)
    for a, b, c in zip(ours, plain, truth, strict=True):
        scale = float(c.abs().max())
        torch.testing.assert_close(a.double(), c, rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("likelihood", [NegativeBinomial, ZeroInflated])
def test_frozen_layers_get_no_gradient_and_the_others_the_same_one(likelihood):
    x, _, log_size, _, _ = larger(per_cell=False)
    like, batch = likelihood(5, 700), Batch(csr_rows(x), log_size.exp())
    h = torch.randn(len(x), 5, requires_grad=True)
    (free,) = torch.autograd.grad(like.log_prob(h, batch).sum(), h)
    like.requires_grad_(False)
    like.log_prob(h, batch).sum().backward()
    assert torch.equal(h.grad, free)
    assert all(p.grad is None for p in like.parameters())


def test_one_cell_equals_the_same_cell_among_others_bit_for_bit():
    x, scores, log_size, log_theta, gate = larger(per_cell=False)
    together = split_fused(scores, log_size, log_theta, gate, csr_rows(x), grads=True)
    for i in (0, 3):
        one = slice(i, i + 1)
        alone = split_fused(scores[one], log_size[one], log_theta, gate[one], csr_rows(x[one]), grads=True)
        assert all(torch.equal(a, b[one]) for a, b in zip(alone, together, strict=True))


def test_rows_without_cells_or_nonzeros_are_allowed():
    scores = torch.randn(3, 4)
    for n in (0, 3):
        rows = csr_rows(torch.zeros(n, 4))
        got = split_fused(scores[:n], torch.zeros(n, 1), torch.zeros(4), None, rows, grads=True)
        agree(got, split_plain(scores[:n], torch.zeros(n, 1), torch.zeros(4), None, rows, grads=True), relative=1e-5, absolute=1e-6)


@pytest.mark.parametrize("split", [split_fused, split_plain])
def test_zeros_that_are_stored_count_as_zeros(split):
    x, scores, log_size, log_theta, gate = problem(per_cell=False)
    stored = x.numel()
    full = Rows.of_csr(torch.arange(0, stored + 1, x.shape[1]), torch.arange(x.shape[1]).repeat(len(x)), x.reshape(-1), tuple(x.shape))
    for g in (gate, None):
        a, b = (split(scores, log_size, log_theta, g, rows, grads=True) for rows in (full, csr_rows(x)))
        agree(a, b, relative=1e-6, absolute=1e-7)


@pytest.mark.parametrize("split", [split_fused, split_plain])
def test_without_gradients_none_are_worked_out_and_the_value_is_the_same(split):
    x, scores, log_size, log_theta, gate = larger(per_cell=False)
    for g in (gate, None):
        value, *slopes = split(scores, log_size, log_theta, g, csr_rows(x), grads=False)
        assert slopes == [None, None, None]
        assert torch.equal(value, split(scores, log_size, log_theta, g, csr_rows(x), grads=True)[0])


def test_no_gradients_are_asked_for_where_none_are_wanted(monkeypatch):
    x, scores, log_size, log_theta, _ = problem(per_cell=False)
    asked = []

    def spy(*args, grads):
        asked.append(grads)
        return split_plain(*args, grads=grads)

    monkeypatch.setattr("trifold.dist.split.backend_for", lambda scores: spy)
    nb_log_prob(scores, log_size, log_theta, csr_rows(x))
    scores.requires_grad_()
    with torch.no_grad():
        nb_log_prob(scores, log_size, log_theta, csr_rows(x))
    nb_log_prob(scores, log_size, log_theta, csr_rows(x))
    assert asked == [False, False, True]


@pytest.mark.parametrize("where", ["scores", "log_size", "log_theta", "gate", "counts"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so_in_its_cell_and_touches_no_other(where, bad):
    x, scores, log_size, log_theta, gate = larger(per_cell=True)
    at = {"scores": scores, "log_size": log_size, "log_theta": log_theta, "gate": gate, "counts": x}[where]
    x[7, 3], x[7, 4] = 0, 2
    for column in (0,) if where == "log_size" else (4,) if where == "counts" else (3, 4):  # a zero and a nonzero
        before = at[7, column].item()
        clean = split_fused(scores, log_size, log_theta, gate, csr_rows(x), grads=True)
        at[7, column] = bad
        value, slope, *_ = got = split_fused(scores, log_size, log_theta, gate, csr_rows(x), grads=True)
        at[7, column] = before
        if not (where in ("gate", "log_theta") and bad == math.inf):  # a certain structural zero, a Poisson: both have a limit
            assert not torch.isfinite(value[7])
            assert where == "gate" or not torch.isfinite(slope[7]).all()
        others = torch.arange(len(x)) != 7
        assert all(torch.equal(a[others], b[others]) for a, b in zip(got, clean, strict=True))


def test_a_layer_under_lower_precision_still_multiplies_sparse_rows_in_float32():
    layer, x = RowsLinear(700, 8, covariates=3), larger(per_cell=False)[0]
    c = torch.randn(len(x), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(csr_rows(x), c)
    assert got.dtype == torch.float32
    assert type(got.grad_fn).__name__ == "_FusedSparseBackward"
    torch.testing.assert_close(got, layer(csr_rows(x), c), rtol=1e-2, atol=2e-2)


def test_the_number_of_threads_and_a_second_run_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr("trifold.compiled.threads._ENTRIES", 1000)
    x, scores, log_size, log_theta, gate = larger(per_cell=False)
    weight, up = torch.randn(700, 24, requires_grad=True), torch.randn(40, 24)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 5):
            torch.set_num_threads(threads)
            product = sparse_matmul(csr_rows(x), weight)
            (slope,) = torch.autograd.grad(product, weight, up)
            results.append([*split_fused(scores, log_size, log_theta, gate, csr_rows(x), grads=True), product.detach(), slope])
            results[-1].append(log_normalised(csr_rows(x), log_size.exp()).csr()[2])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_plain_kernels_are_used_where_they_are_asked_for(monkeypatch):
    from trifold.dist.split import backend_for

    scores = torch.zeros(1, 2)
    assert backend_for(scores) is split_fused
    assert backend_for(scores.double()) is split_plain
    with compiled.plain_kernels():
        assert backend_for(scores) is split_plain
    monkeypatch.setenv("TRIFOLD_KERNELS", "plain")
    assert backend_for(scores) is split_plain
    assert type(sparse_matmul(csr_rows(torch.ones(1, 2)), torch.ones(2, 1, requires_grad=True)).grad_fn).__name__ == "_SparseMatmulBackward"
    monkeypatch.setenv("TRIFOLD_KERNELS", "fastest")
    with pytest.raises(SpecError, match="'fastest'"):
        backend_for(scores)


def test_where_nothing_may_be_written_the_kernels_are_compiled_in_each_process():
    alone = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import trifold.compiled.counts, trifold.compiled.sparse, trifold.compiled.elementary as e
import numpy as np
assert abs(e.exp64(1.0) - np.e) < 1e-14 and not e.exp64.stats.cache_hits
"""
    subprocess.run([sys.executable, "-W", "error", "-c", alone], check=True)


def test_numba_is_not_imported_before_a_kernel_is_used():
    subprocess.run([sys.executable, "-c", "import trifold.dist, trifold.nets, sys; assert 'numba' not in sys.modules"], check=True)


def test_without_numba_plain_kernels_are_used_and_said_once(monkeypatch):
    from trifold.dist.split import backend_for

    compiled._numba.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    try:
        with pytest.warns(RuntimeWarning, match="numba cannot be imported"):
            assert backend_for(torch.zeros(1, 2)) is split_plain
        assert backend_for(torch.zeros(1, 2)) is split_plain
    finally:
        compiled._numba.cache_clear()


@pytest.mark.parametrize("plus", ["none", "bias", "cells"])
def test_compiled_sparse_multiplication_equals_the_dense_product(plus):
    x = larger(per_cell=False)[0]
    weight, up = torch.randn(700, 33, dtype=torch.float64), torch.randn(40, 33)
    rest = {"none": None, "bias": torch.randn(33).double(), "cells": torch.randn(40, 33).double()}[plus]
    own = [weight.float().requires_grad_()] + ([] if rest is None else [rest.float().requires_grad_()])
    got = sparse_matmul(csr_rows(x), own[0], plus=own[1] if rest is not None else None)
    truth = x.double() @ weight + (0 if rest is None else rest)
    slopes = [x.double().T @ up.double(), *({"bias": [up.double().sum(0)], "cells": [up.double()]}.get(plus, []))]
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max()) / 100)
    for a, b in zip(torch.autograd.grad(got, own, up), slopes, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * float(b.abs().max()) / 100)


def test_log_normalisation_equals_its_formula_for_empty_and_fractional_sizes_too():
    x = larger(per_cell=False)[0]
    size = x.sum(1, keepdim=True)
    size[5] = 0.25
    truth = torch.log1p(x.double() * (1e4 / size.double().clamp_min(1)))
    torch.testing.assert_close(log_normalised(csr_rows(x), size).to_dense().double(), truth, rtol=3e-7, atol=0)
    torch.testing.assert_close(log_normalised(Rows.of_dense(x), size).to_dense().double(), truth, rtol=3e-7, atol=0)


def test_blocks_of_one_transform_share_its_rows_and_give_what_each_gives_alone(monkeypatch):
    made = []
    real = Posterior.transformed
    monkeypatch.setattr(Posterior, "transformed", lambda self, batch: made.append(self.transform) or real(self, batch))
    parts = {k: Posterior(MLP(700, (4,)), 2, transform=t) for k, t in (("a", "lognorm"), ("b", "log1p"), ("c", "lognorm"))}
    x = larger(per_cell=False)[0]
    batch = Batch(csr_rows(x), x.sum(1, keepdim=True))
    whole = BlockPosterior(parts)(batch)
    assert made == ["lognorm", "log1p"]
    torch.testing.assert_close(whole.mean, torch.cat([part(batch).mean for part in parts.values()], 1), rtol=0, atol=0)
