"""How fast trifold trains, encodes and starts, beside its peers and the matrix multiplications that none can do without.

    python benchmarks/speed.py --peer scvi=PYTHON --peer trvae_scarches=PYTHON --peer invae=PYTHON
    python benchmarks/speed.py --part training quality --peer scvi=PYTHON --likelihood nb --batch 128 --threads 1
    python benchmarks/speed.py --part start curvature

PYTHON is the interpreter of an environment that has the peer (peers/README.md). Parts: training, quality, latent (against scvi-tools'
SCVI), conditions (trvae against scArches), mmd (its share of a step), invae (against the published package), curvature, start. Data are
simulated (speed_data.py), written once to a temporary folder, and read by all sides. Sides live in processes of their own and take turns; a
turn is some whole epochs after one that is not timed, so that set-up and compilation do not count. Medians over turns; a ratio is the
median of the ratios of turns made one after the other. Each part prints its table and writes results/speed_PART.csv; rows that are there
already are kept, unless --fresh asks for them anew, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import speed_parts
from speed_data import Data
from speed_workers import HERE, Table, Worker, machine, met, rate, say, turns

NETWORK = {"hidden": 128, "latent": 10}
TARGETS = {("nb", 128): 5.0, ("nb", 1024): 4.0, ("zinb", 128): 4.0, ("zinb", 1024): 4.0}
BOUND, LATENT, ELBO = 0.5, 5.0, 0.005
AT = (1, 2, 3, 4, 6, 8, 10, 13, 16, 20)  # epochs at which held-out bounds are taken, for 20 epochs


def sizes(given: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """(cells, genes): as asked for 2,000 genes, fewer cells of more genes, so that a turn lasts as long."""
    for genes in given.genes:
        yield max(2048, round(given.cells * min(1.0, 2000 / genes))), genes


def rows(given: argparse.Namespace) -> Iterator[tuple[int, int, int, str, int]]:
    """(threads, cells, genes, likelihood, batch) of the parts that train SCVI's network."""
    for threads in given.threads:
        for cells, genes in sizes(given):
            for likelihood in given.likelihood:
                for batch in given.batch:
                    if genes == given.genes[0] or likelihood == given.likelihood[0]:  # of more genes, one likelihood
                        yield threads, cells, genes, likelihood, batch


def workers(given: argparse.Namespace, stack: ExitStack, threads: int, *, bound: bool) -> dict[str, Worker]:
    """A process of each side."""
    out = {"trifold": Worker(sys.executable, HERE / "speed_ours.py", threads=threads, name="trifold")}
    if "scvi" in given.peer:
        out["scvi"] = Worker(given.peer["scvi"], HERE / "peers" / "speed_scvi.py", threads=threads, name="scvi-tools")
    if bound:
        out["bound"] = Worker(sys.executable, HERE / "speed_bound.py", threads=threads, name="bound")
    for worker in out.values():
        stack.enter_context(worker)
    return out


def setup(
    sides: dict[str, Worker],
    given: argparse.Namespace,
    data: Data,
    cells: int,
    genes: int,
    likelihood: str,
    batch: int,
    *,
    warm: bool = False,
) -> str:
    """Every side ready; the versions that they report."""
    shape: dict[str, Any] = {"likelihood": likelihood, "batch": batch, "hidden": NETWORK["hidden"]}
    folder, found = data(cells, genes), {}
    for name, worker in sides.items():
        if name == "bound":
            worker.ask("setup", cells=cells, genes=genes, **shape)
            continue
        own = {"norm": given.norm} if name == "trifold" else {}
        answer = worker.ask("setup", folder=folder, latent=NETWORK["latent"], warm=warm, **shape, **own)
        found |= {k: v for k, v in answer.items() if k not in ("cells", "genes")}
    return ", ".join(f"{k} {v}" for k, v in found.items())


