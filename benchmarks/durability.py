"""Whether training can be stopped, killed and repeated: items L5, L6 and L7 of the reliability scorecard, with their printed result.

    python benchmarks/durability.py
    python benchmarks/durability.py --part resume --points 5 --preset trvae
    python benchmarks/durability.py --part leaks --cycles 20

resume (L5): SHA-256 of all parameters and moments of the optimiser after some steps, of a run that is not disturbed and of runs that are
asked to stop at random steps (SIGTERM, mid-epoch too), killed at random steps and killed at random moments (SIGKILL), each resumed by a new
process; then of runs whose checkpoint has lost the optimiser's moments, the generator's state or the sampler's position, which must differ,
or else the test sees nothing. repeat (L6): the same seed twice for each number of threads, and how far numbers of threads differ. leaks
(L7): fit, save, load and predict again and again; resident memory, open handles and temporary files. Writes results/durability.csv; the
exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from speed_workers import Table, environment, machine, resident, say

CELLS, GENES, BATCH, EPOCHS, LAST = 600, 200, 32, 9, 101  # 15 steps an epoch, so that the last step counted lies within one
MIDDLE = 53  # steps, within an epoch, after which the controls lose a part of the state
EVERY = 7  # steps between checkpoints of runs that are killed
GROWTH = 1.0  # MB a cycle
CLOSE = 1e-3  # relative difference of the loss between numbers of threads
MADE = "generator.cpu"


# -- one training, in a process of its own -------------------------------------------------------------------------------------------------


def model_of(preset: str, at: int | None, number: int) -> tuple[Any, Any]:
    """(untrained model, data): a preset with dropout, noise, an MMD or a probe, early stopping and plateaus: everything that has a state.

    Args:
        preset: ``"trvae"`` or ``"invae"``.
        at: Step, from 0, during which the process gets a signal; None: none.
        number: The signal.
    """
    import trifold as tri
    from durability_stop import Stop
    from trifold.terms import Objective

    data = tri.simulate(CELLS, GENES, types=3, conditions=2, latent=3, depth=1.0, seed=5).adata
    if preset == "trvae":
        model = tri.trvae(tri.Schema.of(data, condition="condition"), latent=4, hidden=(32, 16))
    else:
        model = tri.invae(tri.Schema.of(data, spurious="condition", invariant="cell_type"), invariant=3, spurious=2, hidden=(32,))
    stop = Stop()
    model.objective = Objective(model.objective.terms, {**model.objective.weights, "nll": stop})
    stop.at, stop.signal = at, number
    return model, data


def train(preset: str, out: Path, *, stop: int | None, number: int, every: int | None, threads: int) -> None:
    """Train, or go on; it ends by the signal, or writes the run."""
    import torch

    torch.set_num_threads(threads)
    model, data = model_of(preset, stop, number)
    print("ready", flush=True)
    options: dict[str, Any] = {"epochs": EPOCHS, "batch": BATCH, "validation": 0.2, "patience": 6, "device": "cpu", "progress": False}
    model.fit(data, out=out, resume=True, checkpoint_every=every, checkpoint_minutes=60.0, **options)


class Runs:
    """Trainings in processes of their own, and what they left.

    Args:
        folder: Where.
        preset: Which.
        threads: Of each.
    """

    def __init__(self, folder: Path, preset: str, threads: int):
        self.folder, self.preset, self.threads = folder, preset, threads

    def start(self, name: str, *, stop: int | None, number: int = signal.SIGTERM, every: int | None = None) -> subprocess.Popen[str]:
        """A process that has begun to train ``name``."""
        command = [sys.executable, __file__, "--do", self.preset, str(self.folder / name), json.dumps(stop), str(int(number))]
        command += [json.dumps(every), str(self.threads)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(self.threads, own=True))
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{name} did not begin; its messages are above.")
        return process

    def run(self, name: str, *, stop: int | None, number: int = signal.SIGTERM, every: int | None = None) -> None:
        """Train until the signal comes (after step ``stop``), or to the end.

        Raises:
            RuntimeError: It ended in another way.
        """
        process = self.start(name, stop=stop, number=number, every=every)
        status = process.wait()
        wanted = 0 if stop is None else 128 + number if number == signal.SIGTERM else -number
        if status != wanted:
            raise RuntimeError(f"{name} ended with status {status}; expected {wanted}.")

    def finish(self, name: str) -> str:
        """Go on to the last step counted, and the digest there."""
        self.run(name, stop=LAST - 1)
        return self.digest(name)

    def checkpoint(self, name: str, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / f"{name}.checkpoint" / f"step-{step:010d}"

    def tensors(self, name: str, step: int = LAST) -> dict[str, np.ndarray]:
        """All parameters and moments."""
        from safetensors.numpy import load_file

        tensors = load_file(self.checkpoint(name, step) / "state.safetensors")
        return {key: tensors[key] for key in sorted(tensors) if key.startswith(("network.", "optimizer."))}

    def digest(self, name: str, step: int = LAST) -> str:
        """SHA-256 of all parameters and moments."""
        total = hashlib.sha256()
        for key, tensor in self.tensors(name, step).items():
            total.update(f"{key} {tensor.dtype} {tensor.shape}".encode())
            total.update(np.ascontiguousarray(tensor).tobytes())
        return total.hexdigest()

    def copy(self, name: str, new: str) -> None:
        """Another run with the same checkpoints."""
        shutil.copytree(self.folder / f"{name}.checkpoint", self.folder / f"{new}.checkpoint")

    def clear(self, name: str) -> None:
        """Remove a run."""
        for path in self.folder.glob(f"{name}*"):
            shutil.rmtree(path)


def without(path: Path, what: str) -> None:
    """Rewrite a checkpoint, hashes and all, as if a part of the state had never been saved."""
    import torch
    from safetensors.torch import load_file, save

    from trifold.folders import dump, write_folder

    tensors, facts = load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text())
    if what == "optimiser":
        tensors = {k: t for k, t in tensors.items() if not k.startswith("optimizer.")}
    elif what == "generator":
        tensors[MADE] = torch.Generator().manual_seed(99).get_state()
    else:
        facts["at"]["index"] = 0
    shutil.rmtree(path)
    write_folder(path, {"state.safetensors": save(tensors), "state.json": dump(facts)}, tensors, previous=None, what="The checkpoint")


# -- checks --------------------------------------------------------------------------------------------------------------------------------


def resume(given: argparse.Namespace, folder: Path, table: Table) -> None:
    """L5."""
    for preset in given.preset:
        runs, chance = Runs(folder, preset, given.threads[0]), random.Random(given.seed)
        runs.run("whole", stop=LAST - 1)
        truth = runs.digest("whole")
        say(f"{preset}: {LAST} steps, undisturbed: {truth[:16]}")
        runs.run("again", stop=LAST - 1)
        note(table, "L5", preset, "undisturbed, again", runs.digest("again") == truth, truth[:16])
        points = sorted(chance.sample(range(LAST - 2), given.points))
        same = []
        for at in points:
            runs.run("stopped", stop=at)
            same.append(runs.finish("stopped") == truth)
            say(f"{preset}: stopped after step {at + 1}: {'equal' if same[-1] else 'DIFFERENT'}")
            runs.clear("stopped")
        note(table, "L5", preset, f"stopped by SIGTERM at {len(points)} steps", all(same), f"{sum(same)} of {len(same)} equal: {points}")
        same = []
        for at in sorted(chance.sample(range(LAST - 2), given.points)):
            runs.run("killed", stop=at, number=signal.SIGKILL, every=EVERY)
            same.append(runs.finish("killed") == truth)
            say(f"{preset}: killed in step {at + 1}: {'equal' if same[-1] else 'DIFFERENT'}")
            runs.clear("killed")
        killed = f"killed in {len(same)} steps, a checkpoint every {EVERY}"
        note(table, "L5", preset, killed, all(same), f"{sum(same)} of {len(same)} equal")
        same, ended = [], 0
        for _ in range(given.points):
            process = runs.start("moment", stop=LAST - 1, every=1)
            time.sleep(chance.uniform(0.2, given.longest))
            process.kill()
            over = process.wait() == 128 + signal.SIGTERM
            ended += over
            same.append((runs.digest("moment") if over else runs.finish("moment")) == truth)
            say(f"{preset}: killed at a random moment: {'equal' if same[-1] else 'DIFFERENT'}{' (it had ended)' if over else ''}")
            runs.clear("moment")
        found = f"{sum(same)} of {len(same)} equal, {ended} of which had ended before"
        note(table, "L5", preset, "killed at random moments, a checkpoint every step", all(same), found)
        runs.run("base", stop=MIDDLE - 1)
        for what in ("optimiser", "generator", "sampler"):
            runs.copy("base", what)
            without(runs.checkpoint(what, MIDDLE), what)
            note(table, "L5", preset, f"control: without the {what}'s state", runs.finish(what) != truth, "differs, as it must")
        for name in ("whole", "again", "base", "optimiser", "generator", "sampler"):
            runs.clear(name)


def repeat(given: argparse.Namespace, folder: Path, table: Table) -> None:
    """L6."""
    for preset in given.preset:
        losses, weights, digests = {}, {}, {}
        for threads in given.threads:
            runs = Runs(folder, preset, threads)
            found = []
            for name in ("first", "second"):
                runs.run(name, stop=LAST - 1)
                found.append(runs.digest(name))
            history = json.loads((runs.checkpoint("first", LAST) / "state.json").read_text())["history"]
            losses[threads] = np.array([row["train/loss"] for row in history])
            learned = [t.astype(float).ravel() for k, t in runs.tensors("first").items() if k.startswith("network.")]
            weights[threads], digests[threads] = np.concatenate(learned), found[0]
            runs.clear("first")
            runs.clear("second")
            note(table, "L6", preset, f"the same seed twice, {threads} thread(s)", found[0] == found[1], found[0][:16])
        if len(losses) > 1:
            one, *others = given.threads
            apart = max(float(np.abs(losses[k] / losses[one] - 1).max()) for k in others)
            moved = max(float(np.linalg.norm(weights[k] - weights[one]) / np.linalg.norm(weights[one])) for k in others)
            detail = f"relative difference of the loss {apart:.1e}, of the weights {moved:.1e}"
            detail += "; bit-equal" if len(set(digests.values())) == 1 else "; not bit-equal"
            note(table, "L6", preset, f"{' and '.join(map(str, losses))} threads", apart < CLOSE, detail)


def leaks(given: argparse.Namespace, folder: Path, table: Table) -> None:
    """L7, in this process."""
    import torch

    import trifold as tri

    torch.set_num_threads(given.threads[0])
    own = folder / "temporary"
    own.mkdir()
    before, tempfile.tempdir = tempfile.gettempdir(), str(own)
    memory, handles, litter = [], [], []
    for cycle in range(given.cycles):
        model, data = model_of("trvae", None, 0)
        model.objective.weights["nll"] = 1.0
        model.fit(data, epochs=2, batch=128, device="cpu", progress=False, seed=cycle, out=folder / "run", checkpoint_every=4)
        model.save(folder / "saved")
        tri.load(folder / "saved").predict(data, to={"condition": "condition_1"})
        del model, data
        gc.collect()
        memory.append(resident("VmRSS"))
        handles.append(len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0)
        litter.append([str(p.relative_to(own)) for p in own.rglob("*") if not p.relative_to(own).parts[0].startswith("torchinductor_")])
        if cycle % max(1, given.cycles // 10) == 0 or cycle == given.cycles - 1:
            say(f"cycle {cycle + 1}: {memory[-1]:.0f} MB, {handles[-1]} handles, {len(litter[-1])} temporary files")
    tempfile.tempdir = before
    first = given.cycles // 10  # what libraries keep from their first use is no leak
    growth = slope(np.array(memory[first:]))
    last = np.array(memory[given.cycles // 2 :])
    detail = f"{growth:.3f} MB a cycle; {memory[first]:.0f} MB at cycle {first + 1}, {memory[-1]:.0f} MB at {given.cycles}"
    note(table, "L7", "trvae", f"memory over {given.cycles} cycles", growth < GROWTH, f"{detail}; second half {slope(last):.3f} MB a cycle")
    more = max(handles[first:]) - handles[first]
    note(table, "L7", "trvae", f"open handles over {given.cycles} cycles", more == 0, f"{handles[first]}, at most {more} more")
    most = max(litter, key=len)  # PyTorch's compiler makes a folder for its cache, which is not counted
    note(table, "L7", "trvae", "temporary files", not most, ", ".join(most[:5]) or "none after any cycle")
    beside = sorted(p.name for p in folder.iterdir() if p.name not in ("temporary", "run", "run.previous", "saved", "saved.previous"))
    note(table, "L7", "trvae", "nothing else beside the runs", not beside, ", ".join(beside) or "nothing")


def slope(values: np.ndarray) -> float:
    """Median of the slopes between all pairs (Theil and Sen), per step."""
    i, j = np.triu_indices(len(values), 1)
    return float(np.median((values[j] - values[i]) / (j - i))) if len(values) > 1 else 0.0


def note(table: Table, item: str, preset: str, what: str, passed: bool, detail: str) -> None:
    """A row, and a line."""
    table.add(item=item, preset=preset, what=what, result="passed" if passed else "FAILED", detail=detail)
    say(f"{item} {preset}, {what}: {'passed' if passed else 'FAILED'} ({detail})")


PARTS = {"resume": resume, "repeat": repeat, "leaks": leaks}


def main() -> None:
    """Check, print, write."""
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--do"]:
        preset, out, stop, number, every, threads = sys.argv[2:]
        train(preset, Path(out), stop=json.loads(stop), number=int(number), every=json.loads(every), threads=int(threads))
        return
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--part", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    ask.add_argument("--preset", nargs="+", choices=("trvae", "invae"), default=["trvae", "invae"])
    ask.add_argument("--points", type=int, default=20, help="at least 1: random points at which a run is stopped, and killed")
    ask.add_argument("--longest", type=float, default=2.5, help="seconds of training after which a run is killed at the latest")
    ask.add_argument("--cycles", type=int, default=200)
    ask.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    ask.add_argument("--seed", type=int, default=0, help="of the random points")
    ask.add_argument("--out", type=Path, help="where the CSV file is written; default: benchmarks/results")
    given = ask.parse_args()
    here = machine()
    say(f"{here['processor']}, {here['cores']} cores, Python {here['python']}, {here['date']}")
    table = Table("durability", ("item", "preset", "what"), folder=given.out, fresh=True)
    for part in given.part:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            PARTS[part](given, Path(folder), table)
    table.show(("item", "preset", "what", "result", "detail"))
    if any(row["result"] == "FAILED" for row in table.rows if table.has(**row)):  # of this run
        sys.exit(1)


if __name__ == "__main__":
    main()
