import numpy as np
import pytest
from scipy.stats import norm

import trifold.evaluate.distance as module
from trifold.errors import EvaluationError
from trifold.evaluate import e_distance, fit_pca, median_bandwidth, mmd2


def over(draw, metric, times=300):
    """Mean of a metric over pairs of samples, and its standard error."""
    rng = np.random.default_rng(0)
    values = [metric(*draw(rng)) for _ in range(times)]
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(times)


def test_energy_distance_by_hand():
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    assert e_distance(x, y) == pytest.approx(2 * 2.5 - 1 - 2)
    assert e_distance(x, y, squared=True) == pytest.approx(2 * 7.5 - 1 - 4)


def test_energy_distance_of_two_gaussians_has_the_closed_form_mean():
    shift, s = 0.7, np.sqrt(2)
    far = s * np.sqrt(2 / np.pi) * np.exp(-(shift**2) / (2 * s**2)) + shift * (1 - 2 * norm.cdf(-shift / s))
    value, error = over(lambda r: (r.normal(size=(12, 1)), r.normal(shift, 1, size=(20, 1))), e_distance)
    assert abs(value - (2 * far - 4 / np.sqrt(np.pi))) < 4 * error


def test_squared_energy_distance_is_twice_the_squared_distance_of_the_means():
    value, error = over(lambda r: (r.normal(size=(9, 3)), r.normal(0.5, 4, size=(7, 3))), lambda a, b: e_distance(a, b, squared=True))
    assert abs(value - 2 * 3 * 0.25) < 4 * error


@pytest.mark.parametrize("metric", [e_distance, mmd2])
def test_distance_of_equal_distributions_is_zero_on_average(metric):
    value, error = over(lambda r: (r.normal(size=(8, 4)), r.normal(size=(15, 4))), metric)
    assert abs(value) < 3 * error


def test_mmd_of_two_gaussians_has_the_closed_form_mean():
    d, shift, sigma = 2, 0.8, 1.5
    wide = sigma + 2  # kernel variance plus the variance of a difference
    same = (sigma / wide) ** (d / 2)
    truth = 2 * same - 2 * same * np.exp(-d * shift**2 / (2 * wide))
    value, error = over(lambda r: (r.normal(size=(10, d)), r.normal(shift, 1, size=(14, d))), lambda a, b: mmd2(a, b, bandwidth=sigma))
    assert abs(value - truth) < 4 * error


def test_mmd_equals_the_loop_over_pairs():
    rng = np.random.default_rng(0)
    x, y, sigma = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), 0.9

    def k(a, b):
        return np.exp(-((a - b) ** 2).sum() / (2 * sigma))

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    assert mmd2(x, y, bandwidth=sigma) == pytest.approx(xx + yy - 2 * np.mean([k(a, b) for a in x for b in y]))


@pytest.mark.parametrize("metric", [e_distance, mmd2])
def test_distances_do_not_depend_on_block_size_or_order(metric, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 3)), rng.normal(1, 1, size=(31, 3))
    whole = metric(x, y)
    monkeypatch.setattr(module, "BLOCK", 40)
    assert metric(x[::-1], y) == pytest.approx(whole)


def test_distances_in_all_principal_components_are_those_of_the_values():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 3)), rng.normal(1, 1, size=(31, 3))
    assert e_distance(x, y, pca=fit_pca(np.concatenate([x, y]), 3)) == pytest.approx(e_distance(x, y))


def test_bandwidth_is_the_median_squared_distance():
    assert median_bandwidth(np.array([[0.0], [1.0], [3.0]])) == 4.0


def test_distances_refuse_one_cell_and_equal_cells():
    with pytest.raises(EvaluationError, match="two cells"):
        e_distance(np.ones((1, 2)), np.ones((3, 2)))
    with pytest.raises(EvaluationError, match="bandwidth"):
        mmd2(np.ones((3, 2)), np.ones((3, 2)))
