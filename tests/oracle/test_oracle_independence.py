"""Independence of blocks: closed forms of Gaussians, 0 on independent blocks, and who gets the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from trifold.core import Blocks, StandardNormal
from trifold.errors import ShapeError, SpecError
from trifold.records import Batch, Pass, Progress, Rows
from trifold.terms import HSIC, ConditionalMMD, Probe, TotalCorrelation, hsic, mmd2_groups, total_correlation
from trifold.terms.conditional_mmd import compact
from trifold.terms.mmd import kernel, squared_distances
from trifold.terms.total_correlation import density

BANDWIDTHS = (0.5, 2.0)


def pass_of(z: torch.Tensor, *, first: int = 2, mean=None, scale: float = 0.3, **code: torch.Tensor) -> Pass:
    class Holder:
        prior = Blocks({"invariant": StandardNormal(first), "spurious": StandardNormal(z.shape[1] - first)})

    batch = Batch(Rows.of_dense(torch.zeros(len(z), 1)), torch.ones(len(z), 1), code=code)
    mean = z if mean is None else mean
    qz = Independent(Normal(mean, torch.full_like(mean, scale)), 1)
    return Pass(batch=batch, qz=qz, z=z, h=z, vae=Holder, taps={}, progress=Progress.done())


def covariance(rho: float, a: int = 2, b: int = 1) -> torch.Tensor:
    s = torch.eye(a + b, dtype=torch.float64)
    s[0, a] = s[a, 0] = rho
    return s


def information(s: torch.Tensor, a: int) -> float:
    """½ log(det S_a det S_b / det S), the mutual information of two blocks of a Gaussian, nats."""
    return float(0.5 * (torch.logdet(s[:a, :a]) + torch.logdet(s[a:, a:]) - torch.logdet(s)))


def encoded(s: torch.Tensor, n: int, noise: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior means, and z of covariance S, when each posterior has variance ``noise``."""
    d = len(s)
    mean = torch.randn(n, d, generator=generator, dtype=s.dtype) @ torch.linalg.cholesky(s - noise * torch.eye(d)).T
    return mean, mean + math.sqrt(noise) * torch.randn(n, d, generator=generator, dtype=s.dtype)


def estimates(rho: float, noise: float, *, n: int = 256, seeds: int = 60, a: int = 2, b: int = 1, **options) -> torch.Tensor:
    generator, term = torch.Generator().manual_seed(1), TotalCorrelation(**options)
    values = []
    for _ in range(seeds):
        mean, z = encoded(covariance(rho, a, b), n, noise, generator)
        values.append(term(pass_of(z, first=a, mean=mean, scale=math.sqrt(noise))))
    return torch.stack(values)


def error(values: torch.Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


# -- total correlation ------------------------------------------------------------------------------------------------------------


def test_the_matrix_of_densities_is_torchs():
    z, mean, scale = torch.randn(6, 3).double(), torch.randn(6, 3).double() + 50, torch.rand(6, 3).double() + 0.1
    expected = Independent(Normal(mean, scale), 1).log_prob(z[:, None, :])
    torch.testing.assert_close(density(z, mean, scale), expected)


def test_total_correlation_equals_the_loop_of_its_definition():
    a, b, order = torch.randn(7, 7).double(), torch.randn(7, 7).double(), torch.tensor([1, 2, 0, 4, 3, 6, 5])
    n = range(7)
    pairs = [math.log(sum(math.exp(a[i, j] + b[i, j]) for j in n)) for i in n]
    crossed = [math.log(sum(math.exp(a[i, j] + b[order[i], order[j]]) for j in n)) for i in n]
    assert float(total_correlation(a, b, order=order)) == pytest.approx((sum(pairs) - sum(crossed)) / 7, abs=1e-12)
    alone = [math.log(sum(math.exp(a[i, j]) for j in n) / 7) + math.log(sum(math.exp(b[i, j]) for j in n) / 7) for i in n]
    published = sum(p - math.log(7) - q for p, q in zip(pairs, alone, strict=True)) / 7
    assert float(total_correlation(a, b, centred=False)) == pytest.approx(published, abs=1e-12)
    with pytest.raises(ShapeError, match="square"):
        total_correlation(a, b[:3])


@pytest.mark.parametrize("noise", [0.5, 0.1, 0.01])
def test_centred_total_correlation_is_zero_on_independent_blocks_within_four_standard_errors_and_the_published_one_is_not(noise):
    values = estimates(0.0, noise)
    assert abs(values.mean()) < 4 * error(values)
    published = estimates(0.0, noise, centred=False)
    assert published.mean() > 4 * error(published)
    if noise == 0.01:
        assert published.mean() > 1, "narrow posteriors: on its way to log n"


@pytest.mark.parametrize("rho", [0.3, 0.49])
@pytest.mark.parametrize("centred", [True, False])
def test_where_posteriors_overlap_total_correlation_is_the_gaussian_mutual_information(rho, centred):
    """Within 4 standard errors and a bias of 0.01 nats."""
    values = estimates(rho, 0.5, centred=centred, a=1, n=512)
    assert abs(values.mean() - information(covariance(rho, 1), 1)) < 4 * error(values) + 0.01


def test_total_correlation_ranks_correlations_and_reads_too_little_of_narrow_posteriors():
    found = [estimates(rho, 0.1).mean() for rho in (0.0, 0.3, 0.6, 0.85)]
    assert found == sorted(found)
    assert found[3] > found[0] + 0.2
    truth = information(covariance(0.85), 2)
    assert estimates(0.85, 0.1).mean() < truth
    assert abs(estimates(0.85, 0.001, a=5).mean()) < 0.1 * truth, "as documented: towards 0"


# -- HSIC -------------------------------------------------------------------------------------------------------------------------


def expected_hsic(rho: float, bandwidth: float) -> float:
    """HSIC of two standard normals of correlation rho under exp(-d²/2b): E kl + E k E l - 2 E[E'k E'l], each a Gaussian integral."""
    s = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    both = torch.linalg.det(eye + 2 * s / bandwidth) ** -0.5
    alone = (1 + 2 / bandwidth) ** -0.5
    shrink = bandwidth / (bandwidth + 1)
    crossed = shrink * torch.linalg.det(eye + s / (bandwidth + 1)) ** -0.5
    return float(both + alone**2 - 2 * crossed)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.7])
