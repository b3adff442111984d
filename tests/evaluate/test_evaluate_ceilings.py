import numpy as np
import pytest

import trifold.evaluate.ceilings as module
from trifold.errors import EvaluationError
from trifold.evaluate import ceiling, halves, score


@pytest.mark.parametrize("n", [4, 5, 30])
def test_halves_never_share_a_cell_and_leave_none_out(n):
    for a, b in halves(n, splits=20, seed=1):
        assert not set(a) & set(b)
        assert sorted([*a, *b]) == list(range(n))
        assert abs(len(a) - len(b)) <= 1


def test_halves_follow_their_seed_and_not_the_global_generator():
    def first(seed):
        return next(halves(20, seed=seed))[0].tolist()

    assert first(1) == first(1) != first(2)


def test_ceiling_scores_each_half_against_the_other_only(monkeypatch):
    real = np.random.default_rng(0).normal(size=(11, 4))
    seen = []
    monkeypatch.setattr(module, "score", lambda p, r, c, **_: seen.append((p, r)) or {"m": 1.0})
    table = ceiling(real, real[:3] + 1, splits=7)
    assert len(table) == len(seen) == 7
    for p, r in seen:
        assert not {tuple(v) for v in p} & {tuple(v) for v in r}
        assert len(p) + len(r) == 11


def test_ceiling_of_an_unbiased_distance_is_zero_on_average():
    rng = np.random.default_rng(0)
    values = [ceiling(rng.normal(size=(12, 3)), rng.normal(size=(5, 3)), splits=2, seed=s, de=())["e_distance"].mean() for s in range(150)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(150)


def test_ceiling_has_the_metrics_of_score():
    rng = np.random.default_rng(0)
    real, control = rng.normal(size=(20, 10)), rng.normal(size=(9, 10))
    kept = {"top": {3: [0, 1, 2]}, "centroid": np.ones(10), "de": (4,)}
    assert list(ceiling(real, control, splits=2, **kept)) == list(score(real, real, control, **kept))


def test_ceiling_of_three_cells_is_refused():
    with pytest.raises(EvaluationError, match="four real cells"):
        ceiling(np.ones((3, 2)), np.ones((3, 2)))
