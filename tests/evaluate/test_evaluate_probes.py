import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from trifold.errors import EvaluationError
from trifold.evaluate import leakage, probes


def score(table, probe, name="accuracy"):
    return float(table.set_index("probe").loc[probe, name])


def error(p, n):
    return np.sqrt(p * (1 - p) / n)


def test_two_gaussians_are_told_apart_as_well_as_bayes_can_whatever_their_shares():
    rng = np.random.default_rng(0)
    n, rare, mu = 3000, 0.1, 0.8
    y = np.arange(n) < rare * n
    z = np.column_stack([np.where(y, mu, -mu) + rng.normal(size=n), 5 + rng.normal(size=n)])
    table = probes({"z": z}, pd.DataFrame({"batch": y}), ["batch"])
    cut = np.log((1 - rare) / rare) / (2 * mu)
    bayes, balanced = (1 - rare) * norm.cdf(cut + mu) + rare * norm.cdf(mu - cut), norm.cdf(mu)
    assert score(table, "linear") == pytest.approx(bayes, abs=4 * error(bayes, n))
    assert score(table, "linear", "balanced_accuracy") == pytest.approx(balanced, abs=4 * error(balanced, n * rare) / 2 + 0.01)
    for probe in ("nearest", "network"):
        assert balanced - 0.12 < score(table, probe, "balanced_accuracy") < balanced + 4 * error(balanced, n * rare)
    assert set(table["chance"]) == {1 - rare}
    assert set(table["balanced_chance"]) == {0.5}
    assert set(table["cells"]) == {n}
    assert set(table["measure"]) == {"accuracy"}


def test_what_only_a_bent_boundary_shows_is_found_by_the_bent_probes():
    z = np.random.default_rng(1).normal(size=(1500, 2))
    table = probes({"z": z}, pd.DataFrame({"batch": np.where(z[:, 0] * z[:, 1] > 0, "a", "b")}), ["batch"])
    assert score(table, "linear") < 0.6
    assert score(table, "nearest") > 0.9
    assert score(table, "network") > 0.9
    assert leakage(table).loc[("z", "batch"), "leakage"] == pytest.approx(table["accuracy"].max() - table["chance"].iloc[0])


def test_nothing_is_read_from_noise():
    rng = np.random.default_rng(2)
    obs = pd.DataFrame({"batch": rng.choice(list("abc"), 1500, p=[0.5, 0.3, 0.2])})
    table = probes({"z": rng.normal(size=(1500, 4))}, obs, ["batch"])
    assert (table["accuracy"] < table["chance"] + 4 * error(0.5, 1500)).all()
    assert (table["balanced_accuracy"] - 1 / 3).abs().max() < 4 * error(1 / 3, 300)  # of the smallest category at worst
    assert score(table, "linear") == pytest.approx(table["chance"].iloc[0], abs=4 * error(0.5, 1500))


def test_composition_gives_away_what_its_closed_form_says_and_that_is_no_leak():
    n = 4000
    a = np.arange(n) < n // 2
    x = np.where(a, np.arange(n) % 10 < 9, np.arange(n) % 10 < 6)  # p(x | a) = 0.9, p(x | b) = 0.6
    obs = pd.DataFrame({"batch": np.where(x, "x", "y"), "type": np.where(a, "a", "b")})
    z = np.where(a, 3.0, -3.0)[:, None] + 0.1 * np.random.default_rng(3).normal(size=(n, 1))
    table = probes({"z": z}, obs, ["batch"], within="type")
    assert set(table["chance"]) == {0.75}
    assert table["chance_within"].to_numpy() == pytest.approx(0.75)  # x is the more frequent in both types
    assert table["balanced_chance_within"].to_numpy() == pytest.approx((0.45 / 0.75 + 0.2 / 0.25) / 2)  # a says x, b says y
    assert score(table, "linear", "balanced_accuracy") == pytest.approx(0.7, abs=1e-9)
    found = leakage(table[table["probe"] == "linear"]).loc[("z", "batch")]
    assert found["balanced_leakage"] == pytest.approx(0.2)
    assert found["balanced_leakage_within"] == pytest.approx(0, abs=1e-9)


