"""Training that was stopped goes on bit for bit: weights, moments, generators, position, history."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trifold import folders
from trifold.errors import CheckpointError, CorruptModelError, Interrupted, TrainingError, TrifoldWarning
from trifold.records import Batch, Progress, Report, Rows
from trifold.train import Checkpoints, History, Plan, fit
from trifold.train.state import State

EPOCHS, STEPS = 4, 5
PLAN = Plan(patience=3, plateau=1, lr=0.05, decay="cosine")


class Net(nn.Module):
    """A layer with dropout, noise from torch's own generator, and running values."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.a = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.3)

    def step(self, batch: Batch, at: Progress) -> Report:
        y = self.norm(self.drop(batch.rows.to_dense() @ self.a)) + 0.1 * torch.randn(batch.n, 2)
        value = (y - batch.rows.to_dense()[:, :2]).square().mean()
        return Report(loss=value, values={"fit": value.detach()}, weights={"fit": 1.0})


def minibatches(epoch: int, first: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(epoch)
    return [Batch(Rows.of_dense(torch.randn(6, 3, generator=rng)), torch.ones(6, 1)) for _ in range(STEPS)][first:]


def checkpoints(folder: Path, *, every: int | None = 1, minutes: float | None = None, **about: object) -> Checkpoints:
    return Checkpoints(folder / "run.checkpoint", every=every, minutes=minutes, about={"seed": 3, **about})


def train(
    folder: Path, *, stop: tuple[int, ...] = (), resume: bool = False, kept: Checkpoints | None = None, **options
) -> tuple[Net, History]:
    net = Net()

    def step(batch: Batch, at: Progress) -> Report:
        if at.step in stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return net.step(batch, at)

    options = {"epochs": EPOCHS, "validation": lambda: minibatches(99, 0), **options}
    kept = kept or checkpoints(folder)
    history = fit(net, step, minibatches, PLAN, steps=STEPS, cells=30, seed=3, device="cpu", checkpoints=kept, resume=resume, **options)
    return net, history


def last(folder: Path) -> dict[str, Tensor]:
    path = sorted((folder / "run.checkpoint").glob("step-*"))[-1]
    parts, said = folders.read_folder(path, ("state.safetensors", "state.json"), what="The checkpoint")
    return folders.tensors_in(parts["state.safetensors"], said, "state.safetensors")


def without_clock(history: History) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    net, history = train(folder)
    return net.state_dict(), without_clock(history), last(folder)


@pytest.mark.parametrize("at", range(EPOCHS * STEPS))
def test_a_run_that_was_stopped_at_any_step_ends_with_the_bits_of_the_uninterrupted_one(whole, tmp_path, at):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"checkpoint of step {at + 1}.*resume=True") as caught:
        train(tmp_path, stop=(at,), kept=checkpoints(tmp_path, every=None))
    assert (caught.value.signal, caught.value.code) == (15, 143)
    assert signal.getsignal(signal.SIGTERM) is before
    net, history = train(tmp_path, resume=True)
    assert same(net.state_dict(), whole[0])
    assert without_clock(history) == whole[1]
    if at < EPOCHS * STEPS - 1:  # else nothing was left to do, and no further checkpoint was written
        assert same(last(tmp_path), whole[2])


def test_a_run_that_was_stopped_many_times_does_too(whole, tmp_path):
    for at in (0, 1, 4, 5, 12):
        with pytest.raises(Interrupted):
            train(tmp_path, stop=(at,), resume=True)
    net, history = train(tmp_path, resume=True)
    assert same(net.state_dict(), whole[0])
    assert without_clock(history) == whole[1]


@pytest.mark.parametrize("left_out", ["optimizer", "generator", "index"])
def test_what_a_checkpoint_holds_is_needed(whole, tmp_path, monkeypatch, left_out):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=(7,))
    usual = State.restore

    def restore(self: State, tensors: dict[str, Tensor], facts: dict) -> None:
        now = torch.get_rng_state()
        usual(self, tensors, facts)
        if left_out == "optimizer":
            self.optimizer.state.clear()
        if left_out == "generator":
            torch.set_rng_state(now)
        if left_out == "index":
            self.at.index = 0

    monkeypatch.setattr(State, "restore", restore)
    net, _ = train(tmp_path, resume=True)
    assert not same(net.state_dict(), whole[0])


def test_the_last_two_checkpoints_are_kept_and_the_older_one_serves_when_the_newer_is_damaged(whole, tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=(9,))
    found = sorted((tmp_path / "run.checkpoint").iterdir())
    assert [p.name for p in found] == ["step-0000000009", "step-0000000010"]
    data = bytearray((found[1] / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (found[1] / "state.safetensors").write_bytes(data)
    with pytest.warns(TrifoldWarning, match="goes on from step-0000000009"):
        net, _ = train(tmp_path, resume=True)
    assert same(net.state_dict(), whole[0])


def test_when_none_is_whole_that_is_said(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=(3,))
    for path in (tmp_path / "run.checkpoint").iterdir():
        (path / "state.json").write_bytes(b"{}")
    with pytest.raises(CorruptModelError, match=r"No checkpoint in .* is whole"):
        train(tmp_path, resume=True)


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=(3,), kept=checkpoints(tmp_path, batch=128))
    with pytest.raises(CheckpointError, match=r"batch = 128; this one has 64"):
        train(tmp_path, resume=True, kept=checkpoints(tmp_path, batch=64))


def test_without_resume_earlier_checkpoints_are_dropped_and_training_begins_anew(whole, tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, stop=(12,))
    with pytest.raises(Interrupted):
        train(tmp_path, stop=(2,))
    assert [p.name for p in sorted((tmp_path / "run.checkpoint").iterdir())] == ["step-0000000002", "step-0000000003"]


def test_checkpoints_by_time_and_by_step(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    by_time, by_step = checkpoints(tmp_path, every=None, minutes=2), checkpoints(tmp_path, every=4)
    clock[0] = 119.0
    assert not by_time.due(4)
    clock[0] = 120.0
    assert by_time.due(5)
    assert [k for k in range(1, 10) if by_step.due(k)] == [4, 8]
    for wrong in ({"every": 0}, {"every": None, "minutes": 0.0}):
        with pytest.raises(CheckpointError, match=r"above 0|>= 1"):
            checkpoints(tmp_path, **wrong)


def test_no_checkpoint_holds_weights_that_are_not_finite(tmp_path):
    net = Net()

    def step(batch: Batch, at: Progress) -> Report:
        out = net.step(batch, at)
        return out if at.step < 6 else Report(loss=out.loss * float("nan"), values={"fit": out.loss.detach() * float("nan")}, weights={})

    with pytest.raises(TrainingError):
        fit(net, step, minibatches, PLAN, steps=STEPS, epochs=2, cells=30, device="cpu", checkpoints=checkpoints(tmp_path))
    assert all(torch.isfinite(t).all() for t in last(tmp_path).values() if t.is_floating_point())


def test_ctrl_c_twice_does_not_wait(tmp_path):
    net = Net()

    def step(batch: Batch, at: Progress) -> Report:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        return net.step(batch, at)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit(net, step, minibatches, PLAN, steps=STEPS, epochs=2, cells=30, device="cpu", checkpoints=checkpoints(tmp_path))
    assert time.monotonic() - began < 4


def test_a_process_that_does_not_catch_it_ends_with_the_documented_code(tmp_path):
    text = "from trifold.errors import Interrupted\nraise Interrupted('stopped', signal=15)"
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, check=False).returncode == 143
