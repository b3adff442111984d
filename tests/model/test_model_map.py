"""Mapping new batches onto a trained reference: what was learned stays bit for bit, and what is new brings new cells home."""

from __future__ import annotations

import copy

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import trifold
from trifold.errors import DataError, NotFittedError, SchemaError, SpecError, TrifoldWarning
from trifold.growth import Axis
from trifold.nets import RowsLinear

GENES, TYPES = 40, 3
ZERO = {"spurious": "zero"}
QUICK = {"device": "cpu", "progress": False}


def cells(n: int, batch: str, shift: float, seed: int, *, shares=(1, 1, 1), assay: str = "a") -> ad.AnnData:
    """Three classes in other proportions, and a batch that shifts the log rate of each gene."""
    world, rng = np.random.default_rng(7), np.random.default_rng([seed, 1])
    base, classes = world.normal(0, 0.5, GENES), world.normal(0, 1.0, (TYPES, GENES))
    move = shift * np.random.default_rng([99, *map(ord, batch)]).normal(0, 1, GENES)
    label = rng.choice(TYPES, n, p=np.array(shares) / sum(shares))
    rate = np.exp(base + classes[label] + move)
    x = rng.poisson(300 * rate / rate.sum(1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame({"batch": batch, "assay": assay, "kind": [f"type_{k}" for k in label]}, index=[f"{batch}_{i}" for i in range(n)])
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(GENES)]))


@pytest.fixture(scope="module")
def reference():
    out = ad.concat([cells(150, "one", 0.3, 1), cells(150, "two", 0.3, 2, assay="b")])
    out.obs.loc[out.obs_names[:6], "kind"] = "?"
    return out


@pytest.fixture(scope="module")
def query():
    out = cells(120, "new", 0.6, 3, shares=(4, 2, 1), assay="c")
    out.obs["truth"] = out.obs["kind"]
    out.obs["kind"] = "?"
    return out


@pytest.fixture(scope="module")
def model(reference):
    schema = trifold.Schema.of(reference, spurious="batch", invariant="kind", unlabelled="?")
    return trifold.invae(schema, invariant=4, spurious=2, hidden=(24,)).fit(reference, epochs=30, batch=64, lr=1e-2, seed=0, **QUICK)


@pytest.fixture(scope="module")
def mapped(model, query, reference):
    return model.map(query, reference=reference, steps=150, batch=128, seed=3, **QUICK)


def away(latent: np.ndarray, truth, home: np.ndarray, kind) -> float:
    """Mean distance of new cells to the reference's centroid of their class."""
    centre = {k: home[np.asarray(kind) == k].mean(0) for k in set(kind)}
    return float(np.mean([np.linalg.norm(z - centre[k]) for z, k in zip(latent, truth, strict=True)]))


def accuracy(model, query, **options) -> float:
    table = model.classify(query, reject=0, **options)
    return float((table["label"].astype(str).to_numpy() == query.obs["truth"].to_numpy()).mean())


def test_reference_cells_lie_and_are_decoded_bit_for_bit_where_they_were(model, mapped, reference):
    for block in (None, "invariant", "spurious"):
        assert np.array_equal(mapped.latent(reference, block=block), model.latent(reference, block=block))
    assert np.array_equal(mapped.expression(reference), model.expression(reference))
    assert np.array_equal(mapped.expression(reference[:1]), model.expression(reference[:1]))
    assert np.array_equal(mapped.expression(reference[:50], corrected=True), model.expression(reference[:50], corrected=True))
    assert np.array_equal(
        mapped.latent(reference, block="invariant", rectified=True), model.latent(reference, block="invariant", rectified=True)
    )
    assert mapped.score(reference).equals(model.score(reference))
    assert mapped.classify(reference).equals(model.classify(reference))
    assert mapped.novelty(reference).equals(model.novelty(reference))


def test_only_entries_of_new_categories_change(model, mapped):
    before, after = model.network.state_dict(), mapped.network.state_dict()
    vae, at = "vae.posterior._blocks.{}.network.first.design", "vae.decoder.network.first.design"
    table, head = "vae.prior._blocks.spurious.{}", "objective._terms.technique.head.out.{}"
    rows = {at: 2, **{head.format(name): 2 for name in ("weight", "bias")}, **{table.format(name): 2 for name in ("mean", "log_var")}}
    probe = [name for name in before if "independence" in name and len(before[name]) != len(after[name])]  # widened, and not trained
    for block in ("invariant", "spurious"):
        design = after[vae.format(block)]
        assert vae.format(block) not in before
        assert (design[:2] == 0).all()
        assert (design[2] != 0).all()
    assert set(after) - set(before) == {vae.format(block) for block in ("invariant", "spurious")}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {*rows, *probe}
    assert all(torch.equal(after[name][:2], before[name]) for name in probe)
    for name, new in rows.items():
        old, now = before[name], after[name]
        assert len(now) == len(old) + 1
        kept = [i for i in range(len(now)) if i != new]  # the row of the unknown category comes last in a prior's tables
        assert torch.equal(now[kept], old)
        assert not torch.equal(now[new], old[:2].mean(0))  # where it began