def test_cells_under_test_are_never_learned_from():
    rng = np.random.default_rng(4)
    y = np.arange(400) % 2
    test = np.arange(400) >= 200
    z = (np.where(test, -1, 1) * (2 * y - 1) * 3)[:, None] + rng.normal(size=(400, 1))  # the test cells lie the other way round
    obs = pd.DataFrame({"batch": y.astype(str)})
    for masks in ({"test": test}, {"train": ~test}, {"train": ~test, "test": test}):
        table = probes({"z": z}, obs, ["batch"], **masks)
        assert (table["accuracy"] < 0.05).all()
        assert set(table["cells"]) == {200}
    memory = np.eye(400)  # each cell has a coordinate of its own: only a probe that saw it could tell
    assert (probes({"z": memory}, obs, ["batch"])["accuracy"] < 0.5 + 4 * error(0.5, 400)).all()


def test_numbers_are_predicted_with_the_r2_that_their_noise_allows():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(3000, 2))
    group = np.arange(3000) % 2
    obs = pd.DataFrame({"y": z @ [2.0, 1.0] + rng.normal(size=3000), "depth": 3.0 * group + rng.normal(size=3000), "g": group.astype(str)})
    table = probes({"z": z}, obs, ["y", "depth"], within="g").set_index(["column", "probe"])
    assert table.loc[("y", "linear"), "accuracy"] == pytest.approx(5 / 6, abs=4 * 2 * (1 / 6) * np.sqrt(1 / 3000) + 0.005)
    assert 0.7 < table.loc[("y", "nearest"), "accuracy"] < 5 / 6 + 0.02
    assert table.loc[("depth", "linear"), "accuracy"] == pytest.approx(0, abs=0.01)
    assert table.loc[("depth", "linear"), "chance_within"] == pytest.approx(2.25 / 3.25, abs=0.03)
    assert set(table["measure"]) == {"r2"}
    assert (table["chance"] == 0).all()
    assert table["balanced_accuracy"].isna().all()


def test_missing_values_are_left_out_and_categories_smaller_than_the_folds_are_wrong_but_no_fault():
    obs = pd.DataFrame({"batch": pd.Categorical(["a"] * 50 + ["b"] * 47 + ["c"] + [None] * 2)})
    z = np.concatenate([np.zeros(50), np.ones(47) * 10, [20], [5, 5]])[:, None] + np.zeros((100, 2))
    table = probes({"z": z}, obs, ["batch"])
    assert set(table["cells"]) == {98}
    assert score(table, "linear") == pytest.approx(97 / 98)
    assert score(table, "linear", "balanced_accuracy") == pytest.approx(2 / 3)
    assert set(table["balanced_chance"]) == {1 / 3}


def test_the_draw_of_cells_and_all_scores_are_repeated_by_seed_and_nothing_global_is_drawn(monkeypatch):
    monkeypatch.setitem(probes.__globals__, "CELLS", 100)
    rng = np.random.default_rng(6)
    z, obs = rng.normal(size=(300, 3)), pd.DataFrame({"batch": rng.choice(list("ab"), 300)})
    state = np.random.get_state()[1].copy()
    one, two, other = (probes({"z": z}, obs, ["batch"], seed=s) for s in (0, 0, 1))
    assert (np.random.get_state()[1] == state).all()
    assert set(one["cells"]) == {100}
    pd.testing.assert_frame_equal(one, two)
    assert (one["accuracy"] != other["accuracy"]).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": ["btach"]}, "Did you mean 'batch'"),
        ({"columns": "batch"}, r"Pass columns=\['batch'\]"),
        ({"columns": []}, r"found 1 and columns=\[\]. Pass latents="),
        ({"latents": {}}, "found 0 and columns="),
        ({"within": "kind"}, "no column 'kind'"),
        ({"columns": ["same"]}, "'same' has 1 in these cells"),
        ({"folds": 1}, "folds must lie in 2 to the 40"),
        ({"latents": {"mine": np.ones((9, 2))}}, "mine needs one row for each of 40 cells"),
        ({"test": np.ones(40, dtype=bool)}, "found 0 and 40"),
        ({"train": np.ones(40, dtype=bool), "test": np.ones(40, dtype=bool)}, "40 in both. Pass test=~train"),
        ({"train": np.arange(40)}, "train must be a boolean mask of 40 cells"),
        ({"train": np.arange(40) % 2 == 0}, "Training cells need two values of 'batch'"),
    ],
)
def test_what_cannot_be_probed_is_named(change, words):
    obs = pd.DataFrame({"batch": np.array(["a", "b"] * 20), "same": "x"})
    with pytest.raises(EvaluationError, match=words):
        probes(**({"latents": {"z": np.random.default_rng(0).normal(size=(40, 2))}, "obs": obs, "columns": ["batch"]} | change))


def test_leakage_asks_for_the_table_of_probes():
    with pytest.raises(EvaluationError, match="found no column latent, column"):
        leakage(pd.DataFrame({"probe": ["linear"]}))
