"""The posterior q(z | x, c): rows and covariates in, a diagonal Gaussian out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent

from trifold.compiled import compiled
from trifold.compiled.threads import in_parts
from trifold.core.covariates import joined
from trifold.dist import diagonal
from trifold.errors import SpecError, suggest
from trifold.nets import MLP, RowsLinear
from trifold.records import Batch, Rows
from trifold.share import ALONE, Share
from trifold.spec import Component

TRANSFORMS = ("none", "log1p", "lognorm")
_TARGET = 1e4  # counts per cell to which "lognorm" scales, the field's custom


class Posterior(Component, nn.Module):
    """q(z | x, c), a Gaussian with diagonal covariance, from a network over the (transformed) rows.

    Args:
        network: The network; its first layer takes the rows, sparse or dense.
        latent: Number of latent dimensions d.
        roles: Roles of the schema that the network sees beside the rows, in this order.
        transform: What is done to x first: ``"none"``, ``"log1p"``, or ``"lognorm"`` (scaled to 10,000 counts per cell, then log1p).
            All keep zeros, so that sparse rows stay sparse.
        blind: Share of the genes that the network does not see: those whose mean differs most between the categories of ``blind_to``
            (:meth:`start` finds them), so that z does not tell the categories apart by what they change.
        blind_to: Role of the schema.
        linear: Add a linear map of the (transformed, centred) rows to the network's mean, so that the network holds only what departs from
            it, and cells unlike any of training are placed by the linear map more than by what the network makes of them.
        hidden_share: Share of the cells whose covariates the network does not see in training (zeros stand in), so that it also places
            cells whose covariates are unknown.

    Raises:
        SpecError: An unknown transform, or a share outside its range.
    """

    share: Share = ALONE

    def __init__(
        self,
        network: MLP,
        latent: int,
        *,
        roles: Sequence[str] = (),
        transform: str = "none",
        blind: float = 0.0,
        blind_to: str = "condition",
        linear: bool = False,
        hidden_share: float = 0.0,
    ):
        super().__init__()
        if not 0 <= hidden_share <= 1:
            raise SpecError(f"hidden_share needs a share of the cells in [0, 1]; found {hidden_share}. Pass 0 for none.")
        if not 0 <= blind < 1:
            raise SpecError(f"blind needs a share of the genes in [0, 1); found {blind}. Pass 0 for none.")
        if transform not in TRANSFORMS:
            raise SpecError(
                f"transform needs one of {', '.join(map(repr, TRANSFORMS))}; found {transform!r}.{suggest(transform, TRANSFORMS)}"
            )
        self.network = network
        self.latent = latent
        self.roles = tuple(roles)
        self.transform = transform
        self.blind = blind
        self.blind_to = blind_to
        self.linear = linear
        self.hidden_share = hidden_share
        self.register_buffer("visible", torch.ones(network.inputs))
        self.head = nn.Linear(network.width, 2 * latent)
        self.straight = RowsLinear(network.inputs, latent) if linear else None

    def forward(self, batch: Batch) -> Independent:
        """The distribution of each cell's latent: batch [n], event [d]."""
        return self.encode(self.transformed(batch), batch)

    def encode(self, transformed: Rows, batch: Batch) -> Independent:
        """:meth:`forward`, of rows that are :meth:`transformed` already.

        Args:
            transformed: n x g, all genes.
            batch: The cells, whose covariates are read.
        """
        rows = self._visible(transformed)
        covariates = joined(batch, self.roles)
        if covariates is not None and self.training and self.hidden_share > 0:
            drawn = self.share.own(torch.rand(self.share.whole(batch.n), 1, device=covariates.device))
            covariates = covariates * (drawn >= self.hidden_share)
        mean, raw = self.head(self.network(rows, covariates)).float().chunk(2, 1)
        if self.straight is not None:
            mean = mean + self.straight(rows).float()
        return diagonal(mean, torch.exp(0.5 * nn.functional.hardtanh(raw, -12, 12)))

    @torch.no_grad()
    def start(self, batches: Iterable[Batch]) -> None:
        """Choose the genes not to see, from training cells: the largest Welch t statistics of one category against the rest.

        Args:
            batches: The training cells, or enough of them.
        """
        hidden = round(self.blind * self.network.inputs)
        if hidden == 0:
            return
        groups = _sums((self.transformed(b), b.code[self.blind_to]) for b in batches)
        contrast = _contrast(groups)
        most = contrast.topk(hidden).indices
        self.get_buffer("visible")[most[contrast[most] > 0]] = 0

    def transformed(self, batch: Batch) -> Rows:
        """The rows as the network takes them, all genes."""
        if self.transform == "none":
            return batch.rows
        return batch.rows.map(torch.log1p) if self.transform == "log1p" else log_normalised(batch.rows, batch.size)

    def seen(self, batch: Batch) -> Rows:
        """The rows as the network takes them, without the genes that it does not see."""
        return self._visible(self.transformed(batch))

    def _visible(self, rows: Rows) -> Rows:
        return rows if self.blind == 0 else rows.weigh(self.get_buffer("visible"))