def test_the_old_model_its_schema_and_its_card_are_untouched(model, query, reference):
    weights = copy.deepcopy(model.network.state_dict())
    card, schema, needs = copy.deepcopy(model.card), model.schema.to_spec(), [p.requires_grad for p in model.network.parameters()]
    out = model.map(query, reference=reference, steps=3, **QUICK)
    assert all(torch.equal(weights[name], t) for name, t in model.network.state_dict().items())
    assert (model.card, model.schema.to_spec()) == (card, schema)
    assert needs == [p.requires_grad for p in model.network.parameters()]
    shared = {t.data_ptr() for t in model.network.state_dict().values()} & {t.data_ptr() for t in out.network.state_dict().values()}
    assert shared <= {0}
    assert all(p.requires_grad for p in out.vae.posterior.parameters())  # it can be trained on


def test_a_batch_shift_is_taken_out_although_proportions_differ(model, mapped, query, reference):
    home, truth = model.latent(reference, block="invariant"), query.obs["truth"]
    before = away(model.latent(query, block="invariant", unknown=ZERO), truth, home, reference.obs["kind"])
    after = away(mapped.latent(query, block="invariant"), truth, home, reference.obs["kind"])
    assert after < 0.8 * before
    assert accuracy(mapped, query) >= accuracy(model, query, unknown=ZERO)
    far = model.novelty(query, unknown=ZERO)["misfit"].mean()
    assert mapped.novelty(query)["misfit"].mean() < far


def test_without_the_reference_and_without_adapting_less_is_learned(model, query):
    alone = model.map(query, steps=40, adapt=True, **QUICK)
    assert alone.card["mapped"][0]["replayed"] == 0
    assert set(alone.card["mapped"][0]["values"]) == {"nll", "kl_invariant", "kl_spurious", "label", "loss"}
    fixed = model.map(query, steps=40, **QUICK)  # which is adapt=False
    assert np.array_equal(fixed.latent(query), model.latent(query, unknown=ZERO))
    assert not np.array_equal(alone.latent(query), fixed.latent(query))
    assert not np.array_equal(fixed.expression(query), model.expression(query, unknown=ZERO))


def test_known_batches_change_nothing_and_say_so(model, reference):
    with pytest.warns(TrifoldWarning, match="nothing was trained"):
        same = model.map(reference[:40], reference=reference, **QUICK)
    assert same.schema == model.schema
    mine = model.network.state_dict()
    assert list(mine) == list(same.network.state_dict())
    assert all(torch.equal(mine[name], t) for name, t in same.network.state_dict().items())
    assert {k: v for k, v in same.card.items() if k != "mapped"} == model.card
    assert same.card["mapped"][0]["steps"] == 0


def test_cells_of_known_batches_in_the_query_do_not_move_and_are_not_trained_on(model, query, reference):
    mixed = ad.concat([query[:60], reference[:30]])
    out = model.map(mixed, steps=5, **QUICK)
    assert (out.card["mapped"][0]["cells"], out.card["mapped"][0]["trained"]) == (90, 60)
    assert np.array_equal(out.latent(reference), model.latent(reference))


def test_the_card_says_what_was_mapped_and_keeps_the_rest(model, mapped, query):
    about = mapped.card["mapped"][0]
    assert about["new"] == {"spurious": [["new"]]}
    assert (about["cells"], about["trained"], about["replayed"], about["seed"]) == (120, 120, 300, 3)
    assert abs(about["steps"] - 150) <= 2
    assert {k: v for k, v in mapped.card.items() if k in ("calibration", "novelty", "rectifier", "separation", "data")} == {
        k: v for k, v in model.card.items() if k in ("calibration", "novelty", "rectifier", "separation", "data")
    }
    assert mapped.card["counts"]["spurious"] == [*model.card["counts"]["spurious"], 0]
    to = mapped.predict(query[:5], {"batch": "one"})
    assert to.n_obs == 5
    assert mapped.predict(query[:5], {"batch": "new"}).obs["seen"].all()
    assert mapped.sample({"batch": "new"}, n=7).n_obs == 7


