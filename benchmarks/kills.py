"""A hundred kills (SIGKILL) at random moments while checkpoints, and saved runs, are written: item 46 of the reliability scorecard.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 20 --seed 1

A child, forked from this process, writes as often as it can with the functions that training uses: a network of some 100,000 weights with
its moments, all of which equal the number of the step. It is killed; then the newest one is read, with every hash: it must be the last that
was finished, or the one that was being finished, and all its values those of that step. The next child goes on from there. In the end
nothing that was half done may be left. Writes results/kills.csv; the exit status is 1 if one of them fails.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from speed_workers import Table, machine, say

WIDTH = 300


def state(k: int):
    """A state of training whose weights and moments are all k."""
    import torch
    from torch import nn

    from trifold.train.guard import Guard
    from trifold.train.state import Position, State

    net = nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.Adam(net.parameters())
    for p in net.parameters():
        p.data.fill_(k)
        optimizer.state[p] = {"step": torch.tensor(float(k)), "exp_avg": p.data.clone(), "exp_avg_sq": p.data.clone()}
    return State(net, optimizer, Guard(net, every=1), Position(done=k, lr=1.0))


def checkpoints(folder: Path):
    from trifold.train import Checkpoints

    return Checkpoints(folder / "run.checkpoint", every=1, minutes=None, about={"seed": 0})


def write_checkpoint(folder: Path, k: int) -> None:
    checkpoints(folder).write(state(k))


def read_checkpoint(folder: Path) -> int:
    """The step of the newest checkpoint; -1 if its values are not all of that step."""
    found = state(0)
    if not checkpoints(folder).restore(found):
        return 0
    k = found.at.done
    held = [*found.network.parameters(), *(t for moments in found.optimizer.state.values() for t in moments.values())]
    return k if all(bool((t == k).all()) for t in held) else -1


def write_run(folder: Path, k: int) -> None:
    from trifold import store

    weights = dict(state(k).network.state_dict())
    store.write_run(folder / "run", card={"k": k}, schema={}, spec={}, weights=weights, history=str(k))


def read_run(folder: Path) -> int:
    """The number of the run that is read; -1 if its values are not all of it."""
    from trifold import store

    if not any(folder.glob("run*")):
        return 0
    parts = store.read_run(folder / "run")
    k = int(parts["card"]["k"])
    return k if all(bool((t == k).all()) for t in parts["weights"].values()) and parts["history"] == str(k) else -1


def killed(folder: Path, done: int, write: Callable[[Path, int], None], after: float) -> int:
    """Let a child write from ``done`` + 1 on, kill it so many seconds after its first; the last that it said was finished."""
    mine, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for k in range(done + 1, done + 10**6):
                write(folder, k)
                os.write(theirs, k.to_bytes(4, "big"))
        finally:
            os._exit(1)
    os.close(theirs)
    said = os.read(mine, 4)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    while more := os.read(mine, 4):
        said = more
    os.close(mine)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError("the child ended before it was killed; its messages are above.")
    return int.from_bytes(said, "big")


def main() -> None:
    """Kill, read, print, write."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--kills", type=int, default=100, help="of each kind of writing")
    ask.add_argument("--longest", type=float, default=0.1, help="seconds after the first write at which a child is killed at the latest")
    ask.add_argument("--seed", type=int, default=0, help="of the random moments")
    ask.add_argument("--out", type=Path, help="where the CSV file is written; default: benchmarks/results")
    given = ask.parse_args()
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    chance, here = random.Random(given.seed), machine()
    say(f"{here['processor']}, {here['cores']} cores, Python {here['python']}, {here['date']}")
    table, failed = Table("kills", ("what",), folder=given.out, fresh=True), 0
    for what, write, read in (("checkpoints", write_checkpoint, read_checkpoint), ("saved runs", write_run, read_run)):
        with tempfile.TemporaryDirectory() as name:
            folder, done, good, halves = Path(name), 0, 0, 0
            for _ in range(given.kills):
                said = killed(folder, done, write, chance.uniform(0, given.longest))
                halves += any(folder.rglob(".*.part"))
                done = read(folder)
                good += done in (said, said + 1)
            write(folder, done + 1)
            left = [p.name for p in folder.rglob(".*")]
            clean = not left and read(folder) == done + 1
        failed += good < given.kills or not clean
        found = {"kills": given.kills, "whole": good, "in the middle of a write": halves, "written": done, "left half done": len(left)}
        table.add(what=what, **found)
        say(f"{what}: {good} of {given.kills} whole; {halves} came in the middle of a write; {done} were written; left half done: {left}")
    table.show(("what", "kills", "whole", "in the middle of a write", "written", "left half done"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
