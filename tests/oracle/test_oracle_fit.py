"""The training loop on its own: seeds, early stopping, what it does when a value is not finite."""

from __future__ import annotations

import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from trifold.errors import DeviceError, SpecError, TrainingError, TrifoldWarning
from trifold.records import Batch, Progress, Report, Rows
from trifold.train import History, Plan, fit, launch
from trifold.train import fit as _fit_function

CPU = {"device": "cpu"}


class Line(nn.Module):
    """y = a x with noise from torch's own generator, dropout, and a normalisation that keeps running values."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.0))
        self.norm = nn.BatchNorm1d(1)
        self.drop = nn.Dropout(0.2)

    def loss(self, batch: Batch) -> torch.Tensor:
        x = batch.rows.to_dense()
        y = self.drop(self.a * self.norm(x)) + 0.01 * torch.randn_like(x)
        return (y - x).square().mean()


def report(value: torch.Tensor, **others: torch.Tensor) -> Report:
    values = {"fit": value, **others}
    return Report(loss=sum(values.values()), values={k: v.detach() for k, v in values.items()}, weights=dict.fromkeys(values, 1.0))


def data(n: int = 4) -> list[Batch]:
    rng = torch.Generator().manual_seed(0)
    return [Batch(Rows.of_dense(torch.randn(8, 1, generator=rng)), torch.ones(8, 1)) for _ in range(n)]


def run(net: nn.Module, step=None, *, plan: Plan | None = None, batches=None, epochs: int = 3, **options) -> History:
    step = step or (lambda batch, at: report(net.loss(batch)))
    some = data()
    options = {"steps": len(some), "cells": 32, **CPU, **options}
    return fit(net, step, batches or (lambda epoch, first: some[first:]), plan or Plan(patience=None), epochs=epochs, **options)


def test_fit_leaves_every_global_generator_as_it_found_it():
    torch.manual_seed(11), np.random.seed(12), random.seed(13)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    run(Line(), validation=data)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_the_same_seed_gives_bit_identical_weights_whatever_the_global_generator_and_another_seed_others():
    found = []
    for seed, elsewhere in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(elsewhere)
        net = Line()
        run(net, seed=seed)
        found.append(net.state_dict())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert not torch.equal(found[0]["a"], found[2]["a"])


def test_the_network_comes_back_in_evaluation_mode_on_the_cpu():
    net = Line()
    run(net)
    assert not any(m.training for m in net.modules())
    assert net.a.device.type == "cpu"


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 1, 7, 25])
def test_a_value_that_is_not_finite_at_step_k_stops_the_run_by_step_and_term_with_finite_weights(broken, value, at):
    net = Line()

    def step(batch: Batch, progress: Progress) -> Report:
        good, extra = net.loss(batch), net.a * 0.0
        if progress.step == at and broken == "loss":
            extra = extra + value
        if progress.step == at and broken == "gradient":
            net.norm(batch.rows.dense * value)  # running values are spoilt as a real step would spoil them
            extra = torch.sqrt(net.a.square() * 0.0) * 1.0  # a finite value whose gradient is NaN
        return report(good, extra=extra)

    with pytest.raises(TrainingError) as caught:
        run(net, step, epochs=10)
    assert caught.value.step == at
    assert caught.value.term == ("extra" if broken == "loss" else "gradient")
    assert ("'extra'" if broken == "loss" else "gradient") in str(caught.value)
    assert f"step {at}" in str(caught.value)
    assert "Lower lr" in str(caught.value)
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())
    assert not net.training


def test_the_term_is_named_and_not_the_gradient_that_it_spoils_whatever_their_names():
    net = Line()
    with pytest.raises(TrainingError) as caught:
        run(net, lambda batch, at: report(net.loss(batch), zzz=net.a * float("nan")))
    assert caught.value.term == "zzz"


@pytest.mark.parametrize("epochs", [1, 2, 9])
def test_on_a_device_that_is_looked_at_rarely_the_first_bad_step_is_still_named_and_good_weights_put_back(monkeypatch, epochs):
    """As on a GPU: a look every 20 steps, at the end of each epoch, and never a silent end."""
    module = __import__("trifold.train.fit", fromlist=["Guard"])
    usual = module.Guard
    monkeypatch.setattr(module, "Guard", lambda network, every: usual(network, every=20))
    net, at = Line(), 4 * epochs - 2

    def step(batch: Batch, progress: Progress) -> Report:
        return report(net.loss(batch), extra=net.a * (float("nan") if progress.step >= at else 0.0))

    with pytest.raises(TrainingError) as caught:
        run(net, step, epochs=epochs)
    assert (caught.value.step, caught.value.term) == (at, "extra")
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())


def odd_from(first: int, last: int):
    net = Line()
    return net, lambda batch, at: report(net.loss(batch), extra=net.a * 0 + (3e5 if first <= at.step <= last else 0.0))


def test_a_loss_that_stays_ten_thousand_times_the_first_one_stops_the_run_and_names_the_largest_term():
    net, step = odd_from(23, 99)
    with pytest.raises(TrainingError, match="ten thousand times") as caught:
        run(net, step, epochs=10)
    assert (caught.value.step, caught.value.term) == (27, "extra")
    assert "put back to step 19" in str(caught.value)


def test_one_odd_minibatch_in_an_epoch_does_not_stop_the_run():
    net, step = odd_from(6, 9)
    assert len(run(net, step)) == 3


def test_a_validation_loss_that_is_not_finite_stops_the_run_and_is_named():
    net = Line()
    bad = [Batch(Rows.of_dense(torch.full((4, 1), float("nan"))), torch.ones(4, 1))]
    with pytest.raises(TrainingError, match="validation loss") as caught:
        run(net, validation=lambda: bad)
    assert caught.value.term == "validation loss"
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())


class Counter(nn.Module):
    """Its weight is the number of steps done: says which weights were kept."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.0))


