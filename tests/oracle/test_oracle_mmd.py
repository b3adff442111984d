"""MMD against its closed form, a loop over pairs, finite differences, and its symmetries."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext

import pytest
import torch

from trifold.compiled import plain_kernels
from trifold.errors import ShapeError, SpecError, TrifoldWarning
from trifold.records import Batch, Pass, Progress, Rows
from trifold.terms import MMD, mmd2, mmd2_groups
from trifold.terms.mmd import PUBLISHED_BANDWIDTHS, kernel, squared_distances
from trifold.terms.weighted_kernel import on_device, on_host

BANDWIDTHS = (0.3, 1.0, 4.0)


def loop(y, code, bandwidths, *, groups, unbiased=True, reduction="mean"):
    """One pair of conditions after the other, one pair of cells after the other, as a textbook has it."""

    def k(a, b):
        d2 = ((a - b) ** 2).sum()
        return sum(torch.exp(-d2 / (2 * s)) for s in bandwidths) / len(bandwidths)

    def own(a):
        pairs = [k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j or not unbiased]
        return sum(pairs) / len(pairs)

    parts = [y[code == g] for g in range(groups)]
    parts = [p for p in parts if len(p) >= 2]
    values = []
    for i, a in enumerate(parts):
        for b in parts[i + 1 :]:
            values.append(own(a) + own(b) - 2 * sum(k(p, q) for p in a for q in b) / (len(a) * len(b)))
    if not values:
        return y.new_zeros(())
    return sum(values) / (len(values) if reduction == "mean" else 1)


def dense(y, code, bandwidths, *, groups, unbiased=True, reduction="mean", within=None, strata=1):
    """All kernels in full, means over groups by one-hot products, and autograd through all of it: what the analytic gradient replaces."""
    cell = code if within is None else torch.where((code < 0) | (within < 0), -1, within * groups + code)
    k = kernel(squared_distances(y), bandwidths)
    member = torch.nn.functional.one_hot(cell + 1, groups * strata + 1)[:, 1:].to(k.dtype)
    count = member.sum(0).reshape(strata, groups)
    sums = (member.T @ k @ member).reshape(strata, groups, strata, groups).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    own = sums.diagonal(dim1=1, dim2=2)
    mean_own = (own - count) / (count * (count - 1)).clamp_min(1) if unbiased else own / (count * count).clamp_min(1)
    mean_cross = sums / (count[:, :, None] * count[:, None, :]).clamp_min(1)
    present = (count >= 2).to(k.dtype)
    pair = torch.triu(present[:, :, None] * present[:, None, :], diagonal=1)
    value = (pair * (mean_own[:, :, None] + mean_own[:, None, :] - 2 * mean_cross)).sum()
    return value if reduction == "sum" else value / pair.sum().clamp_min(1)


def value_and_gradient(f, y, *args, **options):
    y = y.clone().requires_grad_()
    value = f(y, *args, **options)
    value.backward()
    return value.detach(), y.grad


def closed_form(shift: float, s2: float, t2: float, bandwidth: float, d: int) -> float:
    """MMD² of N(0, s2 I) and N(shift e, t2 I) with exp(-d²/2b): E k of a Gaussian difference of variance v is (b/(b+v))^(d/2) exp(...)."""

    def expected(variance: float, distance2: float) -> float:
        return (bandwidth / (bandwidth + variance)) ** (d / 2) * math.exp(-distance2 / (2 * (bandwidth + variance)))

    return expected(2 * s2, 0) + expected(2 * t2, 0) - 2 * expected(s2 + t2, shift**2)


@pytest.mark.parametrize(("shift", "t2", "bandwidth"), [(1.0, 1.0, 1.0), (0.0, 2.5, 3.0), (2.0, 0.5, 0.5)])
def test_the_mean_over_draws_is_the_closed_form_of_two_gaussians_within_four_standard_errors(shift, t2, bandwidth):
    rng = torch.Generator().manual_seed(1)
    d, values = 3, []
    for _ in range(200):
        a = torch.randn(40, d, generator=rng, dtype=torch.float64)
        b = math.sqrt(t2) * torch.randn(30, d, generator=rng, dtype=torch.float64)
        b[:, 0] += shift
        values.append(mmd2(a, b, [bandwidth]))
    values = torch.stack(values)
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - closed_form(shift, 1.0, t2, bandwidth, d)) < 4 * error


@pytest.mark.parametrize("groups", [2, 4])
def test_the_unbiased_form_is_zero_on_average_within_three_standard_errors_when_conditions_agree_and_the_biased_is_not(groups):
    rng = torch.Generator().manual_seed(2)
    code = torch.arange(48) % groups
    unbiased, biased = [], []
    for _ in range(300):
        y = torch.randn(48, 5, generator=rng)
        unbiased.append(mmd2_groups(y, code, BANDWIDTHS, groups=groups))
        biased.append(mmd2_groups(y, code, BANDWIDTHS, groups=groups, unbiased=False))
    unbiased, biased = torch.stack(unbiased), torch.stack(biased)
    assert abs(unbiased.mean()) < 3 * unbiased.std() / math.sqrt(len(unbiased))
    assert (biased >= -1e-6).all()
    assert biased.mean() > 10 * biased.std() / math.sqrt(len(biased))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bandwidths", [BANDWIDTHS, PUBLISHED_BANDWIDTHS])
def test_the_gram_form_equals_the_loop_over_pairs_to_1e_12(unbiased, reduction, bandwidths):
    y = torch.randn(17, 4, dtype=torch.float64) + 3
    code = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 3, 0, 1, 5, 5, 5])  # 3 holds one cell, 4 none
    options = {"groups": 6, "unbiased": unbiased, "reduction": reduction}
    got = mmd2_groups(y, code, bandwidths, **options)
    assert abs(float(got - loop(y, code, bandwidths, **options))) < 1e-12


@pytest.fixture(params=["compiled", "plain"])
def _kernels(request):
    """Both ways in which float32 may be done on the CPU."""
    with plain_kernels() if request.param == "plain" else nullcontext():
        yield


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("strata", [1, 3])
@pytest.mark.parametrize("bandwidths", [PUBLISHED_BANDWIDTHS, (0.5, 1.0, 2.0, 2.0, 8.0), torch.tensor([1.0, 3.0], dtype=torch.float64)])
def test_value_and_gradient_equal_autograd_through_all_kernels(unbiased, reduction, strata, bandwidths):
    """Groups of one cell, absent groups and cells without a group are among them; the samples span scales that are flat, seen and steep."""
    rng = torch.Generator().manual_seed(8)
    y = torch.randn(60, 7, generator=rng, dtype=torch.float64) * torch.logspace(-1, 1, 60, dtype=torch.float64)[:, None]
    code = torch.randint(-1, 5, (60,), generator=rng)
    code[0], code[1] = 6, 0
    within = torch.randint(-1, 3, (60,), generator=rng)
    options = {"groups": 8, "unbiased": unbiased, "reduction": reduction}
    options |= {"within": within, "strata": 3} if strata > 1 else {}
    value, gradient = value_and_gradient(mmd2_groups, y, code, bandwidths, **options)
    expected, expected_gradient = value_and_gradient(dense, y, code, bandwidths, **options)
    assert abs(value - expected) < 1e-10 * abs(expected)
    assert (gradient - expected_gradient).norm() < 1e-10 * expected_gradient.norm()
    bandwidths = bandwidths.float() if isinstance(bandwidths, torch.Tensor) else bandwidths
    value, gradient = value_and_gradient(mmd2_groups, y.float(), code, bandwidths, **options)
    assert abs(value - expected) < 1e-5 * abs(expected) + 1e-6  # it is a difference of means of kernels, which may cancel
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("conditions", [2, 32])
def test_in_float32_the_gradient_at_the_published_size_is_that_of_float64_to_1e_5(conditions):
    y = torch.nn.functional.leaky_relu(torch.randn(512, 128), 0.3) + 0.2 * (torch.arange(512) % conditions == 0)[:, None]
    options = {"groups": conditions, "unbiased": False, "reduction": "sum"}
    code = torch.arange(512) % conditions
    value, gradient = value_and_gradient(mmd2_groups, y, code, PUBLISHED_BANDWIDTHS, **options)
    expected, expected_gradient = value_and_gradient(dense, y.double(), code, PUBLISHED_BANDWIDTHS, **options)
    assert abs(value - expected) < 1e-5 * expected
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()


@pytest.mark.parametrize("bandwidths", [PUBLISHED_BANDWIDTHS, torch.tensor([0.5, 2.0, 1e3], dtype=torch.float64)])
def test_the_form_for_devices_that_are_not_looked_at_agrees_with_the_one_on_the_host(bandwidths):
    y = torch.randn(20, 3, dtype=torch.float64) * torch.logspace(-2, 1, 20, dtype=torch.float64)[:, None]
    distance = squared_distances(y)
    (k, slope), (every, every_slope) = on_host(distance, bandwidths), on_device(distance, bandwidths)
    torch.testing.assert_close(slope, every_slope, rtol=1e-12, atol=1e-12)
    off = ~torch.eye(20, dtype=torch.bool)
    assert (k - every)[off].std() < 1e-14  # up to a constant
    torch.testing.assert_close((k - every).diagonal(), (k - every)[off].mean().expand(20), rtol=1e-12, atol=1e-14)


def test_a_second_derivative_is_refused_and_not_wrong():
    y = torch.randn(8, 3, requires_grad=True)
    with pytest.raises(SpecError, match="first derivative only"):
        torch.autograd.grad(mmd2_groups(y, torch.arange(8) % 2, BANDWIDTHS, groups=2), y, create_graph=True)


@pytest.mark.usefixtures("_kernels")
def test_samples_that_are_not_numbers_give_a_value_and_a_gradient_that_are_none():
    y = torch.randn(8, 3)
    y[2, 1] = math.nan
    value, gradient = value_and_gradient(mmd2_groups, y, torch.arange(8) % 2, PUBLISHED_BANDWIDTHS, groups=2)
    assert math.isnan(value)
    assert torch.isnan(gradient).any()


def test_an_unknown_reduction_is_refused():
    with pytest.raises(SpecError, match="reduction"):
        mmd2_groups(torch.randn(4, 2), torch.arange(4) % 2, BANDWIDTHS, groups=2, reduction="max")


def test_cells_of_unknown_condition_are_left_out():
    y, code = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3 - 1
    kept = code >= 0
    assert float(mmd2_groups(y, code, BANDWIDTHS, groups=2)) == pytest.approx(
        float(loop(y[kept], code[kept], BANDWIDTHS, groups=2)), abs=1e-12
    )


def test_the_order_of_cells_and_of_conditions_does_not_matter():
    y, code = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    value = mmd2_groups(y, code, BANDWIDTHS, groups=3)
    order = torch.randperm(30)
    assert float(mmd2_groups(y[order], code[order], BANDWIDTHS, groups=3) - value) == pytest.approx(0, abs=1e-13)
    assert float(mmd2_groups(y, torch.tensor([2, 0, 1])[code], BANDWIDTHS, groups=3) - value) == pytest.approx(0, abs=1e-13)
    assert float(mmd2(y[:10], y[10:], BANDWIDTHS) - mmd2(y[10:], y[:10], BANDWIDTHS)) == pytest.approx(0, abs=1e-13)


def test_within_strata_it_is_the_mean_over_the_pairs_inside_them():
    y, code, stratum = torch.randn(24, 3, dtype=torch.float64), torch.arange(24) % 2, torch.arange(24) // 8
    stratum[stratum == 2] = -1
    got = mmd2_groups(y, code, BANDWIDTHS, groups=2, within=stratum, strata=2)
    inside = [loop(y[stratum == s], code[stratum == s], BANDWIDTHS, groups=2) for s in (0, 1)]
    assert float(got - sum(inside) / 2) == pytest.approx(0, abs=1e-12)


def test_within_types_a_difference_of_proportions_alone_is_no_difference():
    """Both conditions hold the same two types, nine to one and one to nine; within 4 standard errors of 0, and far from it without."""
    rng, inside, across = torch.Generator().manual_seed(6), [], []
    stratum = torch.tensor([0] * 20 + [1] * 20)
    code = torch.tensor([0] * 18 + [1] * 2 + [0] * 2 + [1] * 18)
    for _ in range(200):
        y = torch.randn(40, 3, generator=rng) + 4 * stratum[:, None]
        inside.append(mmd2_groups(y, code, BANDWIDTHS, groups=2, within=stratum, strata=2))
        across.append(mmd2_groups(y, code, BANDWIDTHS, groups=2))
    inside, across = torch.stack(inside), torch.stack(across)
    error = inside.std() / math.sqrt(len(inside))
    assert abs(inside.mean()) < 4 * error
    assert across.mean() > 10 * error


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_gradient_equals_finite_differences_in_float64(unbiased):
    y, code = torch.randn(9, 3, dtype=torch.float64, requires_grad=True), torch.arange(9) % 3
    assert squared_distances(y).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda v: mmd2_groups(v, code, BANDWIDTHS, groups=3, unbiased=unbiased), y, eps=1e-6, atol=1e-8)


def test_distances_of_a_row_to_itself_are_exactly_zero_even_far_from_the_origin():
    y = torch.randn(50, 20) * 1e-3 + 1e4
    distance = squared_distances(y)
    assert (distance.diagonal() == 0).all()
    assert (distance >= 0).all()
    torch.testing.assert_close(distance.double(), torch.cdist(y.double(), y.double()).square(), rtol=1e-4, atol=1e-9)
    assert squared_distances(y.bfloat16()).dtype == torch.float32
    assert (kernel(distance, (1e-6,)).diagonal() == 1).all()


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("code", [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 2, 3], [-1, -1, -1, -1]])
def test_with_fewer_than_two_groups_of_two_cells_the_value_is_zero_and_the_gradient_finite(code):
    y = torch.randn(4, 3, requires_grad=True)
    value = mmd2_groups(y, torch.tensor(code), BANDWIDTHS, groups=4)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(y.grad).all()


@pytest.mark.usefixtures("_kernels")
def test_equal_cells_give_no_nan():
    y = torch.ones(6, 3, requires_grad=True)
    value = mmd2_groups(y, torch.arange(6) % 2, PUBLISHED_BANDWIDTHS, groups=2)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(y.grad).all()


@pytest.mark.parametrize(("a", "b"), [((1, 3), (4, 3)), ((4, 3), (4, 2)), ((4,), (4,))])
def test_samples_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ShapeError, match="at least two rows"):
        mmd2(torch.zeros(a), torch.zeros(b), BANDWIDTHS)


def a_pass(y: torch.Tensor, code: torch.Tensor, **more: torch.Tensor) -> Pass:
    batch = Batch(Rows.of_dense(y), torch.ones(len(y), 1), code={"condition": code, **more})
    return Pass(batch=batch, qz=None, z=y + 1, h=y, vae=None, taps={"decoder.0": y}, progress=Progress.done())


def test_the_term_with_one_condition_warns_once_and_is_zero():
    with pytest.warns(TrifoldWarning, match="1 category") as caught:
        term = MMD(groups=1)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = torch.randn(5, 3, requires_grad=True)
        assert term(a_pass(y, torch.zeros(5, dtype=torch.int64))).item() == 0


def test_the_term_reads_the_tap_it_names_and_says_which_taps_there_are():
    y, code = torch.randn(20, 3), torch.arange(20) % 2
    value = MMD(groups=2, bandwidths=BANDWIDTHS)(a_pass(y, code))
    torch.testing.assert_close(value, mmd2_groups(y, code, BANDWIDTHS, groups=2))
    torch.testing.assert_close(MMD(tap="z", groups=2, bandwidths=BANDWIDTHS)(a_pass(y, code)), value, rtol=1e-4, atol=1e-6)
    with pytest.raises(SpecError, match=r"decoder\.0"):
        MMD(tap="decoder.7", groups=2)(a_pass(y, code))


def test_bandwidths_of_the_data_surround_half_the_median_squared_distance_and_move_in_training_only():
    term = MMD(groups=2)
    y, code = torch.randn(40, 6) * 3, torch.arange(40) % 2
    term.train()(a_pass(y, code))
    median = torch.pdist(y).median() ** 2
    torch.testing.assert_close(term.median, median)
    term.eval()
    expected = mmd2_groups(10 * y, code, [0.5 * float(median) * f for f in (0.25, 0.5, 1, 2, 4)], groups=2)
    torch.testing.assert_close(term(a_pass(10 * y, code)), expected)
    torch.testing.assert_close(term.median, median)
    term.train()(a_pass(torch.ones(4, 6), code[:4]))  # equal cells: no NaN
    assert torch.isfinite(term.median)


@pytest.mark.parametrize("wrong", [{"reduction": "max"}, {"bandwidths": ()}, {"bandwidths": (1.0, 0.0)}])
def test_wrong_arguments_are_refused_by_name(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        MMD(groups=2, **wrong)
