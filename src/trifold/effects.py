"""What latent dimensions do to genes, and which genes differ between two groups of cells once technique is out of the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trifold.core import VAE, locate
from trifold.core.posterior import draw
from trifold.data import Cells
from trifold.errors import SchemaError, SpecError, suggest
from trifold.generation import drawn
from trifold.geometry.jets import local
from trifold.inference import Inference, cut
from trifold.records import Batch
from trifold.technique import SIZE, Technique

if TYPE_CHECKING:
    import pandas as pd

POINTS = 500  # cells over which the derivative is averaged
GROUP = 2_000  # cells of a group that are drawn from
_FLOOR = 0.01  # counts per 10,000 that are added before the logarithm
_PAIRS = 256  # decoded at a time


def columns_of(vae: VAE, block: str | None) -> slice:
    """Columns of the latent that a block takes; None: all.

    Raises:
        SpecError: The prior has no such block.
    """
    slices: Mapping[str, slice] = vae.prior.slices
    if block is None:
        return slice(0, vae.posterior.latent)
    if block not in slices:
        found = f"It has: {', '.join(slices)}." if slices else "It has none: block=None is all of the latent."
        raise SpecError(f"The model's latent has no block {block!r}.{suggest(block, slices)} {found}")
    return slices[block]


def loadings_of(vae: VAE, points: Cells | Batch, block: str | None, genes: list[str], *, seed: int) -> pd.DataFrame:
    """[g, k] table of the derivative of the surface, averaged over points under their own covariates.

    Args:
        vae: A trained model.
        points: Cells, of which at most 500, evenly spaced, are taken at their latents; or covariates, at draws of the prior.
        block: Whose columns; None: all.
        genes: Their names.
        seed: Of the draws.
    """
    import pandas as pd

    at = columns_of(vae, block)
    total, count = torch.zeros(()), 0
    with Inference(vae, torch.device("cpu")):
        for z, batch in _placed(vae, points, seed):
            bare = batch.bare(torch.arange(batch.n))
            total, count = total + local(vae.surface(bare), z).slope.double().sum(0), count + batch.n
        tangent = total / count @ vae.likelihood.linear()[0].double().T  # [d, g]
    if vae.likelihood.kind == "counts":
        tangent = tangent - tangent.mean(1, keepdim=True)
    names = [f"{block or 'latent'}_{j}" for j in range(at.stop - at.start)]
    return pd.DataFrame(tangent[at].T.numpy(), index=genes, columns=names)


def _placed(vae: VAE, points: Cells | Batch, seed: int) -> Iterator[tuple[Tensor, Batch]]:
    """Latents [m, d] and the cells that they are of."""
    if isinstance(points, Batch):
        yield drawn(vae.prior, points, torch.Generator().manual_seed(seed)), points
        return
    every = np.arange(points.n)
    for at in cut(every[:: -(-points.n // POINTS)], _PAIRS):
        batch = points.batch(at)
        yield locate(vae, batch), batch


def groups_of(a: np.ndarray, b: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells of two groups, given as masks; at most 2,000 of each, drawn.

    Raises:
        SchemaError: Cells that are in both.
    """
    both = int((a & b).sum())
    if both:
        raise SchemaError(f"difference needs groups that share no cell; {both} cells match both a and b. Name more columns in either.")
    rng = np.random.default_rng([seed, 47])
    found = (np.flatnonzero(a), np.flatnonzero(b))
    first, second = (np.sort(rng.choice(g, GROUP, replace=False)) if len(g) > GROUP else g for g in found)
    return first, second


def difference(
    vae: VAE,
    technique: Technique,
    cells: Cells,
    first: np.ndarray,
    second: np.ndarray,
    *,
    samples: int,
    threshold: float,
    seed: int,
    device: torch.device,
) -> pd.DataFrame:
    """Of each gene: how much more the first group expresses it than the second; see :meth:`trifold.Model.difference`.

    Sums over pairs only are kept, so that memory does not grow with their number.

    Args:
        vae: A trained model.
        technique: Under which both cells of a pair are decoded.
        cells: The data.
        first, second: Positions of the groups' cells.
        samples: Number of pairs.
        threshold: Of the change, in nats or in the units of x.
        seed: Of the pairs and the latents.
        device: Where.

    Raises:
        SpecError: No pair, or a negative threshold.
    """
    import pandas as pd

    if samples < 1 or threshold < 0:
        raise SpecError(
            f"difference needs samples >= 1 and threshold >= 0; found samples={samples} and threshold={threshold}. Pass samples=100."
        )
    counts = vae.likelihood.kind == "counts"
    rng = np.random.default_rng([seed, 53])
    pairs = [rng.choice(group, size=samples) for group in (first, second)]
    total: Any = 0.0
    with Inference(vae, device) as there:
        generator = torch.Generator(there).manual_seed(seed)
        for at in cut(np.arange(samples), _PAIRS):
            category = torch.from_numpy(at % technique.count).to(there)
            x, y = (_expected(vae, technique, cells.batch(pair[at]).to(there), category, generator) for pair in pairs)
            change = torch.log(x + _FLOOR) - torch.log(y + _FLOOR) if counts else x - y
            over = (change.abs() > threshold).double()
            total = total + torch.stack([change.sum(0), change.square().sum(0), over.sum(0), x.sum(0), y.sum(0)])
    mean, square, over, x, y = (total / samples).cpu().numpy()
    table = pd.DataFrame(
        {
            "log_fold_change" if counts else "change": mean,
            "sd": np.sqrt(np.maximum(square - mean**2, 0)),
            "probability": over,
            "mean_a": x,
            "mean_b": y,
        },
        index=list(cells.schema.genes),
    )
    return table.iloc[np.lexsort((-np.abs(mean), -over))]


def _expected(vae: VAE, technique: Technique, batch: Batch, category: Tensor, generator: torch.Generator) -> Tensor:
    """[n, g] float64 expected x, of counts at a library size of 10,000, at a latent drawn for each cell under one category each."""
    qz = vae.encode(batch)
    z = draw(qz, generator) if vae.refine == 0 else locate(vae, batch) + draw(qz, generator) - qz.mean
    bare = batch.bare(torch.arange(batch.n, device=z.device))
    if vae.likelihood.kind == "counts":
        bare = replace(bare, size=torch.full_like(bare.size, SIZE))
    z, under = technique.under(z, bare, category)
    return vae.likelihood.mean(vae.decode(z, under), under).double()
