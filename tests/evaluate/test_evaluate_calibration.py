import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from trifold.errors import EvaluationError
from trifold.evaluate import calibration


def two(confidence):
    return np.column_stack([confidence, 1 - np.asarray(confidence)])


def test_a_predictor_that_is_surer_than_right_errs_by_the_difference():
    truth = ["a"] * 70 + ["b"] * 30
    out = calibration(two(np.full(100, 0.9)), ["a", "b"], truth)
    assert out.accuracy == pytest.approx(0.7)
    assert out.calibration_error == pytest.approx(0.2)
    assert out.brier == pytest.approx(0.7 * 2 * 0.1**2 + 0.3 * 2 * 0.9**2)
    assert out.nll == pytest.approx(-0.7 * np.log(0.9) - 0.3 * np.log(0.1))
    assert out.macro_f1 == pytest.approx((2 * 70 / 170 + 0) / 2)
    assert (out.rejected, out.accuracy_kept, out.novel) == (0, pytest.approx(0.7), 0)
    row = out.reliability[out.reliability["cells"] > 0]
    assert row[["confidence", "accuracy", "cells"]].to_numpy().tolist() == [[pytest.approx(0.9), pytest.approx(0.7), 100]]
    assert row["low"].item() < 0.9 <= row["high"].item()
    assert len(out.reliability) == 15


def test_bins_weigh_by_their_cells_and_errors_of_opposite_sign_do_not_cancel_between_them():
    confidence = np.array([0.6] * 10 + [0.95] * 30)
    truth = ["a"] * 9 + ["b"] + ["a"] * 24 + ["b"] * 6  # 0.9 right at 0.6, 0.8 right at 0.95
    out = calibration(two(confidence), ["a", "b"], truth, bins=10)
    assert out.calibration_error == pytest.approx(0.25 * 0.3 + 0.75 * 0.15)
    assert calibration(two(confidence), ["a", "b"], truth, bins=1).calibration_error == pytest.approx(abs(0.825 - (6 + 28.5) / 40))


def test_an_edge_belongs_to_the_bin_below_it_and_certainty_to_the_last():
    cells = calibration(two([0.5, 0.75, 1.0, 0.76]), ["a", "b"], list("aaaa"), bins=4).reliability["cells"]
    assert cells.tolist() == [0, 1, 1, 2]


def test_perfect_probabilities_have_the_small_error_of_finite_bins_and_sharpening_them_shows():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1.0, 1.0, 1.0], size=20_000)
    truth = np.array(list("abc"))[(rng.random((20_000, 1)) > p.cumsum(1)).sum(1)]
    out = calibration(p, list("abc"), truth)
    table = out.reliability.dropna()
    a, n = table["accuracy"], table["cells"]
    expected = np.sqrt(2 / np.pi) * np.sqrt(n * a * (1 - a)).sum() / 20_000
    spread = np.sqrt((1 - 2 / np.pi) * (n * a * (1 - a)).sum()) / 20_000
    assert out.calibration_error == pytest.approx(expected, abs=4 * spread)
    assert out.accuracy == pytest.approx(p.max(1).mean(), abs=4 * np.sqrt(0.25 / 20_000))
    assert out.nll == pytest.approx(log_loss(truth, p))
    sharp = p**3 / (p**3).sum(1, keepdims=True)
    worse = calibration(sharp, list("abc"), truth)
    assert worse.calibration_error > 0.1
    assert worse.brier > out.brier
    assert worse.nll > out.nll
    assert worse.accuracy == out.accuracy


def test_novel_types_are_wrong_and_their_probability_was_zero():
    p = np.array([[0.7, 0.3], [0.4, 0.6], [0.8, 0.2], [1.0, 0.0]])
    out = calibration(p, ["a", "b"], ["a", "b", "new", "newer"])
    assert out.accuracy == 0.5
    assert out.novel == 0.5
    assert out.brier == pytest.approx((2 * 0.3**2 + 2 * 0.4**2 + 1 + 0.8**2 + 0.2**2 + 1 + 1) / 4)
    assert out.nll == pytest.approx(-(np.log(0.7) + np.log(0.6)) / 2)
    assert out.macro_f1 == pytest.approx((2 * 1 / (1 + 3) + 1 + 0 + 0) / 4)
    assert np.isnan(calibration(p[:1], ["a", "b"], ["new"]).nll)


def test_macro_f1_is_that_of_scikit_learn_over_the_values_of_the_truth():
    rng = np.random.default_rng(1)
    names = list("abcde")
    p, truth = rng.dirichlet(np.ones(5), 300), rng.choice(["a", "b", "c", "novel"], 300)  # d and e are answered, never true
    want = f1_score(truth, np.array(names)[p.argmax(1)], labels=["a", "b", "c", "novel"], average="macro", zero_division=0)
    assert calibration(p, names, truth).macro_f1 == pytest.approx(want)


def test_rejection_of_the_unsure_is_paid_in_share_and_earned_in_accuracy():
    p = two([0.9, 0.8, 0.55, 0.51])
    out = calibration(p, ["a", "b"], list("aabb"), rejected=p.max(1) < 0.6)
    assert (out.accuracy, out.rejected, out.accuracy_kept) == (0.5, 0.5, 1.0)
    assert np.isnan(calibration(p, ["a", "b"], list("aabb"), rejected=np.ones(4, dtype=bool)).accuracy_kept)
    assert out.scores()["accuracy_kept"] == 1
    assert "reliability" not in out.scores()


def test_a_probability_of_zero_costs_as_much_as_the_floor():
    out = calibration(np.array([[1.0, 0.0]]), ["a", "b"], ["b"])
    assert out.nll == pytest.approx(12 * np.log(10))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["a"]}, r"found shape \(3, 2\), 1 classes"),
        ({"classes": ["a", "a"]}, "1 different"),
        ({"truth": ["a", "b"]}, "truth needs one row for each of 3 cells"),
        ({"truth": ["a", None, "b"]}, "1 of 3 are missing"),
        ({"probability": np.array([[0.5, 0.5], [2.0, 1.0], [0.1, 0.9]])}, "row 1 with the sum 3. Pass the softmax"),
        ({"probability": np.array([[1.5, -0.5]] * 3)}, "smallest of -0.5"),
        ({"bins": 0}, "Pass bins=15"),
        ({"rejected": [0, 1, 0]}, "rejected must be a boolean mask of 3 cells"),
    ],
)
def test_what_is_no_probability_is_named(change, words):
    with pytest.raises(EvaluationError, match=words):
        calibration(**({"probability": two([0.9, 0.2, 0.5]), "classes": ["a", "b"], "truth": ["a", "b", "a"]} | change))
