"""Reliability items 23 to 42: faults of shapes, names and categories. What needs a trained model is tested elsewhere."""

from __future__ import annotations

import json
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from fault_cases import CELLS, GENES, counts, obs, study, unchanged

from trifold.data import Balanced, Category, Cells, Number, Schema, Shuffled, by_fraction, held_out, open
from trifold.errors import DataError, FormatError, SchemaError, TrifoldWarning


def reload(schema: Schema) -> Schema:
    return Schema.from_spec(json.loads(json.dumps(schema.to_spec())))


def with_column(values: object, name: str = "condition") -> anndata.AnnData:
    a = study()
    a.obs[name] = values
    return a


def refused(a: anndata.AnnData, *words: str, **roles: object) -> None:
    with unchanged(a), pytest.raises(SchemaError) as caught:
        Schema.of(a, "counts", **roles)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize(("shape", "axis"), [((0, 5), "no cells"), ((5, 0), "no genes")])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_item_23_data_without_cells_or_genes_are_refused_by_axis(shape, axis, form):
    with pytest.raises(DataError, match=axis):
        Schema.of(form(np.zeros(shape, dtype=np.float32)))


def test_item_24_one_cell_and_one_gene_make_a_batch():
    schema = Schema.of(np.array([[3.0]]))
    batch = Cells(np.array([[3.0]]), schema).batch([0])
    assert batch.rows.to_dense().tolist() == [[3.0]]
    assert batch.size.tolist() == [[3.0]]
    with pytest.raises(DataError, match=r"needs at least 2 cells; found 1\. Pass validation=0"):
        by_fraction(1, 0.1)


def test_item_25_repeated_names_of_genes_are_refused_and_five_are_listed():
    a = study()
    a.var_names = [f"G{j % 12}" for j in range(GENES)]
    for use in (lambda: Schema.of(a, "counts"), lambda: Cells(a, Schema.of(study(), "counts"))):
        with pytest.raises(DataError, match=r"8 occur more than once: G0, G1, G2, G3, G4, … \(3 more\)"):
            use()


def test_item_26_repeated_names_of_cells_are_warned_of_and_keep_their_order():
    a = study()
    a.obs_names = ["twin", "twin", *a.obs_names[2:]]
    with pytest.warns(TrifoldWarning, match="1 names of cells occur more than once: twin"):
        schema = Schema.of(a, "counts")
    with pytest.warns(TrifoldWarning, match="twin"):
        cells = Cells(a, schema)
    assert (cells.batch([1, 0]).rows.to_dense().numpy() == counts()[[1, 0]]).all()


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_item_27_permuted_genes_give_the_same_batch(form):
    a = study(form(counts()))
    schema = Schema.of(a, "counts")
    order = np.random.default_rng(0).permutation(GENES)
    want, got = Cells(a, schema).batch(np.arange(CELLS)), Cells(a[:, order].copy(), schema).batch(np.arange(CELLS))
    assert got.rows.to_dense().equal(want.rows.to_dense())
    assert got.size.equal(want.size)
    if want.rows.sparse:
        assert all(u.equal(v) for u, v in zip(got.rows.csr(), want.rows.csr(), strict=True))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_item_28_missing_genes_are_refused_with_five_names_or_taken_as_zeros_and_reported(form):
    a = study(form(counts()))
    schema = Schema.of(a, "counts")
    fewer = a[:, [0, *range(8, GENES)]].copy()
    with pytest.raises(
        DataError, match=r"lacks 7 of the 20 genes of the model: GENE1, GENE2, GENE3, GENE4, GENE5, … \(2 more\).*missing='zero'"
    ):
        Cells(fewer, schema, empty="keep")
    with pytest.warns(TrifoldWarning, match="7 of 20 genes are missing .* taken as zeros: GENE1, GENE2"):
        cells = Cells(fewer, schema, missing="zero", empty="keep")
    want = counts()
    want[:, 1:8] = 0
    assert (cells.batch(np.arange(CELLS)).rows.to_dense().numpy() == want).all()
    assert "7 of 20" in cells.notices[0]


def test_item_29_extra_genes_are_left_out_with_a_notice_and_do_not_count():
    a = study()
    schema = Schema.of(a[:, 3:12].copy(), "counts", empty="keep")
    with pytest.warns(TrifoldWarning, match="11 genes .* left out: GENE0, GENE1"):
        cells = Cells(a, schema)
    assert (cells.batch(np.arange(CELLS)).rows.to_dense().numpy() == counts()[:, 3:12]).all()
    assert (cells.library == counts()[:, 3:12].sum(1)).all()