def test_hsic_is_the_closed_form_of_two_gaussians_within_four_standard_errors(rho):
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(300):
        z = torch.randn(40, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance(rho, 1)).T
        values.append(HSIC(bandwidths=(0.7,))(pass_of(z, first=1)))
    values = torch.stack(values)
    assert abs(values.mean() - expected_hsic(rho, 0.7)) < 4 * error(values)
    assert expected_hsic(0.0, 0.7) == pytest.approx(0, abs=1e-12)


def test_hsic_equals_the_sum_over_all_quadruples_of_different_cells():
    """The U-statistic: mean of k_ij l_ij + k_ij l_qr - 2 k_ij l_iq."""
    z, n = torch.randn(7, 3, dtype=torch.float64), 7
    k, l = (kernel(squared_distances(y), BANDWIDTHS) for y in (z[:, :2], z[:, 2:]))  # noqa: E741
    total, count = 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q])
                        count += 1
    assert float(hsic(k, l)) == pytest.approx(total / count, abs=1e-12)
    with pytest.raises(ShapeError, match="one shape"):
        hsic(k, l[:3])


def test_hsic_within_strata_is_the_mean_over_them_and_is_blind_to_what_differs_between_them():
    z, stratum = torch.randn(30, 3, dtype=torch.float64), torch.arange(30) % 4 - 1
    stratum[stratum == 2] = torch.tensor([2, 2, 2, -1, -1, -1, -1])  # three cells: too few
    k, l = (kernel(squared_distances(y), BANDWIDTHS) for y in (z[:, :2], z[:, 2:]))  # noqa: E741
    parts = {s: stratum == s for s in (0, 1)}
    expected = sum(m.sum() * hsic(k[m][:, m], l[m][:, m]) for m in parts.values()) / sum(m.sum() for m in parts.values())
    torch.testing.assert_close(hsic(k, l, within=stratum, strata=3), expected)
    generator, inside, across = torch.Generator().manual_seed(2), [], []
    two = torch.arange(60) % 2
    for _ in range(100):
        z = torch.randn(60, 3, generator=generator) + 4 * two[:, None]
        inside.append(HSIC(within="invariant", strata=2)(pass_of(z, invariant=two)))
        across.append(HSIC()(pass_of(z)))
    inside, across = torch.stack(inside), torch.stack(across)
    assert abs(inside.mean()) < 4 * error(inside)
    assert across.mean() > 20 * error(across)


def test_hsic_with_bandwidths_of_the_data_ranks_correlations_and_does_not_depend_on_the_scale():
    generator = torch.Generator().manual_seed(3)
    found = []
    for rho in (0.0, 0.3, 0.6, 0.9):
        z = torch.randn(400, 3, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance(rho)).T
        found.append(HSIC()(pass_of(z)))
        torch.testing.assert_close(HSIC()(pass_of(100 * z)), found[-1])
    assert found == sorted(found)


# -- MMD across e within d --------------------------------------------------------------------------------------------------------


