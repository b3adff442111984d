"""The profile of a training step: all of its time is somebody's, the right one's, and the model is left as found."""

from __future__ import annotations

import copy
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import trifold
from trifold import profiling
from trifold.data import Cells
from trifold.profiling import profile


@pytest.fixture
def cpu_time(monkeypatch):
    """Seconds of this thread, which other processes do not lengthen."""
    monkeypatch.setattr(profiling, "_clock", time.thread_time)


def parts(table):
    return table[table["kind"] == "part"].set_index("part")["ms"]


def whole(table):
    return float(table.loc[table["kind"] == "step", "ms"].iloc[0])


@pytest.fixture(scope="module")
def wide():
    return trifold.simulate(400, 600, types=3, conditions=("a", "b"), depth=1.0, seed=1).adata


def test_the_parts_sum_to_the_step_within_six_per_cent(wide, cpu_time):
    model = trifold.trvae(trifold.Schema.of(wide, condition="condition"))
    table = profile(model, wide, steps=30, device="cpu")
    assert list(parts(table).index) == [
        "reading", "encoder", "decoder", "likelihood", "kl", "mmd", "shrinkage", "rest", "backward", "clip and guard", "optimiser"
    ]  # fmt: skip
    assert parts(table).sum() == pytest.approx(whole(table), rel=0.06)
    assert (parts(table) > 0).all()
    assert table.loc[table["kind"] == "part", "share"].sum() == pytest.approx(1, rel=0.06)
    assert table.attrs["cells_per_second"] == pytest.approx(1e3 * 128 / whole(table))


@pytest.mark.slow
def test_the_step_takes_what_a_step_of_fit_takes(wide, cpu_time):
    model = trifold.trvae(trifold.Schema.of(wide, condition="condition"))

    def seconds(epochs: int) -> float:
        began = time.thread_time()
        copy.deepcopy(model).fit(wide, epochs=epochs, batch=100, device="cpu", progress=False)
        return time.thread_time() - began

    seconds(1)
    plain = min(seconds(26) for _ in range(3)) - min(seconds(1) for _ in range(3))
    assert whole(profile(model, wide, batch=100, device="cpu")) == pytest.approx(1e3 * plain / 100, rel=0.2)


class Clocked(torch.autograd.Function):
    """Identity whose gradient takes 3 ms of the clock that the test turns."""

    @staticmethod
    def forward(ctx, z, now):
        ctx.now = now
        return z.sum(1) * 1.0

    @staticmethod
    def backward(ctx, up):
        ctx.now[0] += 3e-3
        return torch.zeros(len(up), 4), None


class Slow(trifold.Term):
    """Takes 7 ms forward, 3 backward, and asks the decoder, whose time is then this term's."""

    def __init__(self, now):
        super().__init__()
        self.now = now

    def __deepcopy__(self, memo):
        return Slow(self.now)

    def forward(self, p):
        p.vae.decode(p.z, p.batch)
        self.now[0] += 7e-3
        return Clocked.apply(p.z, self.now)


def test_time_goes_to_the_part_that_took_it(study, schema, monkeypatch):
    now = [0.0]

    def taking(seconds, f):
        def g(*args, **kwargs):
            now[0] += seconds
            return f(*args, **kwargs)

        return g

    monkeypatch.setattr(profiling, "_clock", lambda: now[0])
    monkeypatch.setattr(profiling, "_products", lambda *_, **__: [])
    monkeypatch.setattr(Cells, "assemble", taking(5e-3, Cells.assemble))
    monkeypatch.setattr(nn.utils, "get_total_norm", taking(2e-3, nn.utils.get_total_norm))
    adam = sys.modules["torch.optim.adam"]
    monkeypatch.setattr(adam, "adam", taking(11e-3, adam.adam))
    model = trifold.trvae(schema, latent=4, hidden=(8,))
    objective = trifold.Objective({"nll": trifold.NLL(), "slow": Slow(now)}, {"slow": 0.5})
    monkeypatch.setattr(type(model.vae.decoder), "forward", taking(1e-3, type(model.vae.decoder).forward))
    table = profile(trifold.Model(schema, model.vae, objective), study.adata, steps=6, batch=40, device="cpu")
    expected = {"reading": 5, "decoder": 1, "slow": 8, "backward": 3, "clip and guard": 2, "optimiser": 11}
    assert parts(table).to_dict() == pytest.approx(dict.fromkeys(parts(table).index, 0) | expected, abs=1e-6)
    assert whole(table) == pytest.approx(30)


