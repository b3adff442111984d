"""Two loads of the reliability scorecard: many conditions (L8), and curvature of very many genes (L9), with their printed result.

    python benchmarks/limits.py

conditions (L8): one epoch of trvae on 1,000 conditions of 10 cells each, 200 genes: the loss is finite, and the MMD of a minibatch costs
what it costs with 2 conditions (the same Gram matrix). genes (L9): the curvature term and its gradient for 2,000 and for 60,000 genes: no
tensor of points by genes is made (the Gram matrix is as wide as the features), so that what it takes grows by some copies of the last
layer's weights alone: their gradient from the term, what that is made of, and a transposed copy. Each in a process of its own; memory is
the highest resident size above that before the term is evaluated. Writes results/limits.csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from speed_workers import Table, environment, machine, resident, say

MMD = 1.5  # times the cost with two conditions
COPIES = 4.0  # of the last layer's weights


def conditions(count: int) -> dict[str, Any]:
    """One epoch with so many conditions of equal size, 10,000 cells in all; then the MMD alone, on minibatches of 512."""
    import numpy as np
    import torch

    import trifold as tri
    from trifold.terms.mmd import around_median, mmd2_groups

    torch.set_num_threads(1)
    data = tri.simulate(10_000, 200, types=5, conditions=2, depth=1.0, seed=0).adata
    data.obs["condition"] = [f"c{i % count}" for i in range(data.n_obs)]
    model = tri.trvae(tri.Schema.of(data, condition="condition"), latent=5, hidden=(32,))
    began = time.thread_time()
    model.fit(data, epochs=1, batch=512, progress=False, device="cpu")
    seconds = time.thread_time() - began
    rng = torch.Generator().manual_seed(0)
    spent = []
    for _ in range(30):
        y = torch.randn(512, 128, generator=rng, requires_grad=True)
        code = torch.randint(0, count, (512,), generator=rng)
        began = time.thread_time()
        mmd2_groups(y, code, around_median(y), groups=count).backward()
        spent.append(time.thread_time() - began)
    finite = all(np.isfinite(list(row.values())).all() for row in model.history.rows)
    return {
        "finite": bool(finite),
        "epoch s": seconds,
        "MMD ms": 1e3 * float(np.median(spent)),
        "loss": model.history.rows[-1]["train/loss"],
    }


def genes(count: int) -> dict[str, Any]:
    """The curvature term of a decoder of so many genes, and its gradient."""
    import torch

    from trifold.core import Decoder, NegativeBinomial, Posterior, StandardNormal
    from trifold.core.vae import VAE
    from trifold.nets import MLP
    from trifold.records import Batch, Rows
    from trifold.terms import Curvature

    torch.set_num_threads(1)
    decoder = Decoder(MLP(3, (128,)), roles=())
    vae = VAE(Posterior(MLP(count, (128,)), 3), StandardNormal(3), decoder, NegativeBinomial(decoder.width, count))
    batch = Batch(Rows.of_dense(torch.zeros(64, count)), torch.ones(64, 1))
    p = vae(batch)
    for parameter in vae.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as in training; not what is measured
    before = resident()
    began = time.thread_time()
    value = Curvature()(p)
    value.backward()
    return {
        "value": float(value),
        "ms": 1e3 * (time.thread_time() - began),
        "MB above": resident() - before,
        "weights MB": count * 128 * 4 / 2**20,
    }


def child(what: str, count: int) -> dict[str, Any]:
    """What a process of its own says."""
    command = [sys.executable, __file__, "--do", what, "--count", str(count)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(1, own=True))
    return json.loads(out.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Both, each beside its small case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--do", choices=("conditions", "genes"))
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    if given.do:
        print(json.dumps({"conditions": conditions, "genes": genes}[given.do](given.count)))
        return
    where = machine()
    say(f"{where['processor']}, {where['cores']} cores, Python {where['python']}, {where['date']}")
    table = Table("limits", ("item", "count"), **({} if given.out is None else {"folder": given.out}), fresh=True)
    few, many = child("conditions", 2), child("conditions", 1_000)
    small, large = child("genes", 2_000), child("genes", 60_000)
    held = many["finite"] and many["MMD ms"] <= MMD * few["MMD ms"]
    copies = (large["MB above"] - small["MB above"]) / (large["weights MB"] - small["weights MB"])
    flat = copies <= COPIES
    for item, count, found in (("L8", 2, few), ("L8", 1_000, many), ("L9", 2_000, small), ("L9", 60_000, large)):
        table.add(item=item, count=count, **found, **where)
    said = {True: "passed", False: "FAILED"}
    cost = f"MMD {many['MMD ms']:.1f} ms against {few['MMD ms']:.1f}"
    say(f"L8: {said[held]}: 1,000 conditions, loss {many['loss']:.1f}, {cost}")
    took = f"{large['MB above']:.0f} MB for 60,000 genes, {small['MB above']:.0f} for 2,000"
    wide = f"{small['weights MB']:.0f} to {large['weights MB']:.0f} MB"
    say(f"L9: {said[flat]}: {took}: {copies:.1f} x the growth of the last layer's weights ({wide})")
    sys.exit(0 if held and flat else 1)


if __name__ == "__main__":
    main()