def test_conditional_mmd_is_zero_when_blocks_match_within_types_although_marginals_differ():
    generator, inside, across, moved = torch.Generator().manual_seed(4), [], [], []
    kind = torch.tensor([0] * 30 + [1] * 30)
    batch = torch.tensor([0] * 26 + [1] * 4 + [0] * 4 + [1] * 26)
    for _ in range(150):
        z = torch.randn(60, 3, generator=generator) + 4 * kind[:, None]
        inside.append(ConditionalMMD()(pass_of(z, invariant=kind, spurious=batch)))
        across.append(ConditionalMMD(within=None)(pass_of(z, invariant=kind, spurious=batch)))
        moved.append(ConditionalMMD()(pass_of(z + 2 * batch[:, None], invariant=kind, spurious=batch)))
    inside, across, moved = (torch.stack(v) for v in (inside, across, moved))
    assert abs(inside.mean()) < 4 * error(inside)
    assert across.mean() > 20 * error(across)
    assert moved.mean() > 20 * error(moved)


def test_conditional_mmd_is_the_mean_over_all_pairs_that_meet_whatever_the_number_of_categories():
    z = torch.randn(60, 3, dtype=torch.float64)
    kind, batch = torch.randint(-1, 6, (60,)), torch.randint(-1, 5, (60,))
    got = ConditionalMMD(bandwidths=BANDWIDTHS)(pass_of(z, invariant=kind, spurious=batch))
    whole = mmd2_groups(z[:, :2], batch, BANDWIDTHS, groups=5, within=kind, strata=6)
    torch.testing.assert_close(got, whole)
    far = ConditionalMMD(bandwidths=BANDWIDTHS)(
        pass_of(z, invariant=kind.where(kind < 0, kind * 50_000), spurious=batch.where(batch < 0, batch * 70_000))
    )
    torch.testing.assert_close(far, got)


def test_groups_are_numbered_anew_within_strata():
    code = torch.tensor([9, 9, 4, 4, 9, 9, 7, -1, 9])
    stratum = torch.tensor([3, 3, 3, 3, 8, 8, 8, 8, -1])
    group, kind, groups, strata = compact(code, stratum)
    assert group.tolist() == [1, 1, 0, 0, 0, 0, -1, -1, -1]
    assert kind.tolist() == [0, 0, 0, 0, 1, 1, -1, -1, -1]
    assert (groups, strata) == (2, 2)


# -- the adversary ----------------------------------------------------------------------------------------------------------------


def train(probe: Probe, z: torch.Tensor, steps: int, **code: torch.Tensor) -> tuple[float, float]:
    """(accuracy, cross-entropy) of the probe after training on cells that stay where they are."""
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        value = probe(pass_of(z, **code))
        value.backward()
        optimizer.step()
    with torch.no_grad():
        p = pass_of(z, **code)
        return float((probe.logits(p).argmax(1) == code["spurious"]).float().mean()), float(probe(p))


def test_a_probe_reaches_the_accuracy_of_bayes_on_two_gaussians():
    """Within 4 standard errors: with means 2 apart the best accuracy is Φ(1) = 0.841."""
    n = 2000
    batch = torch.arange(n) % 2
    z = torch.randn(n, 3) + torch.stack([2.0 * batch, torch.zeros(n), torch.zeros(n)], 1)
    accuracy, _ = train(Probe(width=2, categories=2, hidden=()), z, 200, spurious=batch)
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert abs(accuracy - best) < 4 * math.sqrt(best * (1 - best) / n)


def test_the_reversed_gradient_makes_the_probes_accuracy_chance_and_a_strength_of_zero_leaves_the_encoder_alone():
    n = 400
    batch = torch.arange(n) % 2
    noise = torch.randn(n, 3)

    def trained(strength: float) -> tuple[float, float]:
        """(accuracy of a fresh probe, shift that is left) after training encoder and adversary together."""
        shift = torch.nn.Parameter(torch.tensor([3.0, 0.0, 0.0]))
        probe = Probe(width=2, categories=2, hidden=(), strength=strength)
        optimizer = torch.optim.SGD([{"params": probe.parameters(), "lr": 0.5}, {"params": [shift], "lr": 0.2}])
        for _ in range(400):
            optimizer.zero_grad()
            (probe(pass_of(noise + batch[:, None] * shift, spurious=batch)) + 0.02 * shift.square().sum()).backward()
            optimizer.step()
        left = shift.detach()
        accuracy, _ = train(Probe(width=2, categories=2, hidden=()), noise + batch[:, None] * left, 200, spurious=batch)
        return accuracy, float(left[0])

    alone = Probe(width=2, categories=2, strength=0.0)
    z = torch.randn(n, 3, requires_grad=True)
    alone(pass_of(z, spurious=batch)).backward()
    assert (z.grad == 0).all()
    assert all((p.grad != 0).any() for p in alone.parameters())
    adverse, left = trained(1.0)
    assert abs(left) < 0.5
    assert adverse < 0.65