def training(given: argparse.Namespace, data: Data) -> Table:
    """Cells per second of training, and the share of the bound that is reached."""
    table = Table("speed_training", ("likelihood", "batch", "genes", "cells", "threads", "norm"), folder=given.out, fresh=given.fresh)
    for threads in given.threads:
        todo = [r for r in rows(given) if r[0] == threads and not table.has(**key_of(r, given))]
        if not todo:
            continue
        with ExitStack() as stack:
            sides = workers(given, stack, threads, bound=True)
            for row in todo:
                _, cells, genes, likelihood, batch = row
                versions = setup(sides, given, data, cells, genes, likelihood, batch)
                found = turns(sides, given.repetitions, lambda _, worker: worker.ask("epochs", n=given.turn))
                out: dict[str, Any] = {"versions": versions, "repetitions": given.repetitions}
                for unit in ("wall", "cpu"):
                    speed = {name: rate(answers, unit, cells) for name, answers in found.items()}
                    out |= {f"{name} cells/s ({unit})": float(np.median(v)) for name, v in speed.items()}
                    alone = rate(found["bound"], f"decoder {unit}", cells)
                    out[f"decoder bound cells/s ({unit})"] = float(np.median(alone))
                    out[f"of bound ({unit})"] = float(np.median(speed["trifold"] / speed["bound"]))
                    out[f"of decoder bound ({unit})"] = float(np.median(speed["trifold"] / alone))
                    if "scvi" in speed:
                        ratio = speed["trifold"] / speed["scvi"]
                        out[f"ratio ({unit})"] = float(np.median(ratio))
                        out[f"ratio from ({unit})"], out[f"ratio to ({unit})"] = float(ratio.min()), float(ratio.max())
                target = TARGETS.get((likelihood, batch), TARGETS[likelihood, 1024])
                out["target"], out["target of bound"] = target, BOUND
                if "ratio (wall)" in out:
                    out["verdict"] = met(out["ratio (wall)"], target)
                out["verdict of bound"] = met(out["of bound (wall)"], BOUND)
                table.add(**key_of(row, given), **out)
                shown = f"{out.get('ratio (wall)', float('nan')):.2f}x scvi-tools, {100 * out['of bound (wall)']:.0f} % of the bound"
                say(f"{likelihood}, batch {batch}, {cells} x {genes}, {threads} thread(s): {shown}")
    return table


def key_of(row: tuple[int, int, int, str, int], given: argparse.Namespace) -> dict[str, Any]:
    """What names a row of training."""
    names = ("threads", "cells", "genes", "likelihood", "batch")
    return dict(zip(names, row, strict=True)) | {"norm": given.norm}


def quality(given: argparse.Namespace, data: Data) -> Table:
    """Held-out evidence lower bounds of the same training, by epochs and by seconds."""
    points = Table("speed_quality_curve", ("likelihood", "batch", "cells", "side", "epoch", "norm"), folder=given.out, fresh=True)
    table = Table("speed_quality", ("likelihood", "batch", "cells", "epochs", "norm"), folder=given.out, fresh=given.fresh)
    at = sorted({max(1, round(e * given.epochs / 20)) for e in AT})
    cells, genes = given.cells, given.genes[0]
    for likelihood in given.likelihood:
        for batch in given.batch:
            key = {"likelihood": likelihood, "batch": batch, "cells": cells, "epochs": given.epochs, "norm": given.norm}
            if table.has(**key):
                continue
            with ExitStack() as stack:
                sides = workers(given, stack, given.threads[0], bound=False)
                versions = setup(sides, given, data, cells, genes, likelihood, batch)
                for worker in sides.values():  # compilation, and caches of the allocator
                    worker.ask("epochs", n=1)
                setup(sides, given, data, cells, genes, likelihood, batch, warm=True)
                curves: dict[str, list[dict[str, Any]]] = {}
                for name, worker in sides.items():
                    answer = worker.ask("curve", epochs=given.epochs, share=0.1, draws=given.draws, at=at)
                    curves[name] = answer["points"]
                    say(f"{name}, {likelihood}, batch {batch}: {answer['points'][-1]['elbo']:.2f} nats after {given.epochs} epochs")
                    for point in answer["points"]:
                        own = {k: v for k, v in key.items() if k != "epochs"}
                        points.add(**own, side=name, threads=given.threads[0], **point)
                out: dict[str, Any] = {"genes": genes, "versions": versions, "draws": given.draws, "threads": given.threads[0]}
                out |= {f"{name} {k}": v[-1][k] for name, v in curves.items() for k in ("elbo", "reconstruction", "kl", "wall")}
                if "scvi" in curves:
                    with tempfile.TemporaryDirectory() as folder:
                        path = str(Path(folder) / "reference.npz")
                        sides["scvi"].ask("reference", path=path)
                        check = sides["trifold"].ask("reference", path=path)
                    out |= {f"formula differs, {k}": v for k, v in check.items()} | compare(curves["trifold"], curves["scvi"])
                table.add(**key, **out)
    points.show(["likelihood", "batch", "side", "epoch", "wall", "elbo", "reconstruction", "kl"])
    return table


