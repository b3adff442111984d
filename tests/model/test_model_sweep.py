"""Sweeps: what may be chosen, what trials are compared by, and a study that is shared."""

from __future__ import annotations

import functools
import math
import sys
import time

import numpy as np
import pytest
import torch

import trifold
from trifold.errors import SpecError, TrainingError
from trifold.model import Model
from trifold.sweeps import range_of, sweep
from trifold.sweeps import study as studies
from trifold.sweeps.metric import columns_of
from trifold.sweeps.space import space_of

optuna = pytest.importorskip("optuna")
FIT = {"epochs": 2, "device": "cpu", "hold_out": {"condition": "drug", "cell_type": "type_1"}}


@pytest.fixture(scope="module")
def cells():
    return trifold.simulate(120, 15, types=3, conditions=("control", "drug"), depth=2.0, seed=4).adata


@pytest.fixture(scope="module")
def build(cells):
    return functools.partial(trifold.trvae, trifold.Schema.of(cells, condition="condition"), hidden=(8,), latent=3, rank=2)


# -- what may be chosen --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ends", "log"),
    [("8..40", (8, 40), False), ("1e-4..1e-2:log", (1e-4, 1e-2), True), ("-1..0.5", (-1, 0.5), False), (" 2..64:log ", (2, 64), True)],
)
def test_a_range_is_read_and_whole_ends_give_whole_numbers(text, ends, log):
    found = range_of("x", text)
    assert ((found.low, found.high), found.log) == (ends, log)
    assert found.whole == all(isinstance(e, int) for e in ends)


def test_options_are_toml_values_and_what_is_none_is_text():
    assert range_of("x", "[128]|[128, 64]|none|0.5|true").examples == [[128], [128, 64], "none", 0.5, True]
    assert range_of("x", [(8,), (8, 8)]).values == {"(8,)": (8,), "(8, 8)": (8, 8)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8", "needs 8..40"),
        ("8-40", "needs 8..40"),
        ("8...40", "'.40'"),
        ("8..", "found ''"),
        ("8..forty", "'forty'"),
        ("40..8", "Try latent=8..40"),
        ("8..8", "from a smaller to a larger"),
        ("0..1:log", "above 0 on a log scale"),
        ("1..8:lin", "needs 8..40"),
        ("a|a", "two different options"),
        ("a|", "none of them empty"),
        ("nan..1", "'nan'"),
    ],
)
def test_another_form_is_refused_with_what_to_type(text, said):
    with pytest.raises(SpecError) as error:
        range_of("latent", text)
    assert said in str(error.value)
    assert "latent" in str(error.value)


def test_bare_names_find_their_table(build):
    space = {"latent": "2..4", "lr": "1e-4..1e-2:log", "fit.batch": "16..64", "model.mmd": "0.1..10.0:log"}
    assert list(space_of(space, build)) == ["model.latent", "fit.lr", "fit.batch", "model.mmd"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("latnet", "2..4", "Did you mean 'latent'?"),
        ("fit.latent", "2..4", "It can choose: epochs, batch, lr"),
        ("data.genes", "10..15", "the same cells and genes"),
        ("modle.latent", "2..4", "Did you mean 'model'?"),
        ("seed", "0..4", "a lucky seed"),
        ("model.seed", "0..4", "a lucky seed"),
        ("fit.validation", "0.1..0.2", "the same cells"),
        ("hold_out", "a|b", "the same cells"),
        ("device", "cpu|cuda", "cannot choose 'device'"),
        ("kl", "0..1", "Write kl=0.0..1.0, or kl=0|1"),
    ],
)
def test_a_name_that_cannot_be_chosen_is_refused_before_any_trial(build, name, text, said):
    with pytest.raises(SpecError) as error:
        sweep(build, None, {name: text})
    assert said in str(error.value)


