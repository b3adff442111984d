import numpy as np
import pytest

from trifold.errors import EvaluationError
from trifold.evaluate import draws_error, log_change, mean_error


def test_log_change_by_hand():
    np.testing.assert_allclose(log_change([1.99, 0.0], [0.99, 0.0], pseudocount=0.01), [np.log(2), 0])


def test_mean_error_of_half_the_log_change_is_half_of_no_change():
    base = np.array([[1.0, 2, 4], [2.0, 1, 1]])
    change = np.array([[0.5, -0.5, 0.1], [1.0, 0.0, 0.2]])
    tiny = 1e-12
    out = mean_error(base * np.exp(change / 2), base * np.exp(change), base, pseudocount=tiny)
    assert out["rmse_no_change"] == pytest.approx(np.sqrt(np.mean(change**2)))
    assert out["rmse_change"] == pytest.approx(out["rmse_no_change"] / 2)
    assert out["pearson_change"] == pytest.approx(1)


def test_the_truth_has_no_error_and_no_change_has_no_correlation():
    base, true = np.array([1.0, 2, 4]), np.array([2.0, 2, 1])
    assert mean_error(true, true, base)["rmse_change"] == 0
    assert mean_error(base, true, base)["pearson_change"] == 0
    assert mean_error(true - 9, true - 9, base - 9, kind="real")["pearson_change"] == pytest.approx(1)


def test_draws_of_the_right_distribution_are_at_no_distance_and_means_are():
    rng = np.random.default_rng(0)
    mean = rng.gamma(2, 1, size=30)
    out = [draws_error(rng.poisson(mean, size=(15, 30)), rng.poisson(mean, size=(15, 30)))["e_distance"] for _ in range(60)]
    assert abs(np.mean(out)) < 3 * np.std(out) / np.sqrt(60)
    flat = draws_error(np.repeat(mean[None], 15, 0), rng.poisson(mean, size=(15, 30)))
    assert flat["e_distance"] > 1
    assert flat["variance_concordance"] < 0.1


def test_means_of_different_shapes_or_below_zero_are_refused():
    with pytest.raises(EvaluationError, match="same shape"):
        mean_error(np.ones(3), np.ones((2, 3)), np.ones(3))
    with pytest.raises(EvaluationError, match="same shape"):
        mean_error(np.ones(3), np.ones(4), np.ones(3), kind="real")
    with pytest.raises(EvaluationError, match="zero or more"):
        mean_error(-np.ones(3), np.ones(3), np.ones(3))
