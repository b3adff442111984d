"""Training that is stopped and killed again and again for a while ends with the weights of the run that nobody disturbed.

    python benchmarks/soak.py
    python benchmarks/soak.py --minutes 2 --every 10

The same ``fit`` on simulated data twice: once undisturbed, for about ``--minutes`` (a first short run says how many epochs these are); once
with a random signal (SIGTERM, SIGINT or SIGKILL) about every ``--every`` seconds, each time resumed by a new process. SHA-256 of all
weights of both runs must be equal. Writes results/soak.csv; the exit status is 1 if they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from speed_workers import Table, machine, say

CELLS, GENES, STEPS = 4_000, 1_000, 200  # steps between checkpoints
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


def train(out: Path, epochs: int) -> None:
    """Train, or go on."""
    import torch

    import trifold as tri

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = tri.simulate(CELLS, GENES, types=4, conditions=2, latent=3, depth=1.0, seed=5).adata
    model = tri.trvae(tri.Schema.of(data, condition="condition"), latent=10)
    print("ready", flush=True)
    options = {"validation": 0.1, "patience": epochs, "device": "cpu", "progress": False, "checkpoint_every": STEPS}
    model.fit(data, epochs=epochs, out=out, resume=True, **options)


def start(out: Path, epochs: int) -> subprocess.Popen[str]:
    """A process that trains, once it has begun to.

    Raises:
        RuntimeError: It did not begin.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--do", str(out), str(epochs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError("training did not begin.")
    return process


def undisturbed(out: Path, epochs: int) -> float:
    """Train to the end; seconds that it took.

    Raises:
        RuntimeError: It failed.
    """
    began = time.monotonic()
    if status := start(out, epochs).wait():
        raise RuntimeError(f"training ended with status {status}.")
    return time.monotonic() - began


def enough(folder: Path, seconds: float) -> int:
    """How many epochs take about so many seconds, by runs that are longer and longer than the start of a process."""
    undisturbed(folder / "0", 1)  # whatever is compiled or cached the first time
    start, epochs = undisturbed(folder / "1", 1), 8
    while (took := undisturbed(folder / str(epochs), epochs)) < start + min(10, seconds / 4):
        epochs *= 2
    return max(epochs, round((seconds - start) * (epochs - 1) / (took - start)))


def disturbed(out: Path, epochs: int, every: float, chance: random.Random) -> dict[str, int]:
    """Train to the end against signals; how many of each came.

    Raises:
        RuntimeError: A process ended in another way than by its signal.
    """
    came = {number.name: 0 for number in SIGNALS}
    while True:
        process, number = start(out, epochs), chance.choice(SIGNALS)
        try:
            status = process.wait(chance.uniform(0.5, 1.5) * every)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            status = process.wait()
            if status not in (0, -number, 128 + number):
                raise RuntimeError(f"after {number.name}, training ended with status {status}.") from None
            came[number.name] += 1
            say(f"{number.name}: ended with status {status}")
        if status == 0:
            return came
        if status not in (*(-n for n in SIGNALS), *(128 + n for n in SIGNALS)):
            raise RuntimeError(f"training ended with status {status}.")


def digest(out: Path) -> str:
    """SHA-256 of all weights."""
    from trifold import store

    total = hashlib.sha256()
    for name, tensor in sorted(store.read_run(out)["weights"].items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def main() -> None:
    """Train, disturb, compare, write."""
    if sys.argv[1:2] == ["--do"]:
        train(Path(sys.argv[2]), int(sys.argv[3]))
        return
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--minutes", type=float, default=20.0, help="that the undisturbed run takes, about")
    ask.add_argument("--every", type=float, default=60.0, help="seconds between signals, about")
    ask.add_argument("--seed", type=int, default=0, help="of signals and their moments")
    ask.add_argument("--out", type=Path, help="where the CSV file is written; default: benchmarks/results")
    given = ask.parse_args()
    here = machine()
    say(f"{here['processor']}, {here['cores']} cores, Python {here['python']}, {here['date']}")
    table = Table("soak", ("minutes", "every"), folder=given.out, fresh=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        epochs = enough(folder / "tried", 60 * given.minutes)
        say(f"{epochs} epochs are about {given.minutes:g} minutes")
        took = undisturbed(folder / "whole", epochs)
        came = disturbed(folder / "run", epochs, given.every, random.Random(given.seed))
        truth, found = digest(folder / "whole"), digest(folder / "run")
        left = sorted(p.name for p in folder.iterdir() if p.name not in ("tried", "whole", "run"))
    equal = truth == found and not left
    result = "equal" if equal else "DIFFERENT"
    table.add(
        minutes=given.minutes,
        every=given.every,
        epochs=epochs,
        seconds=round(took),
        **came,
        result=result,
        digest=found[:16],
        left=len(left),
    )
    say(f"{sum(came.values())} signals {came}: {result}, {found[:16]} for {truth[:16]}; left beside the runs: {left or 'nothing'}")
    table.show(("minutes", "every", "epochs", "seconds", *came, "result", "digest"))
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