def test_the_gradient_that_reaches_the_encoder_is_the_negative_of_the_probes():
    z = torch.randn(20, 3, requires_grad=True)
    probe = Probe(width=2, categories=3, strength=0.5)
    batch = torch.arange(20) % 4 - 1
    value = probe(pass_of(z, spurious=batch))
    value.backward()
    plain = z.detach()[:, :2].requires_grad_()
    known = batch >= 0
    loss = torch.nn.functional.cross_entropy(probe.head(plain)[known], batch[known])
    loss.backward()
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(z.grad[:, :2], -0.5 * plain.grad)
    assert (z.grad[:, 2] == 0).all()
    assert (z.grad[~known] == 0).all()
    with pytest.raises(SpecError, match="strength"):
        Probe(width=2, categories=3, strength=-1)


def test_a_probe_that_is_told_the_type_says_only_what_the_block_adds():
    """Batches are confounded with types, and the block says the type only: told the type, the best cross-entropy is H(e | d)."""
    n = 2000
    kind = torch.arange(n) % 2
    batch = torch.where(torch.rand(n) < 0.9, kind, 1 - kind)
    z = torch.randn(n, 3) * 0.1 + 2.0 * kind[:, None]
    share = float((batch == kind).float().mean())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    probe = Probe(width=2, categories=2, within="invariant", strata=2, hidden=())
    _, told = train(probe, z, 300, spurious=batch, invariant=kind)
    assert told == pytest.approx(entropy, abs=0.01)
    untold = Probe(width=2, categories=2, hidden=())
    train(untold, z, 300, spurious=batch)
    assert probe.head.out.weight[:, :2].abs().max() < untold.head.out.weight.abs().max()


# -- all of them ------------------------------------------------------------------------------------------------------------------

ALL = {
    "total correlation": TotalCorrelation,
    "total correlation, published": lambda **o: TotalCorrelation(centred=False, **o),
    "hsic": HSIC,
    "hsic within": lambda **o: HSIC(within="invariant", strata=3, **o),
    "conditional mmd": ConditionalMMD,
    "probe": lambda: Probe(width=2, categories=3),
    "probe within": lambda: Probe(width=2, categories=3, within="invariant", strata=3),
}


@pytest.mark.parametrize("name", [k for k in ALL if "mmd" not in k and "probe" not in k])
def test_one_sided_the_gradient_goes_to_the_first_block_only(name):
    for one_sided in (True, False):
        z = torch.randn(30, 3, requires_grad=True)
        torch.manual_seed(0)
        ALL[name](one_sided=one_sided)(pass_of(z, invariant=torch.arange(30) % 3)).backward()
        assert (z.grad[:, :2] != 0).any()
        assert (z.grad[:, 2] == 0).all() == one_sided


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 2, 3, 12])
@pytest.mark.parametrize("categories", ["one", "unknown", "several"])
def test_few_cells_and_few_categories_give_a_finite_value_and_gradient(name, n, categories):
    code = {"one": torch.zeros(n), "unknown": torch.full((n,), -1), "several": torch.arange(n) % 3}[categories].long()
    z = torch.randn(n, 3, requires_grad=True)
    value = ALL[name]()(pass_of(z, invariant=code, spurious=code))
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()
    if n == 1 and "probe" not in name:
        assert value == 0


@pytest.mark.parametrize("name", ALL)
def test_equal_cells_give_no_nan(name):
    z = torch.ones(12, 3, requires_grad=True)
    value = ALL[name]()(pass_of(z, invariant=torch.zeros(12).long(), spurious=torch.arange(12) % 3))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", ALL)
def test_names_that_are_not_there_are_answered_with_those_that_are(name):
    p = pass_of(torch.randn(6, 3))
    if name in ("total correlation", "hsic"):
        with pytest.raises(SpecError, match=r"invarant.*Did you mean 'invariant'.*invariant, spurious"):
            ALL[name]().__class__("invarant")(p)
    elif name != "total correlation, published":
        with pytest.raises(SpecError, match="has no role"):
            ALL[name]()(p)


@pytest.mark.parametrize("cls", [HSIC, ConditionalMMD])
def test_bandwidths_must_be_above_zero(cls):
    for wrong in ((), (0.0, 1.0)):
        with pytest.raises(SpecError, match="bandwidths"):
            cls(bandwidths=wrong)
