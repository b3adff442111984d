"""A schema that takes in new categories: what a model learned keeps its place, and nothing else becomes a category."""

from __future__ import annotations

import json
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from data_cases import sparse_counts, study
from hypothesis import given, settings
from hypothesis import strategies as st

from trifold.data import Cells, Schema
from trifold.errors import SchemaError, TrifoldWarning


def query(**columns: object) -> pd.DataFrame:
    """obs of the study with other columns."""
    return study().obs.astype({"drug": object}).assign(**columns)


def frame(values: list[tuple[str, str]], numbers: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"a": [v[0] for v in values], "dose": numbers, "b": [v[1] for v in values]}, dtype=object).astype({"dose": float})


def schema_of(obs: pd.DataFrame, **roles: object) -> Schema:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrifoldWarning)  # few cells are often confounded
        return Schema.of(np.ones((len(obs), 2)), obs=obs, **roles)


pair = st.tuples(st.sampled_from("pqrstu"), st.sampled_from("vwxyz"))


@settings(max_examples=100, deadline=None)
@given(
    old=st.lists(pair, min_size=1, max_size=12), new=st.lists(pair, min_size=0, max_size=12), more=st.lists(pair, min_size=1, max_size=4)
)
def test_what_was_known_keeps_its_place_and_what_is_new_follows(old, new, more):
    before = frame(old, list(range(len(old))))
    schema = schema_of(before, spurious=["a", "dose", "b"], label="a")
    large = schema
    for extra in (new, more):  # a grown schema grows again
        small, large = large, large.grown(frame(extra, [100.0] * len(extra)))
        assert large.categories("spurious")[: len(small.categories("spurious"))] == small.categories("spurious")
    assert large.roles["label"] == schema.roles["label"]
    assert large.column("dose") == schema.column("dose")
    assert Schema.from_spec(json.loads(json.dumps(large.to_spec()))) == large
    for name, k in (("a", 0), ("b", 1)):
        known = schema.column(name).values
        assert large.column(name).values[: len(known)] == known
        assert set(large.column(name).values) == {v[k] for v in [*old, *new, *more]}
    assert set(large.categories("spurious")) == {*old, *new, *more}
    assert len(large.categories("spurious")) == len({*old, *new, *more})
    at = schema.placed(large, "spurious")
    assert at.dtype == np.int64
    for obs in (before, frame(old[::-1], [7.0] * len(old))):
        (narrow, code), (wide, code_) = schema.covariates(obs, ["spurious"]), large.covariates(obs, ["spurious"])
        assert (code["spurious"] == code_["spurious"]).all()
        placed = np.zeros_like(wide["spurious"])
        placed[:, at] = narrow["spurious"]
        assert (placed == wide["spurious"]).all()
    assert schema.placed(schema, "spurious").tolist() == list(range(schema.width("spurious")))


def test_an_early_column_that_grows_moves_the_later_ones():
    schema = Schema.of(study(), spurious=["donor", "dose", "drug"])
    large = schema.grown(query(donor=np.array(["d0", "d1", "d9", "d2"])[np.arange(40) % 4]))
    assert large.column("donor").values == ("d1", "d2", "d0", "d9")
    assert schema.placed(large, "spurious").tolist() == [0, 1, 4, 5, 6, 7]
    assert large.width("spurious") == 8
    design, _ = large.combinations("spurious")
    assert design.shape == (len(large.categories("spurious")), 8)
    assert (large.covariates(query(donor="d9"))[1]["spurious"] >= len(schema.categories("spurious"))).all()


def test_only_the_roles_that_are_named_grow_and_the_others_still_refuse():
    schema = Schema.of(study(), condition="drug", spurious="donor", invariant="cell_type")
    obs = query(donor="d3", drug="C", cell_type="B")
    large = schema.grown(obs)
    assert large.roles["condition"] == schema.roles["condition"]
    assert large.roles["invariant"] == schema.roles["invariant"]
    assert large.categories("spurious") == (("d1",), ("d2",), ("d3",))
    with pytest.raises(SchemaError, match="'C', which training did not have"):
        large.covariates(obs)
    assert (large.covariates(obs, unknown={"condition": "zero", "invariant": "marginalise"})[1]["spurious"] == 2).all()
    everything = schema.grown(obs, roles=["spurious", "condition", "invariant"])
    assert everything.covariates(obs)[1]["condition"].tolist() == [3] * 40
    assert schema.grown(obs, "condition").categories("condition")[-1] == ("C",)
    assert schema.categories("spurious") == (("d1",), ("d2",))


def test_nothing_new_is_the_same_schema_and_obs_is_not_written_to():
    schema = Schema.of(study(), condition=["drug", "dose"], spurious="donor", label="cell_type")
    obs = study().obs
    before = obs.copy()
    assert schema.grown(obs, roles=("condition", "spurious", "label")) == schema
    pd.testing.assert_frame_equal(obs, before)


