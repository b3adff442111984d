"""Reliability items 45 and 46: signals and kills while a model is trained or written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from fault_cases import study, unchanged
from training_cases import QUICK, equal, model, names, quick

import trifold
from trifold import folders
from trifold.errors import Interrupted


class StopAt:
    """Sends this process a signal at the end of an epoch."""

    def __init__(self, epoch: int, number: int):
        self.epoch, self.number = epoch, number

    def __call__(self, row: dict[str, float]) -> None:
        if row["epoch"] == self.epoch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_item_45_a_signal_finishes_the_step_writes_a_checkpoint_and_resume_goes_on_to_the_same_bits(first, run, number):
    a, options = study(), {**QUICK, "epochs": 4, "out": run}
    before = signal.getsignal(number)
    with quick(), unchanged(a), pytest.raises(Interrupted) as caught:
        model(first.schema).fit(a, on_epoch=StopAt(1, number), **options)
    steps = 2 * 3 + 1  # 48 cells of training: three minibatches in each of two epochs, and the step that was finished
    assert caught.value.code == 128 + number
    assert f"signal {int(number)}" in str(caught.value)
    assert f"checkpoint of step {steps} is in {str(run) + '.checkpoint'!r}" in str(caught.value)
    assert "resume=True" in str(caught.value)
    assert signal.getsignal(number) is before
    assert names(run.with_name("run.checkpoint")) == {f"step-{steps:010d}"}
    assert equal(trifold.load(run), first)
    again = model(first.schema).fit(a, resume=True, **options)
    assert equal(again, model(first.schema).fit(a, epochs=4, **QUICK))
    assert names(run.parent) == {"run", "run.previous"}


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
from torch import nn
torch.set_num_threads(1)
from trifold import folders, outputs, store
from trifold.train import Checkpoints
from trifold.train.guard import Guard
from trifold.train.state import Position, State

def state(k):
    net = nn.Linear(300, 300)
    nn.init.constant_(net.weight, k)
    return State(net, torch.optim.Adam(net.parameters()), Guard(net, every=1), Position(done=k, lr=1.0))

def kept(folder):
    return Checkpoints(folder / "run.checkpoint", every=1, minutes=None, about={})

def checkpoint(folder, k):
    kept(folder).write(state(k))

def save(folder, k):
    store.write_run(folder / "run", card={"k": k}, schema={}, spec={}, weights={"w": torch.full((300, 300), float(k))}, history="")

def checkpoint_found(folder):
    found = state(0)
    assert kept(folder).restore(found)
    assert bool((found.network.weight == found.at.done).all())
    return found.at.done

def save_found(folder):
    parts = store.read_run(folder / "run")
    assert bool((parts["weights"]["w"] == parts["card"]["k"]).all())
    return parts["card"]["k"]

chance, out = random.Random(int(sys.argv[2])), []
for what, write, read in (("checkpoint", checkpoint, checkpoint_found), ("save", save, save_found)):
    done = 0
    folder = Path(sys.argv[1]) / what
    for _ in range(int(sys.argv[3])):
        mine, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            for k in range(done + 1, 10**6):
                write(folder, k)
                os.write(theirs, k.to_bytes(4, "big"))
        os.close(theirs)
        said = os.read(mine, 4)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(mine, 4):
            said = more
        os.close(mine)
        before, done = int.from_bytes(said, "big"), read(folder)
        assert done in (before, before + 1), (what, before, done)
    write(folder, done + 1)
    print(what, read(folder) - done, *sorted(p.name for p in folder.rglob(".*")))
"""


def test_item_46_kills_at_random_moments_while_checkpoints_and_runs_are_written_cost_nothing_that_was_finished(tmp_path):
    """Four kills of each; benchmarks/kills.py does a hundred. The next write clears what they left half done."""
    said = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path), "0", "4"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "checkpoint 1\nsave 1\n", "")


def test_item_46_unfinished_folders_of_living_writers_are_left_alone(tmp_path):
    for name in (".run.dead0000.part", ".run.alive000.part"):
        (tmp_path / name).mkdir()
    handle = folders._lock(tmp_path / ".run.alive000.part", folders._EXCLUSIVE)
    assert handle is not None
    folders.sweep(tmp_path, ".run.*.part")
    assert names(tmp_path) == {".run.alive000.part"}
    folders._unlock(handle)
    folders.sweep(tmp_path, ".run.*.part")
    assert names(tmp_path) == set()