def test_a_name_may_not_come_twice(build):
    with pytest.raises(SpecError, match=r"model\.latent twice"):
        space_of({"latent": "2..4", "model.latent": "2..8"}, build)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fit": {"out": "run"}}, "no 'out'"),
        ({"fit": {"epcohs": 3}}, "Did you mean 'epochs'?"),
        ({"fit": {"validation": 0}}, "cells to watch"),
        ({"trials": 0}, "trials >= 1"),
        ({"storage": "sqlite://"}, "go together"),
        ({"study": "x"}, "go together"),
        ({"storage": "sqlite:////no/such/folder/x.db", "study": "x"}, "cannot be used"),
        ({"storage": "nonsense", "study": "x"}, "cannot be used"),
        ({"metric": "nll+rubbish"}, "'rubbish'"),
        ({"metric": "x*nll"}, "found 'x' in 'x*nll'"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(build, cells, given, said):
    with pytest.raises(SpecError) as error:
        sweep(build, cells, {"latent": "2..4"}, **given)
    assert said in str(error.value)


def test_without_optuna_the_error_says_what_to_type(build, cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SpecError, match=r"pip install 'trifold\[sweep\]'"):
        sweep(build, cells, {"latent": "2..4"})


# -- what trials are compared by -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patience", "decided"), [(None, "last"), (2, "best")])
def test_the_value_is_the_bound_of_the_weights_that_the_best_configuration_keeps(build, cells, patience, decided):
    fit = {**FIT, "epochs": 6, "patience": patience, "lr": 0.05}
    found = sweep(build, cells, {"kl": [0.01, 3.0], "batch": [20, 60]}, trials=3, fit=fit)
    model = build(**found.model).fit(cells, **found.fit, progress=False)
    rows = model.history.rows
    row = rows[-1] if decided == "last" else min(rows, key=lambda r: r["validation/loss"])
    assert found.value == row["validation/nll"] + row["validation/kl"]
    assert found.value == found.trials["value"].min()
    assert model.card["cells"]["held_out"] == ((cells.obs["condition"] == "drug") & (cells.obs["cell_type"] == "type_1")).sum()


def test_held_out_cells_do_not_change_a_choice(build, cells):
    other = cells.copy()
    held = ((cells.obs["condition"] == "drug") & (cells.obs["cell_type"] == "type_1")).to_numpy()
    x = other.X.toarray() if hasattr(other.X, "toarray") else other.X.copy()
    x[held] = np.random.default_rng(0).poisson(50, x[held].shape)
    other.X = x
    space = {"latent": "2..6", "lr": "1e-4..1e-1:log"}
    one, two = (sweep(build, a, space, trials=2, fit=FIT).trials for a in (cells, other))
    assert list(one["value"]) == list(two["value"])
    x[~held] = x[~held][::-1]
    other.X = x
    assert list(one["value"]) != list(sweep(build, other, space, trials=2, fit=FIT).trials["value"])


def test_a_sum_of_terms_is_compared_at_weights_of_its_own(build):
    model = build(kl=0.3, mmd=5.0)
    assert columns_of("elbo", model) == {"validation/nll": 1, "validation/kl": 1}
    assert columns_of("nll + kl+100*mmd", model) == {"validation/nll": 1, "validation/kl": 1, "validation/mmd": 100}


def test_the_bound_of_blocks_is_the_sum_over_blocks_and_an_energy_prior_has_none(cells):
    schema = trifold.Schema.of(cells, spurious="condition", invariant="cell_type")
    chosen = {"invariant": 2, "spurious": 2, "hidden": (8,)}
    found = columns_of("elbo", trifold.invae(schema, **chosen))
    assert set(found) == {"validation/nll", "validation/kl_invariant", "validation/kl_spurious"}
    with pytest.raises(SpecError, match="known up to a constant"):
        columns_of("elbo", trifold.invae(schema, prior="energy", **chosen))


def test_a_loss_whose_weights_are_chosen_is_not_compared(build, cells):
    sweep(build, cells, {"latent": "2..4"}, trials=2, fit=FIT, metric="loss")
    with pytest.raises(SpecError, match="agree in weights of the loss"):
        sweep(build, cells, {"kl": "0.1..1.0"}, trials=2, fit=FIT, metric="loss")


def test_a_term_that_is_switched_off_cannot_be_a_metric(build, cells):
    with pytest.raises(SpecError, match="'mmd', whose weight is 0"):
        sweep(build, cells, {"mmd": [0.0, 0.00001]}, trials=8, fit={**FIT, "epochs": 1}, metric="nll+mmd")


def test_densities_and_probabilities_are_not_compared(build, cells):
    with pytest.raises(SpecError, match="agree in values"):
        sweep(build, cells, {"likelihood": ["gaussian", "poisson"]}, trials=8, fit={**FIT, "epochs": 1})


# -- trials --------------------------------------------------------------------------------------------------------------------------


def test_a_failed_trial_is_kept_with_its_reason_and_the_study_goes_on(build, cells):
    told = []
    found = sweep(build, cells, {"lr": [1e-3, 1e30]}, trials=4, fit=FIT, report=told.append)
    states = found.trials.set_index("number")
    assert set(states["state"]) == {"finished", "failed"}
    failed = states[states["state"] == "failed"]
    assert (failed["fit.lr"] == 1e30).all()
    assert failed["reason"].str.contains("Lower lr").all()
    assert found.fit["lr"] == 1e-3
    assert [row["number"] for row in told] == [0, 1, 2, 3]
    assert [row["state"] for row in told] == list(states["state"])


def test_a_study_without_a_finished_trial_says_why(build, cells):
    with pytest.raises(TrainingError, match=r"2 of 2 failed, the last because: .*Lower lr"):
        sweep(build, cells, {"lr": [1e30, 1e31]}, trials=2, fit=FIT)


def test_too_little_memory_fails_the_trial_only(build, cells, monkeypatch):
    fit = Model.fit

    def small(self, data, **given):
        if given["batch"] == 64:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return fit(self, data, **given)

    monkeypatch.setattr(Model, "fit", functools.wraps(fit)(small))
    found = sweep(build, cells, {"batch": [32, 64]}, trials=4, fit=FIT)
    assert set(found.trials["reason"]) == {"", "out of memory"}
    assert found.fit["batch"] == 32


def test_a_hopeless_trial_is_cut_short_unless_told_not_to(build, cells, monkeypatch):
    monkeypatch.setattr(studies, "_EARLY", 1)
    space, fit = {"lr": [0.02, 1e-9]}, {**FIT, "epochs": 5}
    found = sweep(build, cells, space, trials=6, fit=fit)
    cut = found.trials[found.trials["state"] == "pruned"]
    assert (cut["fit.lr"] == 1e-9).any()
    assert (cut["epochs"] < 5).all()
    assert found.fit["lr"] == 0.02
    whole = sweep(build, cells, space, trials=6, fit=fit, prune=False).trials
    assert set(whole["state"]) == {"finished"}
    assert set(whole["epochs"]) == {5}


def test_generators_and_optunas_verbosity_are_left_as_found(build, cells):
    rng, state, level = torch.get_rng_state(), np.random.get_state()[1].copy(), optuna.logging.get_verbosity()
    sweep(build, cells, {"latent": "2..4"}, trials=1, fit=FIT)
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], state)
    assert optuna.logging.get_verbosity() == level


