import numpy as np
import pytest

from trifold.errors import EvaluationError
from trifold.evaluate import (
    bootstrap,
    concordance,
    correlation,
    pearson_delta,
    r2_mean,
    r2_var,
    rmse_delta,
    score,
    variance_concordance,
    zero_concordance,
)


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 2.0, size=30)
    control = np.maximum(rng.normal(0.2, 1, size=(40, 30)) * scale, 0)
    real = np.maximum(rng.normal(np.linspace(0, 1, 30), 1, size=(50, 30)) * scale, 0)
    return control, real


def test_perfect_prediction_is_perfect_in_every_score(cells):
    control, real = cells
    out = score(real, real, control, top={5: [0, 3, 7, 9, 11]}, de=(10,), centroid=control.mean(0) + 0.1)
    for metric, value in out.items():
        if metric.startswith(("r2", "pearson", "variance", "zero", "de_overlap_10")):
            assert value == pytest.approx(1.0), metric
        if metric.startswith("rmse"):
            assert value == 0
    assert out["e_distance"] < 0  # unbiased: a sample is closer to itself than chance
    assert out["mmd2"] < 0


def test_half_the_change_has_pearson_one_and_half_the_rms_change(cells):
    control, real = cells
    change = real.mean(0) - control.mean(0)
    predicted = control + change / 2
    assert pearson_delta(predicted, real, control) == pytest.approx(1)
    assert rmse_delta(predicted, real, control) == pytest.approx(np.sqrt(np.mean(change**2)) / 2)


def test_pearson_of_the_change_is_that_of_numpy_on_the_genes_given(cells):
    control, real = cells
    predicted = real[::-1][:20] ** 2
    genes = [4, 8, 15, 16, 23]
    a, b = (v.mean(0)[genes] - control.mean(0)[genes] for v in (predicted, real))
    assert pearson_delta(predicted, real, control, genes=genes) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert pearson_delta(predicted, real, control.mean(0), genes=genes) == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_no_change_scores_zero_and_not_nan(cells):
    control, real = cells
    assert pearson_delta(control, real, control) == 0.0
    assert correlation(np.full(4, 0.1), np.arange(4.0)) == 0.0
    assert correlation(np.full(4, 0.1) * 3, np.arange(4.0)) == 0.0


def test_r2_is_the_squared_pearson_of_means_and_of_variances(cells):
    control, real = cells
    assert r2_mean(control, real) == pytest.approx(np.corrcoef(control.mean(0), real.mean(0))[0, 1] ** 2)
    assert r2_var(control, real) == pytest.approx(np.corrcoef(control.var(0), real.var(0))[0, 1] ** 2)


def test_concordance_by_hand():
    # s_ab = s_a² = s_b² = 2/3, means differ by 1: 2 * 2/3 / (4/3 + 1) = 4/7
    assert concordance(np.array([0.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(4 / 7)
    assert concordance(np.ones(3), np.ones(3)) == 1.0
    assert concordance(np.ones(3), np.array([1.0, 2, 3])) == 0.0


def test_too_small_variances_lose_concordance_though_their_r2_is_perfect(cells):
    _, real = cells
    shrunk = real.mean(0) + 0.3 * (real - real.mean(0))
    assert r2_var(shrunk, real) == pytest.approx(1)
    assert variance_concordance(shrunk, real) < 0.5


def test_predicted_means_have_no_zeros_and_no_concordance(cells):
    _, real = cells
    assert abs(zero_concordance(np.repeat(real.mean(0)[None], 10, 0), real)) < 1e-9
    assert zero_concordance(real - 1e-3 * (real == 0), real) == 1.0  # values shifted below zero count as zero
    assert np.isnan(zero_concordance(real - 5, real - 5))
    assert np.isnan(zero_concordance(real + 5, real + 5))


def test_bootstrap_error_of_a_mean_is_its_standard_error():
    real = np.random.default_rng(0).normal(size=(400, 2))

    def first(predicted, _):
        return float(predicted.mean(0)[0])

    middle, spread = bootstrap(first, real, real, times=2000, seed=1)
    error = real[:, 0].std() / 20
    assert abs(middle - real[:, 0].mean()) < 4 * error / np.sqrt(2000)
    assert abs(spread / error - 1) < 4 / np.sqrt(2 * 2000)
    assert bootstrap(first, real, real, times=10, seed=1) == bootstrap(first, real, real, times=10, seed=1)


@pytest.mark.parametrize("broken", [np.ones((5, 29)), np.full((5, 30), np.nan), np.ones((0, 30)), np.ones(30)])
def test_predictions_that_cannot_be_scored_are_refused(cells, broken):
    control, real = cells
    with pytest.raises(EvaluationError):
        score(broken, real, control)
