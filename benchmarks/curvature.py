"""What the curvature term costs: a whole training step with it over a step without, beside two ways to differentiate that need no algebra.

    python benchmarks/curvature.py [--repeats 60] [--threads 1]

Prints one table and writes benchmarks/results/curvature.csv. A step is forward, backward and Adam on one minibatch of 128 cells, Gaussian
likelihood, hidden layers of 128 and 128; curvature is taken at 64 points, or at 16 for the full Hessian, which does not fit otherwise.
All steps of a row run in turn in one process; ratios are of medians.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import trifold as tri
from trifold.geometry.metric import frame_of
from trifold.records import Batch, Pass, Progress, Rows
from trifold.terms import KL, NLL, Curvature, Objective
from trifold.terms.base import Term
from trifold.terms.points import places

CELLS, POINTS = 128, 64
HERE = Path(__file__).parent


class Nested(Term):
    """The same two curvatures by nested forward-mode differentiation of the whole map, g-dimensional tangents and all."""

    joint = True

    def forward(self, p: Pass) -> Tensor:
        """[] dimensionless."""
        z, surface, square = places(p, POINTS)
        return square * sum(part.mean() for part in _split(*_nested(surface, z)))


class Hessian(Term):
    """The same two curvatures from the full Hessian of the map, at few points."""

    joint = True

    def __init__(self, points: int = 16):
        super().__init__()
        self.points = points

    def forward(self, p: Pass) -> Tensor:
        """[] dimensionless."""
        z, surface, square = places(p, self.points)

        single = p.vae.surface(p.batch.bare(torch.zeros(1, dtype=torch.int64)))

        def one(y: Tensor) -> Tensor:
            return single.features(y[None])[0] @ surface.weight.T

        slope = torch.func.vmap(torch.func.jacfwd(one))(z).transpose(1, 2)
        bend = torch.func.vmap(torch.func.jacfwd(torch.func.jacfwd(one)))(z).permute(0, 2, 3, 1)
        inverse = frame_of(slope @ slope.transpose(1, 2), 1e-3)
        turned = torch.einsum("nim,njk,nmkg->nijg", inverse, inverse, bend).flatten(1, 2)
        return square * sum(part.mean() for part in _split(inverse @ slope, turned))


def _nested(surface: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    def f(y: Tensor) -> Tensor:
        return surface.features(y) @ surface.weight.T

    eye = torch.eye(z.shape[1])
    slope = torch.func.vmap(lambda u: torch.func.jvp(f, (z,), (u.expand_as(z),))[1], out_dims=1)(eye)
    inverse = frame_of(slope @ slope.transpose(1, 2), 1e-3)

    def along(u: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(lambda y: torch.func.jvp(f, (y,), (u,))[1], (z,), (v,))[1]

    if z.shape[1] > 6:
        u, v = ((torch.randn(len(z), 1, z.shape[1]) @ inverse).transpose(0, 1) for _ in "uv")
        bend = torch.func.vmap(along)(u, v).transpose(0, 1)
    else:
        left, right = torch.cartesian_prod(torch.arange(z.shape[1]), torch.arange(z.shape[1])).T
        bend = torch.func.vmap(along)(inverse[:, left].transpose(0, 1), inverse[:, right].transpose(0, 1)).transpose(0, 1)
    return inverse @ slope, bend


def _split(frame: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    tangential = bend @ frame.transpose(1, 2)
    normal = bend - tangential @ frame
    return normal.square().sum((1, 2)), tangential.square().sum((1, 2))


class Bench:
    """One network with its optimiser, and a step to time."""

    def __init__(self, rows: Tensor, d: int, term: Callable[[], Term] | None):
        genes = rows.shape[1]
        schema = tri.Schema.of(rows[:8].numpy())
        self.vae = tri.gamma_vae(schema, latent=d, hidden=(128, 128), extrinsic=0, parameter=0).vae.train()
        parts: dict[str, Term] = {"nll": NLL(), "kl": KL()} | ({} if term is None else {"curvature": term()})
        self.objective = Objective(parts)
        self.adam = torch.optim.Adam(self.vae.parameters(), lr=1e-4, fused=True)
        self.batch = Batch(Rows.of_dense(rows), torch.ones(CELLS, 1))
        self.genes = genes

    def step(self) -> None:
        """Forward, backward, Adam."""
        self.adam.zero_grad(set_to_none=True)
        self.objective(self.vae(self.batch, Progress.done())).loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 50.0)
        self.adam.step()


def largest(bench: Bench) -> int:
    """Numbers in the largest tensor that one step of the curvature term makes, those of the weights' shape left out."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = [0]
    weights = {tuple(p.shape) for p in bench.vae.parameters()} | {tuple(p.shape)[::-1] for p in bench.vae.parameters()}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(part, Tensor) and tuple(part.shape) not in weights:
                    sizes[0] = max(sizes[0], part.numel())
            return out

    p = bench.vae(bench.batch, Progress.done())
    with Watch():
        bench.objective.terms["curvature"](p).backward()
    return sizes[0]


def row(genes: int, d: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of each kind of step, in turn, and their ratios to the plain one."""
    torch.manual_seed(0)
    rows = torch.randn(CELLS, 4) @ torch.randn(4, genes) + torch.randn(CELLS, genes)
    kinds: dict[str, Callable[[], Term] | None] = {
        "plain": None,
        "curvature": lambda: Curvature(points=POINTS),
        "nested jvp": Nested,
        "full Hessian, 16 points": Hessian,
    }
    if genes * d * d > 3e6:
        del kinds["full Hessian, 16 points"]
    benches = {name: Bench(rows, d, term) for name, term in kinds.items()}
    slow = {name: max(5, repeats // 10) if name in ("nested jvp", "full Hessian, 16 points") else repeats for name in kinds}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for bench in benches.values():
        for _ in range(3):
            bench.step()
    for i in range(repeats):
        for name, bench in benches.items():
            if i < slow[name]:
                began = time.perf_counter()
                bench.step()
                times[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    out: dict[str, Any] = {
        "genes": genes,
        "d": d,
        "route": "exact jets" if d <= 6 else "random directions",
        "plain, ms": 1e3 * medians["plain"],
    }
    out |= {f"{name} / plain": value / medians["plain"] for name, value in medians.items() if name != "plain"}
    return out | {"largest tensor, numbers": largest(benches["curvature"])}


def main() -> None:
    """The table."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--repeats", type=int, default=60)
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--genes", type=int, nargs="+", default=[2_000, 20_000])
    ask.add_argument("--latent", type=int, nargs="+", default=[2, 3, 10])
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    table = pd.DataFrame([row(g, d, given.repeats) for g in given.genes for d in given.latent])
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {given.threads} thread(s)")
    print(f"batch {CELLS}, {POINTS} points, medians of {given.repeats} steps")
    print(table.round(2).to_string(index=False))
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    (HERE / "results").mkdir(exist_ok=True)
    table.round(4).to_csv(HERE / "results" / "curvature.csv", index=False)


if __name__ == "__main__":
    main()