# -- a study that is shared ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path):
    return f"{request.param}:///{tmp_path / 'study'}" if request.param == "sqlite" else f"journal://{tmp_path / 'study.log'}"


def test_a_study_goes_on_where_it_stopped_and_chooses_as_if_it_had_not(build, cells, storage):
    space = {"latent": "2..6", "lr": "1e-4..1e-1:log"}
    kept = {"storage": storage, "study": "a"}
    first = sweep(build, cells, space, trials=1, fit=FIT, **kept)
    assert len(first.trials) == 1
    second = sweep(build, cells, space, trials=3, fit=FIT, **kept)
    once = sweep(build, cells, space, trials=3, fit=FIT)
    columns = ["number", "state", "value", "model.latent", "fit.lr"]
    assert second.trials[columns].equals(once.trials[columns])
    assert len(sweep(build, cells, space, trials=2, fit=FIT, **kept).trials) == 3  # nothing is left to do
    assert once.trials["fit.lr"].is_unique
    assert not once.trials[columns].equals(sweep(build, cells, space, trials=3, fit=FIT, seed=1).trials[columns])


def test_workers_of_other_data_or_settings_are_turned_away(build, cells, storage):
    kept = {"storage": storage, "study": "a", "fit": FIT, "trials": 1}
    sweep(build, cells, {"latent": "2..6"}, **kept)
    for other, said in (
        ({"space": {"latent": "2..7"}}, "agree in space"),
        ({"metric": "nll"}, "agree in metric"),
        ({"fit": {**FIT, "validation": 0.2}}, "agree in validation"),
        ({"fit": {**FIT, "hold_out": {"cell_type": "type_1"}}}, "agree in hold_out"),
        ({"data": cells[20:].copy(), "trials": 2}, "agree in fingerprint"),
    ):
        with pytest.raises(SpecError, match=said):
            sweep(build, **{"data": cells, "space": {"latent": "2..6"}, **kept, **other})


def test_a_study_of_someone_else_is_left_alone(build, cells, tmp_path):
    url = f"sqlite:///{tmp_path / 'study'}"
    theirs = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=theirs, study_name="theirs").optimize(lambda trial: trial.suggest_float("y", 0, 1), n_trials=1)
    theirs.engine.dispose()
    with pytest.raises(SpecError, match="that trifold did not make"):
        sweep(build, cells, {"latent": "2..6"}, storage=url, study="theirs", trials=2)


def test_a_trial_whose_worker_died_is_run_again(build, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "_HEARTBEAT", 1)
    kept = {"storage": f"sqlite:///{tmp_path / 'study'}", "study": "a", "fit": FIT}
    sweep(build, cells, {"latent": "2..6"}, trials=1, **kept)
    with studies.quiet(optuna), studies.study_of(optuna, kept["storage"], "a", 0, prune=True) as held:
        with pytest.warns(UserWarning, match="Heartbeat"):
            trial = held.ask()
        held._storage.record_heartbeat(trial._trial_id)
    time.sleep(3.1)
    states = sweep(build, cells, {"latent": "2..6"}, trials=2, **kept).trials["state"]
    assert list(states) == ["finished", "failed", "finished"]


def test_passwords_of_a_storage_are_not_said(build, cells):
    with pytest.raises(SpecError) as error:
        sweep(build, cells, {"latent": "2..4"}, storage="nodialect://me:secret@host/x", study="a")
    assert "secret" not in str(error.value)


def test_an_interrupted_trial_does_not_count(build, cells, tmp_path, monkeypatch):
    kept = {"storage": f"sqlite:///{tmp_path / 'study'}", "study": "a", "fit": FIT}

    def stopped(self, data, **given):
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "fit", functools.wraps(Model.fit)(stopped))
        with pytest.raises(SystemExit):
            sweep(build, cells, {"latent": "2..6"}, trials=1, **kept)
    found = sweep(build, cells, {"latent": "2..6"}, trials=1, **kept)
    assert list(found.trials["state"]) == ["failed", "finished"]
    assert found.number == 1
    assert math.isnan(found.trials["value"][0])