def watched(losses: list[float], *, patience: int | None, epochs: int = 50) -> tuple[Counter, History]:
    net, seen = Counter(), iter(losses)

    def step(batch: Batch, at: Progress) -> Report:
        if net.training:
            return report(-net.a)  # Adam moves a by lr each step
        return report(net.a * 0 + next(seen))

    plan = Plan(lr=1.0, patience=patience, plateau=None, clip=None)
    return net, run(net, step, plan=plan, epochs=epochs, batches=lambda epoch, first: data(1), validation=lambda: data(1))


def test_early_stopping_keeps_the_best_weights():
    net, history = watched([5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 1.0], patience=3)
    assert len(history) == 6
    assert net.a.item() == pytest.approx(3, abs=1e-3)  # after the third epoch of one step


def test_without_patience_training_goes_on_and_the_last_weights_are_kept():
    net, history = watched([5.0, 2.0, 3.0, 3.0, 3.0], patience=None, epochs=5)
    assert len(history) == 5
    assert net.a.item() == pytest.approx(5, abs=1e-3)


def test_without_validation_the_last_weights_are_kept():
    net = Counter()
    run(net, lambda batch, at: report(-net.a), plan=Plan(lr=1.0, clip=None), batches=lambda epoch, first: data(1), epochs=4)
    assert net.a.item() == pytest.approx(4, abs=1e-3)


def test_a_plateau_lowers_the_learning_rate_and_the_cosine_rises_then_falls_to_two_percent():
    net = Counter()
    plan = Plan(lr=1.0, plateau=2, patience=None, clip=None)
    history = run(
        net, lambda b, at: report(net.a * 0 + 1.0), plan=plan, epochs=8, batches=lambda e, first: data(1), validation=lambda: data(1)
    )
    assert [round(r["lr"], 4) for r in history.rows][:5] == [1, 1, 1, 0.3, 0.3] or history.rows[-1]["lr"] < 0.3
    cosine = [Plan(decay="cosine").rate(Progress(step=s, steps=200)) for s in range(201)]
    assert cosine[0] == pytest.approx(1 / 20, abs=1e-3)
    assert cosine[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in itertools.pairwise(cosine[19:]))


