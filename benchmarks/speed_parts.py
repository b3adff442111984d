"""Parts of speed.py that do not train SCVI's network: presets beside their published packages, terms beside a plain step, and the start."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from speed_data import Data
from speed_workers import HERE, Table, Worker, environment, met, rate, say, script, turns

TRVAE = {2: 4.0, 8: 8.0, 32: 50.0}
INVAE, MMD, CURVATURE = 4.0, 0.15, {3: 2.0, 10: 2.5}
SECONDS, MEGABYTES = 0.5, 100.0
CELLS, GENES, HIDDEN = 4_096, 2_000, 128
_LAUNCH = """
import json, os, sys, time
began = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, used = os.wait4(child, 0)
wall = time.perf_counter() - began
print(json.dumps({"status": status, "wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024 / 1e6}))
"""


def conditions(given: argparse.Namespace, data: Data) -> Table:
    """``trvae`` beside scArches' TRVAE, by number of conditions; both with MMD, one hidden layer of 128, latent 10, negative binomial."""
    table = Table("speed_conditions", ("conditions", "batch", "threads"), folder=given.out, fresh=given.fresh)
    for threads in given.threads:
        for k in given.conditions:
            for batch in given.batch:
                key = {"conditions": k, "batch": batch, "threads": threads}
                if table.has(**key):
                    continue
                folder = data(CELLS, GENES, batches=k)
                asked = {"name": "trvae", "batch": batch, "hidden": [HIDDEN], "latent": [10], "column": "batch", "mmd": True}
                out = beside(given, threads, folder, asked, peer="trvae_scarches")
                table.add(**key, cells=CELLS, genes=GENES, **out, **verdict(out, TRVAE.get(k)))
                say(f"trvae, {k} conditions, batch {batch}, {threads} thread(s): {out.get('ratio', float('nan')):.1f}x scArches")
    return table


def invae(given: argparse.Namespace, data: Data) -> Table:
    """``invae`` beside the published package; both with biology and batch known, one hidden layer of 128, latents of 9 and 1."""
    table = Table("speed_invae", ("batch", "threads"), folder=given.out, fresh=given.fresh)
    for threads in given.threads:
        for batch in given.batch:
            key = {"batch": batch, "threads": threads}
            if table.has(**key):
                continue
            asked = {"name": "invae", "batch": batch, "hidden": [HIDDEN], "latent": [9, 1], "column": "batch", "mmd": True}
            out = beside(given, threads, data(CELLS, GENES), asked, peer="invae")
            table.add(**key, cells=CELLS, genes=GENES, **out, **verdict(out, INVAE))
            say(f"invae, batch {batch}, {threads} thread(s): {out.get('ratio', float('nan')):.1f}x the published package")
    return table


def beside(given: argparse.Namespace, threads: int, folder: str, asked: dict[str, Any], *, peer: str) -> dict[str, Any]:
    """Cells per second of a preset and of its peer, in turns; the peer's script runs anew for each turn and times its epochs itself."""
    latent = [str(d) for d in asked["latent"]] if peer == "invae" else [str(asked["latent"][0])]
    arguments = ["--data", folder, "--epochs", "1", "--batch", str(asked["batch"]), "--hidden", *map(str, asked["hidden"])]
    arguments += ["--latent", *latent, "--threads", str(threads)]
    with Worker(sys.executable, HERE / "speed_ours.py", threads=threads, name="trifold") as worker:
        worker.ask("preset", folder=folder, **asked)
        sides: dict[str, Worker | None] = {"trifold": worker} | ({peer: None} if peer in given.peer else {})

        def turn(_: str, side: Worker | None) -> dict[str, Any]:
            if side is not None:
                return side.ask("epochs", n=turn_of(given, asked["batch"]))
            return script(given.peer[peer], HERE / "peers" / f"speed_{peer}.py", arguments, threads=threads)

        found = turns(sides, given.repetitions, turn)
    speed = {name: rate(answers, "wall", CELLS) for name, answers in found.items()}
    out: dict[str, Any] = {"repetitions": given.repetitions}
    out |= {f"{name} cells/s (wall)": float(np.median(v)) for name, v in speed.items()}
    if peer in speed:
        ratio = speed["trifold"] / speed[peer]
        out |= {"ratio": float(np.median(ratio)), "ratio from": float(ratio.min()), "ratio to": float(ratio.max())}
        out["peer says"] = json.dumps({k: v for k, v in found[peer][-1].items() if isinstance(v, (str, dict))})
    return out


def turn_of(given: argparse.Namespace, batch: int) -> int:
    """Epochs of a turn of ours: at least 64 steps."""
    return max(given.turn, -(-64 * batch // CELLS))


def verdict(out: dict[str, Any], target: float | None) -> dict[str, Any]:
    """The target, and whether the ratio meets it."""
    if target is None or "ratio" not in out:
        return {}
    return {"target": target, "verdict": met(out["ratio"], target)}


def mmd(given: argparse.Namespace, data: Data) -> Table:
    """Share of a step of ``trvae`` that the MMD takes: two models in two processes, one with the term and one without, in turns."""
    table = Table("speed_mmd", ("conditions", "batch", "threads"), folder=given.out, fresh=given.fresh)
    for threads in given.threads:
        for k in given.conditions:
            for batch in given.batch:
                key = {"conditions": k, "batch": batch, "threads": threads}
                if table.has(**key):
                    continue
                asked = {"name": "trvae", "batch": batch, "hidden": [HIDDEN], "latent": [10], "column": "batch"}
                folder, path, n = data(CELLS, GENES, batches=k), HERE / "speed_ours.py", turn_of(given, batch)
                with (
                    Worker(sys.executable, path, threads=threads, name="with MMD") as on,
                    Worker(sys.executable, path, threads=threads, name="without MMD") as off,
                ):
                    for worker, wanted in ((on, True), (off, False)):
                        worker.ask("preset", folder=folder, mmd=wanted, **asked)
                    found = turns({"on": on, "off": off}, given.repetitions, lambda _, worker, n=n: worker.ask("epochs", n=n))
                out: dict[str, Any] = {}
                for unit in ("wall", "cpu"):
                    seconds = {name: np.array([a[unit] for a in answers]) for name, answers in found.items()}
                    out[f"share ({unit})"] = float(np.median(1 - seconds["off"] / seconds["on"]))
                    out[f"ms per step ({unit})"] = 1e3 * float(np.median(seconds["on"])) / (n * -(-CELLS // batch))
                table.add(
                    **key,
                    cells=CELLS,
                    genes=GENES,
                    repetitions=given.repetitions,
                    **out,
                    target=MMD,
                    verdict=met(-out["share (cpu)"], -MMD),
                )
                say(f"MMD, {k} conditions, batch {batch}, {threads} thread(s): {100 * out['share (cpu)']:.1f} % of a step")
    return table


def curvature(given: argparse.Namespace, data: Data) -> Table:
    """A training step with the curvature term over one without, as benchmarks/curvature.py makes them, which has more rows."""
    table = Table("speed_curvature", ("d", "threads"), folder=given.out, fresh=given.fresh)
    steps = 12 * given.repetitions
    for threads in given.threads:
        for d, target in CURVATURE.items():
            if table.has(d=d, threads=threads):
                continue
            arguments = ["--curvature", str(d), "--steps", str(steps), "--threads", str(threads)]
            out = script(sys.executable, Path(__file__), arguments, threads=threads)
            table.add(d=d, threads=threads, genes=GENES, steps=steps, **out, target=target, verdict=met(-out["ratio"], -target))
            say(f"curvature, d = {d}, {threads} thread(s): a step takes {out['ratio']:.2f} of a plain one")
    return table


def curvature_steps(d: int, steps: int) -> dict[str, float]:
    """Medians of plain steps and of steps with curvature, in turns in this process, and the median of their ratio; milliseconds."""
    import torch

    import curvature as steps_of
    import trifold as tri
    from speed_workers import spent

    torch.manual_seed(0)
    x = torch.randn(steps_of.CELLS, 4) @ torch.randn(4, GENES) + torch.randn(steps_of.CELLS, GENES)
    benches = [steps_of.Bench(x, d, None), steps_of.Bench(x, d, lambda: tri.Curvature(points=steps_of.POINTS))]
    times: list[list[tuple[float, float]]] = []
    for i in range(steps + 5):
        row = []
        for bench in benches:
            began = spent()
            bench.step()
            ended = spent()
            row.append((ended[0] - began[0], ended[1] - began[1]))
        times += [row] if i >= 5 else []
    t = 1e3 * np.array(times)  # steps, plain and curved, wall and CPU
    ratio = np.median(t[:, 1] / t[:, 0], 0)
    plain, curved = np.median(t[:, :, 0], 0).tolist()
    return {"plain, ms": plain, "curvature, ms": curved, "ratio": float(ratio[0]), "ratio (cpu)": float(ratio[1])}


def start(given: argparse.Namespace, data: Data) -> Table:
    """Seconds and memory of ``import trifold`` and ``trifold --help`` in fresh processes, beside Python's own and ``import torch``."""
    table = Table("speed_start", ("what",), folder=given.out, fresh=given.fresh)
    commands = {
        "python -c pass": ["-c", "pass"],
        "import trifold": ["-c", "import trifold"],
        "trifold --help": ["-m", "trifold", "--help"],
        "import torch": ["-c", "import torch"],
    }
    commands = {what: command for what, command in commands.items() if not table.has(what=what)}
    found: dict[str, list[dict[str, Any]]] = {what: [] for what in commands}
    for i in range(given.repetitions + 1):
        for what, command in commands.items():
            answer = launch([sys.executable, *command])
            found[what] += [answer] if i else []
    for what, answers in found.items():
        out = {k: float(np.median([a[k] for a in answers])) for k in ("wall", "cpu", "peak")}
        own: dict[str, Any] = {}
        if "trifold" in what:
            fits = out["wall"] < SECONDS and (out["peak"] < MEGABYTES or what != "import trifold")
            own = {
                "target": f"{SECONDS} s" + (f", {MEGABYTES:g} MB" if what == "import trifold" else ""),
                "verdict": "met" if fits else "missed",
            }
        table.add(what=what, repetitions=given.repetitions, **out, **own)
        say(f"{what}: {out['wall']:.2f} s, {out['peak']:.0f} MB")
    return table


def launch(command: list[str]) -> dict[str, Any]:
    """Seconds and peak memory (MB) of a command, started from a process so small that its own memory does not count."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCH, *command], stdout=subprocess.PIPE, text=True, env=environment(1, own=True), check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer["status"]:
        raise RuntimeError(f"{' '.join(command)} ended with status {answer['status']}.")
    return answer


def main() -> None:
    """The child of ``curvature``."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--curvature", type=int, required=True, metavar="D", help="number of latent dimensions")
    ask.add_argument("--steps", type=int, required=True)
    ask.add_argument("--threads", type=int, default=1)
    given = ask.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    print(json.dumps(curvature_steps(given.curvature, given.steps)), flush=True)


if __name__ == "__main__":
    main()
