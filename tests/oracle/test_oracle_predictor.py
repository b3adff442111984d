"""The predictor: environments averaged as a loop would, the penalty of invariant risk minimisation, unknown categories."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from trifold.core import Blocks, StandardNormal
from trifold.errors import SpecError
from trifold.records import Batch, Pass, Progress, Rows
from trifold.terms import Predictor
from trifold.terms.predictor import irm


def pass_of(z: torch.Tensor, **code: torch.Tensor) -> Pass:
    class Holder:
        prior = Blocks({"invariant": StandardNormal(2), "spurious": StandardNormal(z.shape[1] - 2)})

    batch = Batch(Rows.of_dense(torch.zeros(len(z), 1)), torch.ones(len(z), 1), code=code)
    return Pass(batch=batch, qz=None, z=z, h=z, vae=Holder, taps={}, progress=Progress.done())


def cells(n: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, labels with some unknown, environments of unequal size with some unknown."""
    return torch.randn(n, 3), torch.arange(n) % 4 - 1, torch.tensor([0] * 25 + [1] * 9 + [3] * 1 + [-1] * 5)


def test_the_value_is_the_mean_over_environments_of_the_mean_over_known_cells():
    z, label, site = cells()
    term = Predictor(width=2, categories=3, environment="spurious", environments=5)
    losses = []
    for e in (0, 1, 3, -1):
        own = (site == e) & (label >= 0)
        if own.any():
            losses.append(cross_entropy(term.logits(z[own, :2]), label[own]))
    torch.testing.assert_close(term(pass_of(z, label=label, spurious=site)), sum(losses) / len(losses))
    plain = Predictor(width=2, categories=3)
    known = label >= 0
    torch.testing.assert_close(plain(pass_of(z, label=label)), cross_entropy(plain.logits(z[known, :2]), label[known]))


def test_the_penalty_is_the_squared_slope_of_each_environments_risk_by_finite_differences_over_pairs_of_cells():
    logits, code = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3
    site = torch.tensor([0] * 5 + [1] * 6 + [2])  # the last has one cell: no pair
    member = torch.nn.functional.one_hot(site, 4).double()
    step = 1e-6
    slope = (cross_entropy((1 + step) * logits, code, reduction="none") - cross_entropy((1 - step) * logits, code, reduction="none")) / (
        2 * step
    )
    expected = []
    for e in (0, 1):
        own = slope[site == e]
        pairs = [own[i] * own[j] for i in range(len(own)) for j in range(len(own)) if i != j]
        expected.append(sum(pairs) / len(pairs))
    torch.testing.assert_close(irm(logits, code, member), sum(expected) / 2, rtol=1e-6, atol=1e-9)


def test_the_penalty_is_unbiased_for_the_squared_slope_of_the_population_within_four_standard_errors():
    generator, values = torch.Generator().manual_seed(0), []
    z = torch.randn(200_000, generator=generator, dtype=torch.float64)
    code = (torch.rand(len(z), generator=generator, dtype=torch.float64) < torch.sigmoid(4 * z)).long()
    logits = torch.stack([torch.zeros_like(z), z], 1)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(cross_entropy(scale * logits, code), scale)
    for part, own in zip(logits.split(20), code.split(20), strict=True):
        values.append(irm(part, own, torch.ones(20, 1, dtype=torch.float64)))
    values = torch.stack(values)
    assert slope.square() > 0.01
    assert abs(values.mean() - slope.square()) < 4 * values.std() / math.sqrt(len(values))


def test_the_penalty_is_zero_on_average_for_calibrated_logits():
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(400):
        z = torch.randn(50, generator=generator)
        code = (torch.rand(50, generator=generator) < torch.sigmoid(z)).long()
        values.append(irm(torch.stack([torch.zeros_like(z), z], 1), code, torch.ones(50, 1)))
    values = torch.stack(values)
    assert abs(values.mean()) < 4 * values.std() / 20


def test_the_weight_of_the_penalty_adds_it_and_its_gradient_reaches_head_and_block():
    z, label, site = cells()
    z.requires_grad_()
    with_penalty = Predictor(width=2, categories=3, environment="spurious", environments=5, irm=2.0)
    without = Predictor(width=2, categories=3, environment="spurious", environments=5)
    without.load_state_dict(with_penalty.state_dict())
    p = pass_of(z, label=label, spurious=site)
    known = label >= 0
    member = torch.nn.functional.one_hot(site + 1, 6)[known].float()
    extra = irm(with_penalty.logits(z[known, :2]), label[known], member)
    torch.testing.assert_close(with_penalty(p) - without(p), 2 * extra)
    with_penalty(p).backward()
    assert (z.grad[known, :2] != 0).all()
    assert (z.grad[:, 2] == 0).all()
    assert (z.grad[~known] == 0).all()
    assert all((q.grad != 0).any() for q in with_penalty.parameters())
    with pytest.raises(SpecError, match="irm"):
        Predictor(width=2, categories=3, irm=-1)


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_it_learns_separable_categories(hidden):
    label = torch.arange(300) % 3
    z = torch.randn(300, 3) * 0.3 + torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [-2.0, -2.0, 0]])[label]
    term = Predictor(width=2, categories=3, hidden=hidden, environment="spurious", environments=2, irm=0.1)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.05)
    p = pass_of(z, label=label, spurious=torch.arange(300) % 2)
    for _ in range(150):
        optimizer.zero_grad()
        term(p).backward()
        optimizer.step()
    assert (term.logits(z[:, :2]).argmax(1) == label).float().mean() > 0.98


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("known", [True, False])
def test_one_cell_and_only_unknown_cells_give_a_finite_value_and_gradient(n, known):
    z = torch.randn(n, 3, requires_grad=True)
    code = torch.zeros(n).long() if known else torch.full((n,), -1)
    term = Predictor(None, width=3, categories=3, environment="spurious", environments=2, irm=1.0)
    value = term(pass_of(z, label=code, spurious=code))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()
    assert known or value == 0
    with pytest.raises(SpecError, match="has no role 'label'"):
        term(pass_of(z))