def log_normalised(rows: Rows, size: Tensor) -> Rows:
    """log(1 + x scaled to 10,000 counts per cell).

    Args:
        rows: n x g counts.
        size: [n, 1] library size; below one it counts as one.
    """
    if not (rows.sparse and rows.device.type == "cpu" and size.dtype == torch.float32 and compiled()):
        return rows.scale(_TARGET / size.clamp_min(1)).map(torch.log1p)
    from trifold.compiled.sparse import lognorm

    crow, _, val = rows.csr()
    val = val.float().contiguous()
    out = torch.empty_like(val)
    arrays = crow.numpy(), val.numpy(), size.contiguous().view(-1).numpy(), np.float32(_TARGET), out.numpy()
    in_parts(lambda first, last: lognorm(first, last, *arrays), rows.shape[0], len(val))
    return rows.having(out)


def _sums(parts: Iterable[tuple[Rows, Tensor]]) -> dict[int, tuple[int, Tensor, Tensor]]:
    """Category -> number of cells, sum and sum of squares of each gene."""
    groups: dict[int, tuple[int, Tensor, Tensor]] = {}
    for rows, code in parts:
        x = rows.to_dense().double()
        for category in code.unique().tolist():
            own = x[code == category]
            n, first, second = groups.get(category, (0, torch.zeros(x.shape[1]).double(), torch.zeros(x.shape[1]).double()))
            groups[category] = n + len(own), first + own.sum(0), second + own.square().sum(0)
    return groups


def _contrast(groups: dict[int, tuple[int, Tensor, Tensor]]) -> Tensor:
    """[g] largest absolute Welch t statistic of a category against all the rest."""
    cells = sum(n for n, _, _ in groups.values())
    first = torch.stack([f for _, f, _ in groups.values()])
    second = torch.stack([s for _, _, s in groups.values()])
    largest = torch.zeros_like(first[0])
    for (n, _, _), own, square in zip(groups.values(), first, second, strict=True):
        if min(n, cells - n) < 2:
            continue
        mean, error = _mean_error(n, own, square)
        other, other_error = _mean_error(cells - n, first.sum(0) - own, second.sum(0) - square)
        largest = torch.maximum(largest, ((mean - other) / (error + other_error + 1e-8).sqrt()).abs())
    return largest


def _mean_error(n: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and the squared standard error of the mean."""
    mean = first / n
    return mean, (second / n - mean.square()).clamp_min(0) / n


def draw(qz: Independent, generator: torch.Generator | None = None, *, share: Share = ALONE) -> Tensor:
    """[n, d] a reparametrised sample of a diagonal Gaussian, from one's own generator if given; of several processes, each its own rows."""
    mean, scale = qz.base_dist.mean, qz.base_dist.stddev
    shape = (share.whole(mean.shape[0]), *mean.shape[1:])
    return mean + scale * share.own(torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype))