@pytest.mark.parametrize(
    ("trained", "given", "hint"),
    [
        ("GENE{}", "ENSG{:011d}", "look like Ensembl identifiers"),
        ("ENSG{:011d}.3", "ENSG{:011d}", "match but for the version suffix"),
        ("GENE{}", "Gene{}", "match but for case"),
        ("GENE{}", "{}", "look like Entrez identifiers or positions"),
    ],
)
def test_item_30_names_of_another_kind_are_recognised(trained, given, hint):
    x = counts()
    schema = Schema.of(pd.DataFrame(x, columns=[trained.format(j + 1) for j in range(GENES)]))
    with pytest.raises(DataError, match=f"0 of 20 genes match.*{hint}"):
        Cells(pd.DataFrame(x, columns=[given.format(j + 1) for j in range(GENES)]), schema)


@pytest.mark.parametrize("policy", ["zero", "marginalise"])
def test_item_31_an_unseen_category_is_refused_or_zero_as_each_role_asks(policy):
    schema = Schema.of(study(), "counts", condition="condition", spurious="donor")
    a = with_column(["stimulate"] * 3 + ["control"] * (CELLS - 3))
    with pytest.raises(
        SchemaError, match=r"obs\['condition'\] \(condition\) holds 'stimulate'.*3 cells.*mean 'stimulated'.*Known: 'control', 'stim"
    ):
        Cells(a, schema)
    with pytest.raises(SchemaError, match="stimulate"):
        Cells(a, schema, unknown={"spurious": policy})
    cells = Cells(a, schema, unknown={"condition": policy})
    assert cells.unknown == {"condition": policy, "spurious": "error"}
    assert cells.code["condition"].tolist() == [-1] * 3 + [0] * (CELLS - 3)
    assert cells.design["condition"][:4].tolist() == [[0, 0]] * 3 + [[1, 0]]
    assert not schema.seen(a.obs)["condition"][:3].any()
    with pytest.raises(SchemaError, match="a role of unknown must be one of"):
        Cells(a, schema, unknown={"conditions": "zero"})


def test_item_32_an_unused_category_is_recorded_and_has_no_column():
    a = with_column(pd.Categorical(obs()["condition"], categories=["never", "stimulated", "control"]))
    schema = Schema.of(a, "counts", condition="condition")
    assert schema.column("condition") == Category("condition", ("stimulated", "control"), ("never",))
    assert schema.width("condition") == 2
    assert reload(schema) == schema
    with pytest.raises(SchemaError, match="'never'"):
        Cells(with_column(["never"] * CELLS), schema)


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA])
@pytest.mark.parametrize("categorical", [True, False])
def test_item_33_a_missing_category_is_refused_by_column_and_number(missing, categorical):
    values = pd.Series(obs()["condition"].astype(object))
    values.iloc[[5, 8]] = missing
    a = with_column(pd.Categorical(values.where(values.notna(), np.nan)) if categorical else values.to_numpy())
    with pytest.raises(SchemaError, match=r"obs\['condition'\] \(condition\) .* 2 of 60 are missing \(NaN\) \(rows 5, 8\)") as caught:
        Schema.of(a, "counts", condition="condition")
    assert "unlabelled" not in str(caught.value)
    for role in ("invariant", "label"):
        refused(a, "2 of 60", ".fillna('unknown'), and pass unlabelled='unknown'", **{role: "condition"})
    filled = with_column(a.obs["condition"].astype(object).fillna("unknown"))
    code = Cells(filled, Schema.of(filled, "counts", label="condition", unlabelled="unknown")).code["label"]
    assert np.flatnonzero(code < 0).tolist() == [5, 8]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_item_34_a_number_that_is_not_finite_is_refused_by_column(bad):
    a = study()
    a.obs.loc["cell_7", "dose"] = bad
    refused(a, "obs['dose'] (condition)", "1 of 60", "rows 7", condition="dose")
    schema = Schema.of(study(), "counts", condition="dose")
    with pytest.raises(SchemaError, match=r"obs\['dose'\]"):
        Cells(a, schema)