def test_a_mapped_model_is_saved_and_loaded_bit_for_bit_and_can_be_mapped_again(mapped, query, reference, tmp_path):
    again = trifold.load(mapped.save(tmp_path / "run"))
    assert np.array_equal(again.latent(query), mapped.latent(query))
    assert again.card["mapped"] == mapped.card["mapped"]
    assert again.schema == mapped.schema
    more = again.map(cells(30, "newer", 0.3, 5), steps=3, **QUICK)
    assert [m["new"]["spurious"] for m in more.card["mapped"]] == [[["new"]], [["newer"]]]
    assert np.array_equal(more.latent(query), mapped.latent(query))
    assert np.array_equal(more.expression(reference), mapped.expression(reference))


def test_the_seed_decides_everything(model, mapped, query, reference):
    same = model.map(query, reference=reference, steps=150, batch=128, seed=3, **QUICK).network.state_dict()
    assert all(torch.equal(same[name], t) for name, t in mapped.network.state_dict().items())
    short = [model.map(query, reference=reference, steps=4, seed=s, **QUICK).latent(query) for s in (3, 4)]
    assert not np.array_equal(*short)


def test_labels_of_the_query_are_used_where_they_are_there(model, query, reference):
    some = query.copy()
    some.obs.loc[some.obs_names[:60], "kind"] = some.obs["truth"][:60]
    told = model.map(some, reference=reference, steps=60, **QUICK)
    assert told.card["mapped"][0]["values"]["label"] > 0
    bare = query.copy()
    del bare.obs["kind"]
    without = model.map(bare, reference=reference, steps=4, **QUICK)
    assert np.array_equal(without.latent(query), model.map(query, reference=reference, steps=4, **QUICK).latent(query))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("columns", [["batch"], ["batch", "assay"], ["batch", "assay", "plate", "ph"]])
def test_bit_equality_holds_for_several_columns_whose_places_move_and_for_dense_rows(reference, query, sparse, columns):
    old, new = reference.copy(), query[:30].copy()
    for a in (old, new):
        a.obs["plate"] = ["p" if i % 3 else "q" for i in range(a.n_obs)]
        a.obs["ph"] = np.linspace(6.0, 8.0, a.n_obs)
        a.X = a.X if sparse else a.X.toarray()
    schema = trifold.Schema.of(old, spurious=columns, invariant="kind", unlabelled="?")
    if sparse != schema.sparse:
        schema = trifold.Schema.from_spec({**schema.to_spec(), "density": 0.1 if sparse else 0.9})
    net = trifold.invae(schema, invariant=3, spurious=2, hidden=(8,)).fit(old, epochs=2, **QUICK)
    out = net.map(new, reference=old, steps=6, **QUICK)
    assert out.vae.decoder.network.covariates > net.vae.decoder.network.covariates
    assert np.array_equal(out.latent(old), net.latent(old))
    assert np.array_equal(out.expression(old), net.expression(old))
    assert not np.array_equal(out.latent(new), net.latent(new, unknown=ZERO))