def test_a_new_pair_of_known_values_is_a_new_combination():
    a = study()
    a = a[~((a.obs["drug"] == "B") & (a.obs["donor"] == "d1"))].copy()
    schema = Schema.of(a, spurious=["drug", "donor"], empty="keep")
    large = schema.grown(study().obs)
    assert large.roles == schema.roles
    assert large.categories("spurious") == (*schema.categories("spurious"), ("B", "d1"))


def test_a_value_that_was_allowed_but_unused_becomes_known_and_the_order_of_a_categorical_is_kept():
    a = study()
    a.obs["donor"] = pd.Categorical(a.obs["donor"], categories=["d2", "d1", "d0", "dx"])
    schema = Schema.of(a, spurious="donor")
    new = pd.Categorical(np.array(["d5", "d0"])[np.arange(40) % 2], categories=["d7", "d5", "d0", "d1"])
    large = schema.grown(query(donor=new))
    assert large.column("donor").values == ("d2", "d1", "d5", "d0")
    assert large.column("donor").unused == ("dx",)


@pytest.mark.parametrize("role", ["invariant", "label"])
def test_an_unlabelled_value_never_becomes_a_category(role):
    a = study()
    a.obs.loc[a.obs_names[:5], "cell_type"] = "unknown"
    schema = Schema.of(a, **{role: "cell_type"}, unlabelled=["unknown", "?"])
    obs = query(cell_type=np.array(["B", "unknown", "?", "T"])[np.arange(40) % 4])
    large = schema.grown(obs, roles=role)
    assert large.categories(role) == (("NK",), ("T",), ("B",))
    assert large.covariates(obs)[1][role][:4].tolist() == [2, -1, -1, 1]
    assert large.unlabelled == schema.unlabelled
    assert schema.grown(query(cell_type="?"), roles=role) == schema
    with pytest.warns(TrifoldWarning, match="'Unknown'.*counts as a category: unlabelled has 'unknown'") as caught:
        schema.grown(query(cell_type="Unknown"), roles=role)
    assert [w.filename for w in caught if w.category is TrifoldWarning] == [__file__]


@pytest.mark.parametrize(
    ("obs", "roles", "word"),
    [
        (query().drop(columns="donor"), ["spurious"], r"no column 'donor' \(spurious\)"),
        (query(donor=np.nan), ["spurious"], r"40 of 40 are missing \(NaN\)"),
        (query(donor=[None] + ["d1"] * 39), ["spurious"], r"1 of 40 are missing \(NaN\) \(rows 0\)"),
        (query(), ["invariant"], "it has no 'invariant'. It has: condition, spurious"),
        (query(), ["spurios"], "mean 'spurious'"),
        (query(day=[1] * 40), ["condition"], r"holds 1 of type int; the known '1' is of type str"),
    ],
)
def test_what_cannot_grow_is_refused_by_name(obs, roles, word):
    a = study()
    a.obs["day"] = np.array(["1", "2"])[np.arange(40) // 20]
    with pytest.raises(SchemaError, match=word):
        Schema.of(a, condition="day", spurious="donor").grown(obs if "day" in obs else obs.assign(day="1"), roles)


def test_placed_refuses_a_schema_that_did_not_grow_out_of_this_one():
    schema = Schema.of(study(), spurious=["donor", "dose"])
    large = schema.grown(query(donor="d3"))
    other = Schema.of(study(), spurious=["drug", "dose"])
    moved = study()
    moved.obs["dose"] += 1
    for bad in (other, Schema.of(study(), condition="drug"), Schema.of(moved, spurious=["donor", "dose"])):
        with pytest.raises(SchemaError, match=r"grew out of this one.*'spurious'.*schema\.grown"):
            schema.placed(bad, "spurious")
    with pytest.raises(SchemaError, match="grew out"):
        large.placed(schema, "spurious")
    assert schema.placed(other, "invariant").tolist() == []


def test_cells_of_a_grown_schema_make_batches_that_agree_with_those_of_the_old_one():
    schema = Schema.of(study(), condition="drug", spurious=["donor", "cell_type"])
    new = anndata.AnnData(sparse_counts(8, 12, seed=5), obs=query(donor="d3").iloc[:8], var=study().var)
    large = schema.grown(new.obs)
    old, same = Cells(study(), schema).batch(range(40)), Cells(study(), large).batch(range(40))
    assert old.code["spurious"].equal(same.code["spurious"])
    assert old.design["spurious"].equal(same.design["spurious"][:, schema.placed(large, "spurious")])
    assert old.design["condition"].equal(same.design["condition"])
    assert Cells(new, large).counts("spurious")[: len(schema.categories("spurious"))].sum() == 0
    assert Cells(new, large).counts("spurious").sum() == 8
