"""Expression with technique averaged out: each cell's biology, decoded under every category of the spurious role alike.

The rectified coordinates of the invariant block are principal components of it. Counts enter as the square roots of the expected counts at
a library size of 10,000, whose Euclidean distance is, up to a factor, the Hellinger distance between expected expression profiles; the
square root is the transformation that makes the variance of a count nearly the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trifold.core import VAE, locate
from trifold.data import Schema
from trifold.errors import SpecError
from trifold.marginal import Filling, shares
from trifold.records import Batch

ROLE, BLOCK, BIOLOGY = "spurious", "spurious", "invariant"
MOST = 16  # categories of technique, those with most training cells
SIZE = 1e4  # library size of an expected profile


class Technique:
    """The categories of the spurious role under which cells are decoded, with equal weights; none where the model sees no technique.

    Args:
        vae: The model.
        schema: Of the training data.
        card: Of the run: training cells of each category.
    """

    def __init__(self, vae: VAE, schema: Schema, card: Mapping[str, Any]):
        self.vae = vae
        self.filling: Filling | None = None
        if ROLE in schema.roles and (BLOCK in vae.prior.slices or ROLE in getattr(vae.decoder, "roles", ())):
            share = shares(card, ROLE)
            most = torch.argsort(share, descending=True, stable=True)[:MOST]
            at = most[share[most] > 0].sort().values
            design, code = (torch.from_numpy(part)[at] for part in schema.combinations(ROLE))
            self.filling = Filling(ROLE, design, code, torch.full((len(at),), 1 / max(1, len(at))))

    @property
    def role(self) -> str | None:
        """Role that the decoder is told in any case."""
        return None if self.filling is None else ROLE

    @property
    def count(self) -> int:
        """Categories under which a cell is decoded; 1 where the model sees no technique."""
        return 1 if self.filling is None else len(self.filling.code)

    def required(self) -> Technique:
        """Itself, of a model that has technique to take out.

        Raises:
            SpecError: A model that has none.
        """
        if self.filling is None:
            raise SpecError(
                "Corrected expression needs a model of technique: a spurious block, or a decoder that sees the role spurious; this model "
                "has neither. Use invae(Schema.of(data, spurious=...)), or corrected=False."
            )
        return self

    def under(self, z: Tensor, batch: Batch, at: int | Tensor) -> tuple[Tensor, Batch]:
        """Cells under one category, or one each, [n]: its covariates, and the spurious block at the mean of its prior.

        Args:
            z: [n, d] latents.
            batch: Their covariates, whose other roles stay.
            at: Position among the categories.
        """
        if self.filling is None:
            return z, batch
        there = self.filling.put(batch, at)
        if BLOCK not in self.vae.prior.slices:
            return z, there
        z = z.clone()
        z[:, self.vae.prior.slices[BLOCK]] = _centre(self.vae.prior.blocks[BLOCK], there).to(z)  # type: ignore[index,union-attr]
        return z, there

    def means(self, z: Tensor, batch: Batch) -> Iterator[Tensor]:
        """[n, g] expected x of the cells under each category in turn, at their own library sizes."""
        batch = _bare(batch)
        for at in range(self.count):
            placed, there = self.under(z, batch, at)
            yield self.vae.likelihood.mean(self.vae.decode(placed, there), there)

    def expression(self, z: Tensor, batch: Batch) -> Tensor:
        """[n, g] expected x, averaged over the categories, at the cells' own library sizes."""
        return _mean(self.means(z, batch), self.count)

    def profile(self, z: Tensor, batch: Batch) -> Tensor:
        """[n, g] averages of the square root of the expected counts at a library size of 10,000; of the mean for other values."""
        if self.vae.likelihood.kind != "counts":
            return self.expression(z, batch)
        even = replace(batch, size=torch.full_like(batch.size, SIZE))
        return _mean((mean.clamp_min(0).sqrt() for mean in self.means(z, even)), self.count)


class Axes(nn.Module):
    """Mean and principal axes of the training cells' profiles: saved with the weights, trained by nobody.

    Args:
        genes: Number of genes g.
        width: Number of axes k.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, genes: int, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(genes))
        self.register_buffer("axes", torch.zeros(genes, width))

    def forward(self, profile: Tensor) -> Tensor:
        """[n, k] coordinates of profiles, [n, g]."""
        return (profile - self.mean.to(profile)) @ self.axes.to(profile)


def axes_of(vae: VAE, technique: Technique, batches: Callable[[], Iterable[Batch]]) -> Axes:
    """Principal axes of the profiles of some cells, as many as the invariant block has dimensions, the largest entry of each positive.

    Args:
        vae: A trained model with an invariant block.
        technique: What is averaged over.
        batches: () -> the cells.
    """
    rows = torch.cat([technique.profile(locate(vae, batch), batch) for batch in batches()])
    width = vae.prior.slices[BIOLOGY]
    out = Axes(rows.shape[1], min(width.stop - width.start, *rows.shape))
    out.mean.copy_(rows.mean(0))
    rows -= out.mean
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        _, _, axes = torch.svd_lowrank(rows, q=min(out.axes.shape[1] + 10, *rows.shape), niter=4)
    axes = axes[:, : out.axes.shape[1]]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    out.axes.copy_(axes * torch.where(largest < 0, -1.0, 1.0))
    return out


def _centre(prior: Any, batch: Batch) -> Tensor:
    """[n, k] mean of a block's prior for each cell; of a prior known up to a constant, that of its Gaussian part."""
    law = prior.distribution(batch)
    if law is not None:
        return law.mean  # type: ignore[no-any-return]
    zero = torch.zeros(batch.n, prior.latent, device=batch.size.device)
    code = {role: torch.full_like(batch.code[role], -1) for role in prior.roles}
    return prior.carry(zero, batch.under(code=code), batch)  # type: ignore[no-any-return]


def _bare(batch: Batch) -> Batch:
    return batch.bare(torch.arange(batch.n, device=batch.size.device))


def _mean(parts: Iterable[Tensor], count: int) -> Tensor:
    total: Any = 0.0
    for part in parts:
        total = total + part
    return total / count  # type: ignore[no-any-return]