PRESETS = {
    "published": lambda s: trifold.invae(s, invariant=3, spurious=2, hidden=(8,), published=True),
    "energy": lambda s: trifold.invae(s, invariant=3, spurious=2, hidden=(8,), prior="energy"),
    "instead": lambda s: trifold.invae(s, invariant=3, hidden=(8,), inject="instead", label_dropout=0.5),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_variant_of_the_preset_keeps_its_reference(name, reference, query):
    schema = trifold.Schema.of(reference, spurious="batch", invariant="kind", unlabelled="?")
    net = PRESETS[name](schema).fit(reference, epochs=2, **QUICK)
    out = net.map(query[:40], reference=reference, steps=6, **QUICK)
    assert np.array_equal(out.latent(reference), net.latent(reference))
    assert np.array_equal(out.expression(reference), net.expression(reference))
    old = net.network.state_dict()
    new = out.network.state_dict()
    assert all(torch.equal(old[n], new[n]) for n in old if "running" in n or "num_batches" in n)


def test_a_reference_without_biology_is_matched_within_the_components_of_its_prior(reference, query):
    schema = trifold.Schema.of(reference, spurious="batch")
    net = trifold.invae(schema, invariant=3, spurious=2, hidden=(8,), components=4).fit(reference, epochs=2, **QUICK)
    out = net.map(query[:40], reference=reference, steps=6, **QUICK)
    assert "query" in out.card["mapped"][0]["values"]
    assert np.array_equal(out.latent(reference), net.latent(reference))


def test_a_new_condition_of_trvae_is_mapped_and_old_effects_stay(reference, query):
    schema = trifold.Schema.of(reference, condition="batch", label="kind")
    net = trifold.trvae(schema, latent=3, hidden=(8,), rank=2, dispersion="condition").fit(reference, epochs=2, **QUICK)
    new = query[:40].copy()
    del new.obs["kind"]
    out = net.map(new, reference=reference, steps=6, **QUICK)
    assert np.array_equal(out.latent(reference), net.latent(reference))
    np.testing.assert_allclose(out.expression(reference), net.expression(reference), rtol=1e-5)
    assert out.vae.likelihood.conditions == 3
    assert (out.vae.likelihood.theta.departure[2] != net.vae.likelihood.theta.departure.mean(0)).any()
    assert torch.equal(out.vae.likelihood.theta.departure[:2], net.vae.likelihood.theta.departure)


@pytest.mark.parametrize("n", [1, 7, 200])
def test_many_categories_of_several_columns_add_up_bit_for_bit_when_more_come(n):
    old, new, rng = (60, 60, 60), (90, 61, 60), torch.Generator().manual_seed(4)
    place = torch.cat([sum(new[:k]) + torch.arange(size) for k, size in enumerate(old)])
    c = torch.zeros(n, sum(old))
    for k, size in enumerate(old):
        c[torch.arange(n), sum(old[:k]) + torch.randint(size, (n,), generator=rng)] = 1
    late = [sorted(set(range(sum(new))) - set(place.tolist()))]
    narrow, wide = RowsLinear(3, 24, covariates=sum(old)), RowsLinear(3, 24, covariates=sum(new), late=late)
    wider = torch.zeros(n, sum(new))
    wider[:, place] = c
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(wide, name).copy_(getattr(narrow, name))
        wide.design[place] = narrow.design
    x = torch.randn(n, 3, generator=rng)
    assert torch.equal(narrow(x, c), wide(x, wider))
    other = torch.rand(n, sum(new), generator=rng)
    torch.testing.assert_close(wide(x, other), x @ wide.weight + other @ wide.design + wide.bias)


def test_an_axis_keeps_moves_and_begins_entries_by_hand():
    axis = Axis(4, np.array([0, 3]), {1: np.array([0, 1]), 2: np.array([], dtype=np.int64)})
    wide, fresh = axis.widened(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 0)
    assert wide.tolist() == [[1, 2], [2, 4], [0, 0], [3, 6]]
    assert fresh[:, 0].tolist() == [False, True, True, False]
    across, _ = axis.widened(torch.tensor([[1.0, 3.0]]), 1)
    assert across.tolist() == [[1, 2, 0, 3]]


def test_what_cannot_be_mapped_is_refused_by_name_with_what_to_type(model, query, reference):
    untrained = trifold.invae(model.schema, invariant=2, spurious=1, hidden=(4,))
    with pytest.raises(NotFittedError, match=r"map needs a trained model.*fit\(data\)"):
        untrained.map(query, **QUICK)
    bare = query.copy()
    del bare.obs["batch"]
    with pytest.raises(SchemaError, match=r"column 'batch' \(spurious\).*found assay, kind, truth.*query.obs\['batch'\]"):
        model.map(bare, **QUICK)
    with pytest.raises(DataError, match="g3"):
        model.map(query[:, [j for j in range(GENES) if j != 3]].copy(), **QUICK)
    odd = query.copy()
    odd.obs["kind"] = "type_9"
    with pytest.raises(SchemaError, match=r"'kind' \(invariant\); found 'type_9'. Mark such cells as '\?'"):
        model.map(odd, **QUICK)
    assert model.map(odd, unknown={"invariant": "zero"}, steps=1, **QUICK).card["mapped"][0]["trained"] == 120
    for wrong in ({"replay": 1.0}, {"lr": 0.0}, {"steps": 0}, {"independence": -1.0}):
        with pytest.raises(SpecError, match=next(iter(wrong))):
            model.map(query, reference=reference, **wrong, **QUICK)
    plain = trifold.gamma_vae(trifold.Schema.of(reference), latent=2, hidden=(8,)).fit(reference, epochs=1, **QUICK)
    with pytest.raises(SchemaError, match=r"spurious and condition.*no role.*Schema.of"):
        plain.map(query, **QUICK)