@pytest.mark.parametrize(
    "values",
    [
        pd.Categorical([3, 1, 2] * 20),
        [True, False] * 30,
        pd.Categorical([True, False] * 30),
        np.array([1, "1", True, 1.5, "x"] * 12, dtype=object),
        pd.Categorical([0.5, 0.1] * 30),
        pd.array([True, False] * 30, dtype="boolean"),
        pd.array(["a", "b"] * 30, dtype="string"),
    ],
    ids=["int", "bool", "categorical bool", "mixed", "float", "nullable", "string"],
)
def test_item_35_categories_keep_their_type_and_codes_on_reload(values):
    frame = pd.DataFrame({"condition": values})
    schema = Schema.of(counts(), obs=frame, condition="condition")
    again = reload(schema)
    assert again == schema
    kinds = lambda s: [(type(v), v) for v in s.column("condition").values]  # noqa: E731
    assert kinds(again) == kinds(schema)
    shuffled = frame.iloc[np.random.default_rng(0).permutation(CELLS)]
    code = again.covariates(shuffled)[1]["condition"]
    plain = [v.item() if isinstance(v, np.generic) else v for v in shuffled["condition"]]
    assert [(type(again.categories("condition")[c][0]), again.categories("condition")[c][0]) for c in code] == [(type(v), v) for v in plain]


def test_item_35_one_and_true_and_text_are_three_categories():
    frame = pd.DataFrame({"condition": np.array([1, "1", True] * 20, dtype=object)})
    assert Schema.of(counts(), obs=frame, condition="condition").width("condition") == 3
    with pytest.raises(SchemaError, match="The known 1 is of type int"):
        Schema.of(counts(), obs=pd.DataFrame({"c": pd.Categorical([1, 2] * 30)}), condition="c").covariates(pd.DataFrame({"c": ["1", "2"]}))


@pytest.mark.parametrize("name", ["a/b", "line\nbreak", "x" * 10_000, "\udc80", "ünï", "", " "])
def test_item_36_odd_names_survive_a_round_trip(name):
    a = study()
    a.obs["condition"] = np.array([name, "other"] * 30, dtype=object)
    a.var_names = [*a.var_names[1:], name or "blank"]
    schema = Schema.of(a, "counts", condition="condition")
    assert reload(schema) == schema
    assert (Cells(a, reload(schema)).code["condition"] == Cells(a, schema).code["condition"]).all()


def test_item_36_bytes_are_refused_by_column():
    refused(with_column(np.array([b"\xff", b"a"] * 30, dtype=object)), "obs['condition']", "bytes", condition="condition")


def test_item_37_a_condition_with_one_cell_is_accepted_and_balanced():
    values = ["control"] * (CELLS - 1) + ["rare"]
    schema = Schema.of(with_column(values), "counts", condition="condition")
    code = Cells(with_column(values), schema).code["condition"]
    epoch = Balanced(np.arange(CELLS), code, 10, seed=0).epoch(0)
    assert all((code[b] == 1).sum() == 5 for b in epoch)
    train, validation = by_fraction(code, 0.2, seed=0)
    assert CELLS - 1 in train
    assert CELLS - 1 not in validation


def test_item_38_a_condition_absent_from_the_split_keeps_its_place_in_the_codes():
    schema = Schema.of(study(), "counts", condition="condition")
    only = study()[obs()["condition"].to_numpy() == "stimulated"].copy()
    cells = Cells(only, schema)
    assert set(cells.code["condition"]) == {1}
    assert cells.design["condition"].shape == (30, 2)
    assert all(len(b) for b in Balanced(np.arange(cells.n), cells.code["condition"], 7).epoch(0))


def test_item_39_one_condition_only_is_accepted():
    data = with_column(["control"] * CELLS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrifoldWarning)
        schema = Schema.of(data, "counts", condition="condition", label="cell_type")
    assert schema.categories("condition") == (("control",),)


