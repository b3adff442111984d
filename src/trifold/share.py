"""``Share``: which part of every minibatch this process holds, when several train one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """One of ``world`` equal parts of every minibatch: the rows ``rank * n`` to ``(rank + 1) * n`` of ``world * n``.

    Noise is drawn for the whole minibatch by every process, from generators in the same state, and each takes its own rows: how many
    processes there are changes nothing but rounding.

    Args:
        rank: Of this process, from 0.
        world: Number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return self.world == 1

    def whole(self, n: int) -> int:
        """Rows of the whole minibatch, of which n are this process's."""
        return n * self.world

    def own(self, x: Tensor) -> Tensor:
        """[n, ...] this process's rows of the whole minibatch's [world * n, ...]."""
        return x if self.alone else x.chunk(self.world)[self.rank]

    def gather(self, x: Tensor) -> Tensor:
        """[world * n, ...] the whole minibatch's rows from each process's [n, ...], with the gradient of all processes."""
        return x if self.alone else _Gather.apply(x, self)  # type: ignore[no-any-return]


ALONE = Share()


def spread(network: nn.Module, share: Share) -> None:
    """Tell every module that draws noise, or sums over cells, which part of the minibatch it holds: those with an attribute ``share``.

    Joint terms are left alone: they are given the whole minibatch.
    """
    if hasattr(network, "share"):
        network.share = share  # type: ignore[assignment]
    elif getattr(network, "joint", False):
        return
    for part in network.children():
        spread(part, share)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share) -> Tensor:
        ctx.share = share
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(share.world)]
        torch.distributed.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor, None]:
        total = up[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return ctx.share.own(total).contiguous(), None
