"""Schemas, covariates and minibatches against what can be worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from data_cases import sparse_counts, study
from hypothesis import given, settings
from hypothesis import strategies as st

from trifold.data import Cells, Schema, check, encode, open
from trifold.errors import DataError, SchemaError, TrifoldWarning


@pytest.fixture
def schema():
    return Schema.of(study(), condition=["drug", "dose"], spurious="donor", label="cell_type")


def same(a, b):
    assert a.rows.sparse == b.rows.sparse
    pairs = zip(a.rows.csr(), b.rows.csr(), strict=True) if a.rows.sparse else [(a.rows.dense, b.rows.dense)]
    for u, v in [*pairs, (a.size, b.size), *((a.design[r], b.design[r]) for r in a.design), *((a.code[r], b.code[r]) for r in a.code)]:
        assert u.dtype == v.dtype
        assert u.equal(v)
    assert set(a.design) == set(b.design)
    assert set(a.code) == set(b.code)


def test_the_design_is_one_hot_categories_beside_standardised_numbers(schema):
    obs = study().obs
    design, code = schema.covariates(obs)
    dose = (obs["dose"] - obs["dose"].mean()) / obs["dose"].std(ddof=0)
    want = np.column_stack([(obs["drug"] == v) for v in ("none", "A", "B")] + [dose]).astype(np.float32)
    np.testing.assert_allclose(design["condition"], want, atol=1e-6)
    assert design["condition"].dtype == np.float32
    assert code["condition"].tolist() == [k % 3 for k in range(40)]
    assert schema.width("condition") == 4
    assert schema.width("invariant") == 0
    assert "invariant" not in design
    assert schema.categories("spurious") == (("d1",), ("d2",))
    assert code["spurious"].dtype == np.int64


def test_joint_codes_count_through_the_combinations_that_occurred():
    a = study()
    a = a[~((a.obs["drug"] == "B") & (a.obs["donor"] == "d1"))].copy()
    schema = Schema.of(a, condition=["drug", "donor"], empty="keep")
    assert schema.categories("condition") == (("none", "d1"), ("none", "d2"), ("A", "d1"), ("A", "d2"), ("B", "d2"))
    _, code = schema.covariates(a.obs)
    assert [schema.categories("condition")[c] for c in code["condition"]] == list(zip(a.obs["drug"], a.obs["donor"], strict=True))
    never = schema.under(a.obs, {"drug": "B", "donor": "d1"})
    design, code = schema.covariates(never)
    assert (code["condition"] == -1).all()
    assert (design["condition"] == [0, 0, 1, 1, 0]).all()
    assert not schema.seen(never)["condition"].any()
    assert schema.seen(a.obs)["condition"].all()


def test_a_role_of_numbers_has_one_combination():
    schema = Schema.of(study(), condition="dose")
    assert schema.categories("condition") == ((),)
    assert (schema.covariates(study().obs)[1]["condition"] == 0).all()


def test_under_changes_a_copy_and_refuses_what_is_not_known(schema):
    obs = study().obs
    before = obs.copy()
    there = schema.under(obs, {"drug": "A", "dose": 2})
    assert (there["drug"] == "A").all()
    assert (there["dose"] == 2).all()
    pd.testing.assert_frame_equal(obs, before)
    with pytest.raises(SchemaError, match=r"'AA'.*Known: 'none', 'A', 'B'"):
        schema.under(obs, {"drug": "AA"})
    with pytest.raises(SchemaError, match=r"no column|has a column 'drg'"):
        schema.under(obs, {"drg": "A"})
    with pytest.raises(SchemaError, match="Pass a number"):
        schema.under(obs, {"dose": "much"})


def test_a_label_may_be_absent_when_the_model_is_used_but_other_roles_may_not(schema):
    obs = study().obs.drop(columns="cell_type")
    design, code = schema.covariates(obs)
    assert (code["label"] == -1).all()
    assert design["label"].shape == (40, 2)
    with pytest.raises(SchemaError, match=r"no column 'drug' \(condition\)"):
        schema.covariates(obs.drop(columns="drug"))
    assert set(schema.covariates(obs.drop(columns="drug"), ["spurious"])[0]) == {"spurious"}


def test_zero_policy_gives_zeros_for_unknown_categories_and_missing_numbers(schema):
    obs = study().obs.astype({"drug": object})
    obs.loc["c0", "drug"], obs.loc["c1", "dose"], obs.loc["c2", "drug"] = "C", np.nan, np.nan
    design, code = schema.covariates(obs, unknown="zero")
    assert design["condition"][0, :3].tolist() == [0, 0, 0]
    assert design["condition"][1, 3] == 0
    assert code["condition"][:4].tolist() == [-1, -1, -1, 0]


def test_a_schema_is_its_json(schema):
    again = Schema.from_spec(json.loads(json.dumps(schema.to_spec())))
    assert again == schema
    assert again.to_spec() == schema.to_spec()
    same(Cells(study(), again).batch([3, 1]), Cells(study(), schema).batch([3, 1]))


@settings(max_examples=30, deadline=None)
@given(index=st.lists(st.integers(0, 39), min_size=1, max_size=60), density=st.sampled_from([0.1, 0.9]))
def test_a_batch_is_the_rows_asked_for_and_equals_encode(index, density):
    a = study(density=density)
    schema = Schema.of(a, condition=["drug", "dose"], label="cell_type")
    batch = Cells(a, schema).batch(index)
    assert batch.rows.sparse == (density < 1 / 3)
    assert (batch.rows.to_dense().numpy() == a.X.toarray()[index]).all()
    assert (batch.size.numpy()[:, 0] == a.X.toarray()[index].sum(1)).all()
    same(batch, encode(schema, a.X[index], a.obs.iloc[index]))
    same(batch, encode(schema, a.X[index].toarray(), a.obs.iloc[index]))


def test_a_batch_has_the_types_that_rows_ask_for(schema):
    batch = Cells(study(), schema).batch([0, 5])
    crow, col, val = batch.rows.csr()
    assert (crow.dtype, col.dtype, val.dtype) == (torch.int64, torch.int64, torch.float32)
    assert batch.size.shape == (2, 1)
    assert batch.size.dtype == torch.float32
    assert batch.code["condition"].dtype == torch.int64
    assert batch.design["condition"].dtype == torch.float32


def test_writing_to_a_batch_does_not_change_the_data():
    for form in (sp.csr_matrix, np.asarray):
        x = form(sparse_counts().toarray())
        before = (x.data if sp.issparse(x) else x).copy()
        for density in (0.1, 0.9):
            schema = Schema.of(x)
            object.__setattr__(schema, "density", density)
            batch = Cells(x, schema).batch(np.arange(40))
            (batch.rows.val if batch.rows.sparse else batch.rows.dense).fill_(7)
            assert ((x.data if sp.issparse(x) else x) == before).all()


def test_a_subset_gives_the_same_batches_as_the_whole(schema):
    cells = Cells(study(), schema)
    part = cells.subset([30, 4, 17])
    assert part.n == 3
    assert part.names.tolist() == ["c30", "c4", "c17"]
    same(part.batch([2, 0]), cells.batch([17, 30]))
    same(part.subset([1]).batch([0]), cells.batch([4]))
    with pytest.raises(DataError, match="0 to 2; found 3"):
        part.batch([3])
    assert cells.n == 40


def test_real_and_binary_data_have_sizes_of_one():
    x = np.random.default_rng(0).normal(size=(10, 4))
    assert (Cells(x, Schema.of(x)).size == 1).all()
    assert Schema.of(x > 0).kind == "binary"
    assert (Cells(x > 0, Schema.of(x > 0)).size == 1).all()


def test_library_sizes_may_come_from_a_column():
    a = study()
    a.obs["depth"] = np.arange(1, 41) * 1000
    schema = Schema.of(a, size="depth")
    assert Cells(a, schema).batch([3]).size.tolist() == [[4000.0]]
    assert encode(schema, a.X[[3]], a.obs.iloc[[3]]).size.tolist() == [[4000.0]]
    a.obs["depth"] = np.arange(40)
    with pytest.raises(SchemaError, match=r"obs\['depth'\] \(size\).*1 cells do not \(first: row 0, 0\)"):
        Schema.of(a, size="depth")


def test_findings_of_the_same_data_save_a_second_look(schema, monkeypatch):
    source = open(study())
    found = check(source)
    monkeypatch.setattr("trifold.data.cells.check", None)
    same(Cells(source, schema, checked=found).batch([1]), encode(schema, study().X[[1]], study().obs.iloc[[1]]))
    with pytest.raises(DataError, match="checked= describes"):
        Cells(study(20), schema, checked=found)


def test_counts_that_change_after_the_schema_are_looked_at_again(schema):
    a = study()
    a.X.data[3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        Cells(a, schema)


def test_encode_refuses_rows_of_another_shape(schema):
    with pytest.raises(DataError, match=r"\(40, 12\)"):
        encode(schema, np.zeros((40, 11)), study().obs)


def test_all_cells_without_counts_cannot_be_dropped():
    x = np.zeros((5, 3))
    schema = Schema.of(np.ones((5, 3)), empty="drop")
    with pytest.raises(DataError, match=r"none of its 5 cells has any\. Pass x="), pytest.warns(TrifoldWarning):
        Cells(x, schema)