@pytest.mark.parametrize(("a", "b"), [("condition", "label"), ("invariant", "spurious"), ("condition", "spurious")])
def test_item_40_confounded_columns_are_warned_of_with_the_table(a, b):
    data = study()
    data.obs["d"] = np.repeat(["healthy", "ill"], 30)
    data.obs["e"] = np.array(["p1", "p2", "p3", "p4"])[np.arange(CELLS) // 15]
    with pytest.warns(TrifoldWarning, match=r"'d' .* confounded with 'e'.*\{healthy\} \| \{ill\}(.|\n)*p1(.|\n)*15"):
        Schema.of(data, "counts", **{a: "d", b: "e"})


def test_item_40_crossed_columns_are_not_warned_of_even_if_a_pair_is_missing():
    data = study()[~((obs()["condition"] == "stimulated") & (obs()["cell_type"] == "NK")).to_numpy()].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Schema.of(data, "counts", condition="condition", label="cell_type", spurious="donor")


def test_item_41_a_missing_column_is_refused_with_what_there_is():
    refused(study(), "no column 'cell_tpye'", "Did you mean 'cell_type'?", "condition, cell_type, donor, dose", condition="cell_tpye")
    a = study()
    a.obsm["batch"] = np.zeros((CELLS, 2))
    refused(a, "no column 'batch'", "There is one in obsm", spurious="batch")
    with pytest.raises(SchemaError, match="these data have none"):
        Schema.of(counts(), condition="condition")


def test_item_41_a_column_with_two_roles_is_refused_but_a_label_may_share():
    refused(study(), "'donor'", "as invariant and as spurious", invariant=["cell_type", "donor"], spurious="donor")
    refused(study(), "'donor' twice", invariant=["donor", "donor"])
    schema = Schema.of(study(), "counts", invariant=["cell_type", "condition"], label="cell_type")
    assert schema.width("label") == 3


@pytest.mark.parametrize("n", [11, 21, 2, 1])
def test_item_42_a_last_minibatch_of_one_cell_is_merged(n):
    for sampler in (Shuffled(np.arange(n), 10), Balanced(np.arange(n), np.arange(n) % 2, 10)):
        sizes = [len(b) for b in sampler.epoch(3)]
        assert sum(sizes) == n
        assert n == 1 or min(sizes) > 1
        assert len(sizes) == sampler.steps


def test_numbers_are_standardised_and_integers_are_numbers():
    a = study()
    a.obs["day"] = np.arange(CELLS)
    schema = Schema.of(a, "counts", condition=["day", "condition"])
    assert schema.column("day") == Number("day", 29.5, float(np.arange(CELLS).std()))
    design, code = schema.covariates(a.obs)
    assert design["condition"].shape == (CELLS, 3)
    assert abs(design["condition"][:, 0].mean()) < 1e-6
    assert abs(design["condition"][:, 0].std() - 1) < 1e-6
    assert set(code["condition"]) == {0, 1}
    refused(a, "categories", "astype('category')", label="day")


def test_a_saved_schema_with_an_unknown_key_is_refused_by_name():
    spec = Schema.of(study(), "counts", condition="condition").to_spec()
    for damage, word in [
        (lambda s: s.update(knd="counts"), "'knd'.*mean 'kind'"),
        (lambda s: s.pop("genes"), "'genes'"),
        (lambda s: s.update(kind="count"), "kind"),
        (lambda s: s.update(genes="abc"), "genes"),
        (lambda s: s["roles"]["condition"][0].update(values="abc"), "values"),
        (lambda s: s["observed"].update(condition=[["nowhere"]]), "nowhere"),
        (lambda s: s["observed"].update(condition=[[[1]], [{}]]), "not made of"),
        (lambda s: s["roles"].update(technique=[]), "role"),
        (lambda s: s.update(roles=[]), "roles"),
        (lambda s: s.update(density=True), "density"),
    ]:
        broken = json.loads(json.dumps(spec))
        damage(broken)
        with pytest.raises(FormatError, match=word):
            Schema.from_spec(broken)


def test_a_hold_out_that_matches_nothing_or_all_is_refused():
    assert held_out(obs(), {"condition": "stimulated", "cell_type": ["NK", "B"]}).sum() == 20
    with pytest.raises(SchemaError, match=r"no cell with 'NKT'.*'NK'"):
        held_out(obs(), {"cell_type": "NKT"})
    with pytest.raises(SchemaError, match="cell_type"):
        held_out(obs(), {"cell_tpe": "NK"})
    with pytest.raises(DataError, match="all 60 cells"):
        held_out(obs(), {"condition": ["control", "stimulated"]})
    odd = obs()
    odd.loc[odd["condition"] == "control", "donor"] = "d9"
    with pytest.raises(DataError, match="matches no cell"):
        held_out(odd, {"condition": "stimulated", "donor": "d9"})
    assert open(counts()).n == CELLS