def test_a_scheduled_term_weighs_what_it_weighs_at_the_end(study, schema, monkeypatch):
    seen = []
    look = profiling._Timeline._forward
    monkeypatch.setattr(profiling._Timeline, "_forward", lambda self, a, b, out: (seen.append(out.weights["kl"]), look(self, a, b, out))[1])
    profile(trifold.trvae(schema, latent=4, hidden=(8,)), study.adata, steps=2, device="cpu")
    assert set(seen) == {1.0}


def test_the_model_and_the_generators_are_left_as_found(study, trained):
    before = copy.deepcopy(trained.network.state_dict())
    rng, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    facts = (copy.deepcopy(trained.card), len(trained.history), trained.plan, dict(trained.objective.weights))
    profile(trained, study.adata, steps=2, batch=32, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in trained.network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], state)
    assert facts == (trained.card, len(trained.history), trained.plan, trained.objective.weights)
    for module in (*trained.vae.modules(), *trained.objective.modules()):
        assert not any((module.training, module._forward_hooks, module._forward_pre_hooks))
    optimizer = sys.modules["torch.optim.optimizer"]
    assert not any((optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks))


def test_threads_are_set_for_the_profile_and_put_back(study, trained, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    profile(trained, study.adata, steps=1, device="cpu", threads=3)
    assert calls == [3, torch.get_num_threads()]


def test_the_bound_holds_every_linear_layer_and_no_gradient_in_x(study, schema, monkeypatch):
    calls = []
    monkeypatch.setattr(profiling, "_ms", lambda f, device: calls.append(tuple(f().shape)) or 1.0)
    model = trifold.trvae(schema, latent=4, hidden=(8,), rank=2)
    table = profile(model, study.adata, steps=3, batch=50, device="cpu")
    forward = table[table["kind"] == "forward"]
    linear = [n for n, m in model.vae.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "RowsLinear"]
    assert list(forward["part"]) == linear
    first = table[table["part"] == "posterior.network.first"]
    assert set(first["what"]) == {"50 × 40 → 8"}
    assert calls[:2] == [(50, 8), (40, 8)]  # forward, and the gradient in the weights: none in x
    assert (50, 40) not in calls[1:2]
    assert first.set_index("kind")["ms"].to_dict() == {"forward": 1.0, "backward": 1.0}
    assert set(table.loc[table["kind"] == "backward", "ms"].iloc[1:]) == {2.0}
    assert table.loc[table["kind"] == "bound", "ms"].iloc[0] == len(linear) * 3 - 1
    assert table.attrs["share_of_bound"] == pytest.approx((len(linear) * 3 - 1) / whole(table))


def test_operators_are_counted_alike_each_time_and_more_terms_take_more(study, schema):
    def operators(objective):
        vae = trifold.trvae(schema, latent=4, hidden=(8,)).vae
        return profile(trifold.Model(schema, vae, objective), study.adata, steps=2, device="cpu").attrs["operators"]

    few, again = (operators(trifold.Objective({"nll": trifold.NLL()})) for _ in range(2))
    assert few == again > 20
    assert operators(trifold.Objective({"nll": trifold.NLL(), "kl": trifold.KL()})) > few


@pytest.mark.parametrize("given", [{"steps": 0}, {"threads": 0}])
def test_numbers_below_one_are_refused_by_name(study, trained, given):
    with pytest.raises(trifold.errors.SpecError, match=f"{next(iter(given))} >= 1; found 0"):
        profile(trained, study.adata, **given)