def test_an_interrupted_run_leaves_finite_weights_the_generators_and_evaluation_mode():
    net, state = Line(), torch.get_rng_state()

    def step(batch: Batch, at: Progress) -> Report:
        if at.step == 5:
            raise KeyboardInterrupt
        return report(net.loss(batch))

    with pytest.raises(KeyboardInterrupt):
        run(net, step)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m.training for m in net.modules())
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())
    assert net.a.item() != 0  # the steps that were done are kept


def test_history_holds_means_over_cells_of_batches_of_different_size_and_survives_csv():
    net = Counter()
    sizes = [Batch(Rows.of_dense(torch.zeros(n, 1)), torch.ones(n, 1)) for n in (3, 1)]
    history = run(net, lambda b, at: report(net.a * 0 + float(b.n)), batches=lambda e, first: sizes, epochs=2)
    assert history.rows[0]["train/fit"] == pytest.approx((3 * 3 + 1) / 4)
    assert [r["step"] for r in history.rows] == [2, 4]
    again = History.from_csv(history.to_csv())
    assert again.rows == history.rows
    assert again.frame().shape == (2, len(history.columns))
    assert History.from_csv(History().to_csv()).rows == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"patience": 0},
        {"validation": 1.0},
        {"validation": -0.1},
        {"decay": "linear"},
        {"clip": 0.0},
        {"weight_decay": -1.0},
        {"precision": "16"},
        {"steps": 0},
        {"plateau": 0},
    ],
)
def test_a_plan_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        Plan(**wrong)


def test_the_number_of_epochs_comes_from_the_size_of_the_data():
    plan = Plan(steps=6000, batch=128)
    assert [plan.epochs_for(n) for n in (10, 128 * 100, 10**7)] == [400, 60, 8]
    assert Plan(epochs=3).epochs_for(10**7) == 3


def test_a_device_that_is_not_there_is_named():
    for absent in {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.items():
        if not absent[1]:
            with pytest.raises(DeviceError, match=absent[0]):
                launch(absent[0])
    with pytest.raises(DeviceError, match="tpu"):
        launch("tpu")
    assert _fit_function is fit


def test_compile_that_fails_says_why_and_training_goes_on_with_the_same_numbers(monkeypatch):
    def broken(step, **options):
        def run(*args):
            torch.randn(3)  # what was drawn before the failure is put back
            raise RuntimeError("no compiler here\nand more")

        return run

    plain, other = Line(), Line()
    run(plain)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(TrifoldWarning, match=r"torch.compile failed \(RuntimeError: no compiler here\); training goes on without it"):
        run(other, plan=Plan(patience=None, compile=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.slow
def test_a_compiled_step_gives_the_numbers_of_the_plain_one(monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "fallback_random", True)  # the same noise
    plain, other = Line(), Line()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrifoldWarning)  # it did not fall back
        warnings.simplefilter("ignore", DeprecationWarning)
        one, two = run(plain), run(other, plan=Plan(patience=None, compile=True))
    assert [r["train/loss"] for r in two.rows] == pytest.approx([r["train/loss"] for r in one.rows], rel=1e-5)


def test_larger_minibatches_get_higher_rates_and_fewer_steps_that_see_more_cells():
    plan = Plan(batch=128, lr=1e-3, steps=1_600)
    assert plan.at(128) == plan
    assert plan.at(64) == Plan(batch=64, lr=1e-3, steps=1_600)
    large = plan.at(2048)
    assert (large.batch, large.lr, large.steps) == (2048, pytest.approx(4e-3), 400)
