import numpy as np
import pytest

from trifold.errors import EvaluationError
from trifold.evaluate import de_genes, de_overlap, discrimination


def test_discrimination_by_hand_on_a_line():
    real = np.arange(5.0)[:, None]
    assert discrimination(real, real).tolist() == [1] * 5
    # reversed: the prediction for 0 lies at 4, the furthest; the middle one is right; that for 1 lies at 3,
    # with 2, 3 and 4 nearer, 0 further
    assert discrimination(real[::-1], real).tolist() == [0, 0.25, 1, 0.25, 0]


def test_one_prediction_for_all_targets_is_at_chance():
    real = np.random.default_rng(0).normal(size=(9, 4))
    assert discrimination(np.ones((9, 4)), real).mean() == pytest.approx(0.5)
    assert discrimination(np.zeros((4, 2)), np.eye(4)[:, :2] * 0).tolist() == [0.5] * 4  # all ties


def test_randomly_permuted_predictions_are_at_chance_on_average():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(6, 20))
    scores = [discrimination(real[rng.permutation(6)], real).mean() for _ in range(400)]
    assert abs(np.mean(scores) - 0.5) < 4 * np.std(scores) / 20


def test_discrimination_needs_the_same_targets_on_both_sides():
    with pytest.raises(EvaluationError, match="one row per target"):
        discrimination(np.ones((3, 2)), np.ones((4, 2)))


def test_de_genes_finds_the_planted_genes_of_both_directions():
    rng = np.random.default_rng(0)
    control, cells = rng.normal(size=(60, 50)), rng.normal(size=(40, 50))
    cells[:, 7] += 5
    cells[:, 30] -= 3
    assert de_genes(cells, control, k=2).tolist() == [7, 30]


def test_de_overlap_counts_shared_genes():
    rng = np.random.default_rng(0)
    control, real, predicted = (rng.normal(size=(60, 50)) for _ in range(3))
    real[:, :4] += 5
    predicted[:, 2:6] += 5
    for by in ("test", "change"):
        assert de_overlap(predicted, real, control, k=4, by=by) == 0.5


def test_de_overlap_of_independent_genes_is_near_chance():
    rng = np.random.default_rng(0)
    values = [de_overlap(*(rng.normal(size=(6, 60)) for _ in range(2)), np.zeros((2, 60)), k=15, by="change") for _ in range(30)]
    assert abs(np.mean(values) - 0.25) < 4 * np.std(values) / np.sqrt(30)


def test_de_overlap_with_a_known_truth_is_the_same():
    rng = np.random.default_rng(0)
    control, real, predicted = (rng.normal(size=(20, 50)) for _ in range(3))
    truth = de_genes(real, control, k=30)
    assert de_overlap(predicted, real, control, k=20, truth=truth) == de_overlap(predicted, real, control, k=20)
