"""Values that mean "not known", and policies for what is: no category, code -1, zeros, and a word where they look mistyped."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from data_cases import study

from trifold.data import UNKNOWN, Cells, Schema, by_fraction, encode, held_out
from trifold.errors import FormatError, SchemaError, TrifoldWarning

BLANK = np.arange(40) % 4 == 1  # cells that are not labelled


def partly(value: object = "unknown", *, dtype: str | None = None, column: str = "cell_type"):
    """The study with the column not known in a quarter of the cells."""
    a = study()
    values = a.obs[column].astype(object)
    values[BLANK] = value
    a.obs[column] = values.astype(dtype) if dtype else values
    return a


def reload(schema: Schema) -> Schema:
    return Schema.from_spec(json.loads(json.dumps(schema.to_spec())))


@pytest.mark.parametrize("dtype", [None, "category", "string"])
@pytest.mark.parametrize("given", ["unknown", ["unknown"], ("unknown", "not assigned"), {"unknown"}, np.array(["unknown", "unknown"])])
@pytest.mark.parametrize("role", ["invariant", "label"])
def test_an_unlabelled_value_is_no_category_and_its_cells_are_zeros_under_every_policy(role, given, dtype):
    a = partly(dtype=dtype)
    schema = Schema.of(a, **{role: "cell_type"}, spurious="donor", unlabelled=given)
    assert schema.unlabelled == tuple(dict.fromkeys(given if not isinstance(given, str) else [given]))
    assert schema.categories(role) == (("NK",), ("T",))
    assert schema.column("cell_type").unused == ()
    truth = study().obs["cell_type"].map({"NK": 0, "T": 1}).to_numpy()
    for policy in UNKNOWN:
        for s in (schema, reload(schema)):
            design, code = s.covariates(a.obs, unknown=policy)
            assert (code[role] == np.where(BLANK, -1, truth)).all()
            assert (design[role] == np.eye(2)[truth] * ~BLANK[:, None]).all()
            assert (s.seen(a.obs)[role] == ~BLANK).all()
        cells = Cells(a, schema, unknown=policy)
        assert (cells.code[role] == code[role]).all()
        assert cells.batch([1, 2]).design[role].tolist() == design[role][[1, 2]].tolist()
        assert encode(schema, a.X[[1]], a.obs.iloc[[1]], unknown=policy).code[role].tolist() == [-1]


def test_a_joint_category_is_unknown_where_any_of_its_columns_is():
    a = partly()
    tissue = np.array(["gut", "lung"])[np.arange(40) // 20].astype(object)
    tissue[2] = "?"
    a.obs["tissue"], a.obs["age"] = tissue, np.arange(40.0)
    schema = Schema.of(a, invariant=["cell_type", "age", "tissue"], unlabelled=["unknown", "?"])
    assert schema.categories("invariant") == (("NK", "gut"), ("NK", "lung"), ("T", "gut"), ("T", "lung"))
    design, code = schema.covariates(a.obs)
    assert (code["invariant"] == -1).tolist() == [bool(b) or k == 2 for k, b in enumerate(BLANK)]
    assert design["invariant"][1, [0, 1, 3, 4]].tolist() == [0, 0, 1, 0]
    assert design["invariant"][2, [0, 1, 3, 4]].tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(design["invariant"][:, 2], (np.arange(40) - 19.5) / np.arange(40).std(), atol=1e-6)
    assert Cells(a, schema).counts("invariant").tolist() == [int((code["invariant"] == k).sum()) for k in range(4)]


def test_an_unlabelled_number_is_the_mean_of_those_that_are_known():
    a = study()
    a.obs["age"] = np.where(BLANK, -1.0, np.arange(40))
    schema = Schema.of(a, invariant=["age", "cell_type"], unlabelled=-1)
    known = np.arange(40)[~BLANK]
    assert schema.column("age").mean == known.mean()
    assert schema.column("age").scale == known.std()
    design, code = schema.covariates(a.obs)
    assert (design["invariant"][BLANK, 0] == 0).all()
    assert ((code["invariant"] == -1) == BLANK).all()
    assert (design["invariant"][BLANK, 1:].sum(1) == 1).all()


def test_only_invariant_and_label_have_unlabelled_values():
    a = partly(column="donor")
    a.obs.loc[BLANK, "cell_type"] = "unknown"
    schema = Schema.of(a, spurious="donor", label="cell_type", unlabelled="unknown")
    assert schema.categories("spurious") == (("d1",), ("d2",), ("unknown",))
    assert (schema.covariates(a.obs)[1]["spurious"] == 2).tolist() == BLANK.tolist()
    both = Schema.of(partly(), condition="cell_type", label="cell_type", unlabelled="unknown")
    assert (both.width("condition"), both.width("label")) == (3, 2)
    assert (both.under(partly().obs, {"cell_type": "unknown"})["cell_type"] == "unknown").all()


def test_unlabelled_values_may_come_with_later_cells_only():
    with pytest.warns(TrifoldWarning, match=r"unlabelled='unknown' occurs in no column of invariant and label \(cell_type\)\. They hold"):
        schema = Schema.of(study(), label="cell_type", unlabelled="unknown")
    assert (Cells(partly(), schema).code["label"][BLANK] == -1).all()
    with pytest.raises(SchemaError, match=r"'Unknown'.*mean 'unknown'\? Known: 'NK', 'T'; not known: 'unknown'\. Use one of these"):
        Cells(partly("Unknown"), schema)


@pytest.mark.parametrize(
    ("given", "held", "word"),
    [
        ("unknown", "Unknown", "holds 'Unknown' .* unlabelled has 'unknown'.*Did you mean 'Unknown'"),
        ("unknown", " unknown ", "holds ' unknown '"),
        (["unassigned", "unknown"], "UNKNOWN", r"Pass unlabelled=\['unassigned', 'unknown', 'UNKNOWN'\]"),
        (-1, "-1", r"holds '-1' \(str\).*has -1 \(int\)"),
        (1.0, 1, r"holds 1 \(int\).*has 1.0 \(float\)"),
        ("unknwn", "unknown", "occurs in no column.*mean 'unknown'"),
    ],
)
def test_a_value_that_looks_unlabelled_is_warned_of_and_counts_as_a_category(given, held, word):
    a = partly(held)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schema = Schema.of(a, label="cell_type", unlabelled=given)
    assert any(issubclass(w.category, TrifoldWarning) and re.search(word, str(w.message)) for w in caught)
    assert all(w.filename == __file__ for w in caught)
    assert schema.width("label") == 3


def test_a_list_of_usual_words_is_not_warned_of_if_one_occurs():
    Schema.of(partly(), label="cell_type", unlabelled=["unknown", "NA", "unassigned", -1])
    a = partly()
    a.obs["cell_type"] = pd.Categorical(study().obs["cell_type"], categories=["NK", "T", "unknown"])
    assert Schema.of(a, label="cell_type", unlabelled="unknown").column("cell_type").unused == ()


def test_a_column_or_role_in_which_nothing_is_known_is_refused_by_name():
    a = study()
    a.obs["cell_type"] = "unknown"
    with pytest.raises(SchemaError, match=r"obs\['cell_type'\] \(invariant\) must have a known value.*all 40 .*'unknown'"):
        Schema.of(a, invariant="cell_type", unlabelled="unknown")
    a.obs["age"] = -1.0
    with pytest.raises(SchemaError, match=r"obs\['age'\] \(invariant\).*all 40"):
        Schema.of(a, invariant="age", unlabelled=-1)
    a.obs["one"] = np.where(BLANK, "unknown", "x")
    a.obs["two"] = np.where(BLANK, "y", "unknown")
    with pytest.raises(SchemaError, match="invariant needs a cell in which all of its columns are known; found none in 'one', 'two'"):
        Schema.of(a, invariant=["one", "two"], unlabelled="unknown")


@pytest.mark.parametrize("bad", [np.nan, None, pd.NA, b"x", {"a": 1}, np.inf])
def test_what_no_category_can_be_is_no_unlabelled_value(bad):
    if bad is None:
        assert Schema.of(study(), label="cell_type", unlabelled=bad).unlabelled == ()
        bad = [None]
    with pytest.raises(SchemaError, match="unlabelled must be text"):
        Schema.of(study(), label="cell_type", unlabelled=bad)


def test_unlabelled_values_without_a_role_for_them_are_refused():
    with pytest.raises(SchemaError, match=r"for the columns of invariant and label; neither is asked for\. Asked for: condition: drug"):
        Schema.of(study(), condition="drug", unlabelled="unknown")


@pytest.mark.parametrize("role", ["invariant", "label", "spurious"])
def test_a_missing_value_says_what_to_type_and_that_works(role):
    a = partly(np.nan)
    with pytest.raises(SchemaError, match=r"10 of 40 are missing \(NaN\).*Fill them in") as caught:
        Schema.of(a, **{role: "cell_type"})
    if role == "spurious":
        assert "unlabelled" not in str(caught.value)
        return
    assert "adata.obs['cell_type'] = adata.obs['cell_type'].astype(object).fillna('unknown'), and pass unlabelled='unknown'" in str(
        caught.value
    )
    b = a.copy()
    b.obs["cell_type"] = b.obs["cell_type"].astype(object).fillna("unknown")
    schema = Schema.of(b, **{role: "cell_type"}, unlabelled="unknown")
    with pytest.raises(SchemaError, match=r"fillna\('unknown'\), which the schema takes as not known"):
        Cells(a, schema)
    for policy in ("zero", "marginalise"):
        assert (Cells(a, schema, unknown=policy).code[role] == Cells(b, schema).code[role]).all()


def test_nothing_is_moved_to_an_unlabelled_value():
    schema = Schema.of(partly(), invariant="cell_type", label="donor", unlabelled=["unknown", "?"])
    with pytest.raises(SchemaError, match=r"'cell_type' \(invariant\) needs a known value to move to; '\?' means .* Known: 'NK', 'T'"):
        schema.under(partly().obs, {"cell_type": "?"})
    there = schema.under(partly().obs, {"cell_type": "T"})
    assert (schema.covariates(there)[1]["invariant"] == 1).all()


def test_splits_keep_a_share_of_unlabelled_cells_and_select_them_by_name():
    cells = Cells(partly(), Schema.of(partly(), label="cell_type", unlabelled="unknown"))
    _, validation = by_fraction(cells.code["label"], 0.2)
    assert (cells.code["label"][validation] == -1).sum() == 2
    assert (held_out(cells.obs, {"cell_type": "unknown"}) == BLANK).all()
    part = cells.subset(np.flatnonzero(BLANK))
    assert part.counts("label").tolist() == [0, 0]
    assert part.unknown == cells.unknown


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda s: s.update(unlabelled="unknown"), "unlabelled"),
        (lambda s: s.update(unlabelled=[None]), "unlabelled"),
        (lambda s: s.update(unlabelled=["NK"]), "'NK' is one of label"),
        (lambda s: s.update(confounded=["label"]), "confounded"),
        (lambda s: s.update(confounded=[["condition", "label"]]), "confounded must pair roles"),
        (lambda s: s.update(unlabeled=[]), "'unlabeled'.*mean 'unlabelled'"),
    ],
)
def test_a_damaged_saved_schema_is_refused_by_key(damage, word):
    spec = Schema.of(partly(), label="cell_type", unlabelled="unknown").to_spec()
    damage(spec)
    with pytest.raises(FormatError, match=word):
        Schema.from_spec(spec)


@pytest.mark.parametrize("left", [{}, {"unlabelled": None, "confounded": None}])
def test_a_schema_saved_before_there_were_unlabelled_values_still_loads(left):
    schema = Schema.of(study(), condition="drug", label="cell_type")
    old = {k: v for k, v in schema.to_spec().items() if k not in ("unlabelled", "confounded")}
    assert Schema.from_spec({**json.loads(json.dumps(old)), **left}) == schema


@pytest.mark.parametrize("values", [["unknown"], [-1, "x"], [True], [0.5, "", "ünï"]])
def test_unlabelled_values_keep_their_type_on_reload(values):
    a = partly(values[0])
    schema = Schema.of(a, label="cell_type", unlabelled=values)
    again = reload(schema)
    assert again == schema
    assert list(map(type, again.unlabelled)) == list(map(type, values))
    assert (again.covariates(a.obs)[1]["label"] == schema.covariates(a.obs)[1]["label"]).all()


# -- policies --------------------------------------------------------------------------------------------------------------------------


def test_marginalise_is_zero_and_is_remembered_by_role():
    a = study()
    schema = Schema.of(a, condition=["drug", "dose"], spurious="donor", label="cell_type")
    a.obs["donor"] = np.where(BLANK, "d9", a.obs["donor"])
    zero = Cells(a, schema, unknown={"spurious": "zero"})
    mean = Cells(a, schema, unknown={"spurious": "marginalise"})
    assert mean.unknown == {"condition": "error", "spurious": "marginalise", "label": "error"}
    assert zero.unknown["spurious"] == "zero"
    for role in schema.roles:
        assert (mean.code[role] == zero.code[role]).all()
        assert (mean.design[role] == zero.design[role]).all()
    assert ((mean.code["spurious"] == -1) == BLANK).all()
    assert mean.subset([1, 2]).unknown == mean.unknown
    with pytest.raises(
        SchemaError, match=r"unknown must be one of 'error', 'zero', 'marginalise'; found 'marginalize'.*mean 'marginalise'"
    ):
        Cells(a, schema, unknown="marginalize")
    with pytest.raises(SchemaError, match=r"pass unknown=\{'spurious': 'zero'\}, or 'marginalise' to average over the known ones"):
        Cells(a, schema)


@pytest.mark.parametrize("policy", ["zero", "marginalise"])
@pytest.mark.parametrize("role", ["condition", "invariant", "spurious"])
def test_an_absent_column_is_unknown_for_all_cells_if_the_policy_says_so(role, policy):
    schema = Schema.of(study(), **{role: ["drug", "dose"]}, label="cell_type")
    obs = study().obs
    for gone in (["drug"], ["dose"], ["drug", "dose"]):
        less = study()
        less.obs = obs.drop(columns=gone)
        with pytest.raises(SchemaError, match=rf"no column '{gone[0]}' \({role}\).*unknown=\{{'{role}': 'marginalise'\}} or 'zero'"):
            Cells(less, schema)
        with pytest.warns(TrifoldWarning, match="taken as unknown for all 40 cells") as caught:
            cells = Cells(less, schema, unknown={role: policy})
        assert [str(w.message) for w in caught] == list(cells.notices)
        assert len(caught) == len(gone)
        assert (cells.code[role] == -1).all()
        full = schema.covariates(obs)[0][role]
        want = np.concatenate([full[:, :3] * ("drug" not in gone), full[:, 3:] * ("dose" not in gone)], 1)
        assert (cells.design[role] == want).all()
        with pytest.raises(SchemaError, match="no column"):
            schema.seen(less.obs)


def test_an_absent_column_is_suggested_if_its_name_is_near():
    schema = Schema.of(study(), spurious="donor")
    a = study()
    a.obs = a.obs.rename(columns={"donor": "Donor"})
    with pytest.warns(TrifoldWarning, match="Did you mean 'Donor'"):
        Cells(a, schema, unknown="marginalise")


@pytest.mark.parametrize("columns", [["drug"], ["drug", "dose", "donor"], ["dose"], ["donor", "cell_type", "drug"]])
def test_combinations_are_the_designs_of_cells_that_have_them_with_numbers_at_their_mean(columns):
    a = study()
    a = a[~((a.obs["drug"] == "B") & (a.obs["donor"] == "d1"))].copy()
    schema = Schema.of(a, spurious=columns, empty="keep")
    design, code = schema.combinations("spurious")
    k = len(schema.categories("spurious"))
    assert (design.shape, design.dtype) == ((k, schema.width("spurious")), np.float32)
    assert (code.tolist(), code.dtype) == (list(range(k)), np.int64)
    mean = a.obs.assign(dose=schema.column("dose").mean) if "dose" in columns else a.obs
    found = schema.covariates(mean)
    assert (design[found[1]["spurious"]] == found[0]["spurious"]).all()
    cells = Cells(a, schema, empty="keep")
    assert cells.counts("spurious").tolist() == np.bincount(found[1]["spurious"]).tolist()
    assert cells.counts("spurious").dtype == np.int64


def test_an_absent_role_has_no_combinations():
    schema = Schema.of(study(), spurious="donor")
    design, code = schema.combinations("invariant")
    assert (design.shape, code.shape) == ((0, 0), (0,))
    assert Cells(study(), schema).counts("invariant").shape == (0,)
    with pytest.raises(SchemaError, match="role must be one of"):
        schema.combinations("technique")
