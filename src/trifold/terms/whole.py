"""The pass of the whole minibatch, from the passes of several processes, for terms in which cells see each other."""

from __future__ import annotations

from typing import Any

from trifold.dist import diagonal
from trifold.records import Batch, Pass, Rows
from trifold.share import Share


def whole(p: Pass, share: Share) -> Pass:
    """The pass with latents, features, taps and covariates of all processes, with gradients; without the rows, [n, 0].

    Each process then has the same value of a joint term, and the sum over processes of its gradients is that of one process.

    Args:
        p: This process's pass.
        share: Its part of the minibatch.
    """
    if share.alone:
        return p
    of = share.gather
    q: Any = p.qz
    size = of(p.batch.size)
    batch = Batch(
        rows=Rows.of_dense(size.new_zeros(len(size), 0)),
        size=size,
        design={role: of(t) for role, t in p.batch.design.items()},
        code={role: of(t) for role, t in p.batch.code.items()},
    )
    qz = diagonal(of(q.base_dist.loc), of(q.base_dist.scale))
    taps = {name: of(t) for name, t in p.taps.items()}
    return Pass(batch=batch, qz=qz, z=of(p.z), h=of(p.h), vae=p.vae, taps=taps, progress=p.progress)