def compare(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> dict[str, Any]:
    """Two curves, at the same epochs and at the same seconds."""
    gap = (ours[-1]["elbo"] - peer[-1]["elbo"]) / abs(peer[-1]["elbo"])
    wall = [p["wall"] for p in ours]
    shared = [p for p in peer if p["wall"] >= wall[0]]
    # where our training has ended, its last value stands: a user would have stopped as well
    better = [float(np.interp(p["wall"], wall, [o["elbo"] for o in ours])) > p["elbo"] for p in shared]
    reached = next((o["wall"] for o in ours if o["elbo"] >= peer[-1]["elbo"]), float("nan"))
    return {
        "elbo gap": gap,
        "verdict": met(gap, -ELBO),
        "better at the same wall time": f"{sum(better)} of {len(better)}",
        "time to the peer's last value, of its": reached / peer[-1]["wall"],
    }


def latent(given: argparse.Namespace, data: Data) -> Table:
    """Cells per second of ``latent`` and of ``get_latent_representation``."""
    table = Table("speed_latent", ("cells", "genes", "threads"), folder=given.out, fresh=given.fresh)
    for threads in given.threads:
        for cells, genes in sizes(given):
            key = {"cells": cells, "genes": genes, "threads": threads}
            if table.has(**key):
                continue
            with ExitStack() as stack:
                sides = workers(given, stack, threads, bound=False)
                versions = setup(sides, given, data, cells, genes, "nb", 1024)
                for worker in sides.values():
                    worker.ask("epochs", n=1)
                found = turns(sides, given.repetitions, lambda _, worker: worker.ask("latent"))
            out: dict[str, Any] = {"versions": versions, "repetitions": given.repetitions}
            for unit in ("wall", "cpu"):
                speed = {name: rate(answers, unit, cells) for name, answers in found.items()}
                out |= {f"{name} cells/s ({unit})": float(np.median(v)) for name, v in speed.items()}
                if "scvi" in speed:
                    out[f"ratio ({unit})"] = float(np.median(speed["trifold"] / speed["scvi"]))
            if "ratio (wall)" in out:
                out |= {"target": LATENT, "verdict": met(out["ratio (wall)"], LATENT)}
            table.add(**key, **out)
            say(f"latent, {cells} x {genes}, {threads} thread(s): {out.get('ratio (wall)', float('nan')):.2f}x scvi-tools")
    return table


PARTS: dict[str, Callable[[argparse.Namespace, Data], Table]] = {"training": training, "quality": quality, "latent": latent}
PARTS |= {
    "conditions": speed_parts.conditions,
    "mmd": speed_parts.mmd,
    "invae": speed_parts.invae,
    "curvature": speed_parts.curvature,
    "start": speed_parts.start,
}


_COMMON = ("likelihood", "genes", "cells", "batch", "threads")
_SPEEDS = tuple(f"{side} cells/s (wall)" for side in ("trifold", "scvi", "bound", "decoder bound"))
_RATIOS = ("ratio (wall)", "ratio (cpu)", "target", "verdict")
_PEERS = (*(f"{side} cells/s (wall)" for side in ("trifold", "trvae_scarches", "invae")), "ratio", "ratio from", "ratio to", *_RATIOS[2:])
SHOWN = {
    "training": (*_COMMON, *_SPEEDS, *_RATIOS, "of bound (wall)", "of decoder bound (wall)", "verdict of bound"),
    "quality": (
        *(*_COMMON, "epochs", "trifold elbo", "scvi elbo", "elbo gap", "verdict", "trifold wall", "scvi wall"),
        *("better at the same wall time", "time to the peer's last value, of its", "formula differs, log_prob"),
    ),
    "conditions": ("conditions", "batch", "threads", *_PEERS),
    "invae": ("batch", "threads", *_PEERS),
    "latent": ("genes", "cells", "threads", *_SPEEDS[:2], *_RATIOS),
}


def main() -> None:
    """Measure, print, write."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--part", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    ask.add_argument("--peer", action="append", default=[], help="NAME=PYTHON: scvi, trvae_scarches, invae; without: that peer is left out")
    ask.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    ask.add_argument("--cells", type=int, default=20_000, help="at the first number of genes")
    ask.add_argument("--genes", type=int, nargs="+", default=[2_000, 10_000, 30_000])
    ask.add_argument("--likelihood", nargs="+", choices=("nb", "zinb"), default=["nb", "zinb"])
    ask.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    ask.add_argument("--norm", choices=("batch", "layer", "none"), default="batch", help="of trifold's networks; scvi-tools' is batch")
    ask.add_argument("--repetitions", type=int, default=5, help="turns of each side, after one that is not counted")
    ask.add_argument("--turn", type=int, default=1, help="epochs timed in a turn")
    ask.add_argument("--epochs", type=int, default=20, help="of the quality part; the divergence's weight rises over the first half")
    ask.add_argument("--draws", type=int, default=5, help="of z, for a held-out bound")
    ask.add_argument("--conditions", type=int, nargs="+", default=[2, 8, 32])
    ask.add_argument("--folder", type=Path, help="where the simulated counts are written, and kept; default: a temporary folder")
    ask.add_argument("--out", type=Path, help="where the CSV files are written; default: benchmarks/results")
    ask.add_argument("--fresh", action="store_true", help="measure rows again that are there already")
    given = ask.parse_args()
    given.peer = dict(p.split("=", 1) for p in given.peer)
    here = machine()
    say(f"{here['processor']}, {here['cores']} cores, Python {here['python']}, {here['date']}")
    with tempfile.TemporaryDirectory() as folder:
        data = Data(given.folder or Path(folder))
        failed = []
        for part in given.part:
            say(f"part {part}")
            try:
                PARTS[part](given, data).show(SHOWN.get(part))
            except Exception as error:  # the other parts are still of use
                import traceback

                traceback.print_exc()
                failed.append(f"{part}: {error}")
    if failed:
        sys.exit("\n".join(["Not all parts ended:", *failed]))


if __name__ == "__main__":
    main()
