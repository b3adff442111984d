"""Which roles cannot be told apart: designs that are confounded, nested or crossed, and what the schema remembers of it."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifold.data import Schema, disconnected
from trifold.errors import TrifoldWarning

X = np.ones((24, 3))
AT = np.arange(24)


def schema_of(**columns: object) -> Schema:
    """Schema of constant counts; the columns are named by role and number: invariant, spurious_1."""
    obs = pd.DataFrame(columns)
    roles = {r: [c for c in obs if c.split("_")[0] == r] for r in dict.fromkeys(c.split("_")[0] for c in obs)}
    return Schema.of(X, obs=obs, **roles, unlabelled="unknown" if (obs == "unknown").to_numpy().any() else None)


def by_walking(a: list[int], b: list[int]) -> bool:
    """Whether a walk from the first known cell, over cells that share a category, misses another."""
    cells = [(i, j) for i, j in zip(a, b, strict=True) if i >= 0 and j >= 0]
    reached = set(cells[:1])
    for _ in cells:
        reached |= {c for c in cells if any(c[0] == r[0] or c[1] == r[1] for r in reached)}
    return len(reached) < len(set(cells))


@settings(max_examples=300, deadline=None)
@given(codes=st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=12), times=st.integers(1, 3))
def test_disconnected_is_what_a_walk_over_cells_finds(codes, times):
    a, b = [c[0] for c in codes] * times, [c[1] for c in codes] * times
    assert disconnected(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)) == by_walking(a, b)
    assert disconnected(np.array(b, dtype=np.int64) * 1000, np.array(a, dtype=np.int64)) == by_walking(a, b)


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (AT % 2, AT % 2, True),  # confounded
        (AT // 12, AT // 4, True),  # nested: three donors in each of two diseases
        (AT // 4, AT // 12, True),
        (AT // 4, AT * 0, False),  # one donor: nested, yet nothing is split
        (AT % 2, (AT // 2) % 3, False),  # crossed
        (AT // 12, np.where(AT == 0, 5, AT // 4), False),  # nested but for one cell
        (AT // 12, np.where(AT == 0, -1, AT // 4), True),
        (AT * 0 - 1, AT, False),
        (AT[:0], AT[:0], False),
        (AT, AT, True),
    ],
)
def test_designs_whose_answer_is_known(a, b, want):
    assert disconnected(a, b) is want


@pytest.mark.parametrize("pair", [("invariant", "spurious"), ("condition", "spurious"), ("condition", "label")])
@pytest.mark.parametrize("turned", [False, True])
def test_donors_nested_in_diseases_are_warned_of_with_the_table_and_remembered(pair, turned):
    disease, donor = np.array(["healthy", "ill"])[AT // 12], np.array([f"p{k}" for k in AT // 4])
    values = (donor, disease) if turned else (disease, donor)
    with pytest.warns(TrifoldWarning, match=rf"\({pair[0]}\) is confounded with .*\({pair[1]}\)") as caught:
        schema = schema_of(**dict(zip(pair, values, strict=True)))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    table = str(caught[0].message).split("Cells:\n")[1].split("\n")
    rows = [line.split() for line in table[2:]]
    want = pd.crosstab(*values)
    assert rows == [[str(i), *map(str, row)] for i, row in zip(want.index, want.to_numpy(), strict=True)]
    assert schema.confounded == (pair,)
    again = Schema.from_spec(json.loads(json.dumps(schema.to_spec())))
    assert again == schema
    assert again.confounded == (pair,)
    assert isinstance(again.confounded[0], tuple)


def test_one_of_several_columns_may_be_nested_while_another_is_crossed():
    disease, donor, cell_type = AT // 12, AT // 4, AT % 4
    text = [np.array([f"{n}{k}" for k in v]) for n, v in (("ill", disease), ("p", donor), ("t", cell_type))]
    with pytest.warns(TrifoldWarning, match="'invariant_2'.*'spurious'") as caught:
        schema = schema_of(invariant_1=text[2], invariant_2=text[0], spurious=text[1])
    assert len(caught) == 1
    assert schema.confounded == (("invariant", "spurious"),)


def test_crossed_roles_and_roles_of_numbers_are_not_confounded():
    for spurious in (np.array(["x", "y"])[(AT // 2) % 2], AT.astype(float)):
        assert schema_of(invariant=np.array(["a", "b"])[AT % 2], spurious=spurious).confounded == ()
    assert Schema.of(X).confounded == ()


def test_roles_can_be_confounded_without_any_pair_of_columns():
    donor, batch = AT % 2, (AT // 2) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema = schema_of(invariant=np.where(donor == batch, "a", "b"), spurious_1=donor.astype(str), spurious_2=batch.astype(str))
    assert schema.confounded == (("invariant", "spurious"),)


@pytest.mark.parametrize("bridge", [0, 1])
def test_unlabelled_cells_connect_nothing_and_are_not_in_the_table(bridge):
    """Cells of all donors are unknown; only a labelled one can connect the two diseases."""
    disease = np.array(["healthy", "ill"])[AT // 12].astype(object)
    donor = np.array([f"p{k}" for k in AT // 4])
    disease[::4] = "unknown"
    if bridge:
        disease[1] = "ill"
        assert schema_of(invariant=disease, spurious=donor).confounded == ()
        return
    with pytest.warns(TrifoldWarning, match=r"\{healthy\} \| \{ill\} of") as caught:
        schema = schema_of(invariant=disease, spurious=donor)
    assert "unknown" not in str(caught[0].message)
    assert schema.confounded == (("invariant", "spurious"),)


def test_a_label_that_is_the_condition_is_not_called_confounded_with_it():
    obs = pd.DataFrame({"condition": np.array(["a", "b"])[AT % 2]})
    assert Schema.of(X, obs=obs, condition="condition", label="condition").confounded == ()


def test_a_grown_schema_keeps_what_the_training_data_said():
    obs = pd.DataFrame({"i": np.array(["a", "b"])[AT % 2], "s": np.array(["x", "y"])[AT % 2]})
    with pytest.warns(TrifoldWarning, match="confounded"):
        schema = Schema.of(X, obs=obs, invariant="i", spurious="s")
    crossed = pd.DataFrame(itertools.product("ab", "xyz"), columns=["i", "s"])
    assert schema.grown(crossed).confounded == (("invariant", "spurious"),)
