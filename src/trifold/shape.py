"""What a trained model's surface looks like: rectified coordinates, curvature of each cell, and paths between groups of cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trifold.core import VAE, locate
from trifold.data import Schema, splits
from trifold.errors import ShapeError, SpecError, suggest
from trifold.geometry import Surface, geodesic, rectifier, straight
from trifold.geometry import curvature as curvature_at
from trifold.inference import tensors
from trifold.records import Batch, Rows

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PATHS = ("straight", "geodesic")
COUNTS = 1e4  # library size at which counts are shown along a path


def under_of(schema: Schema, under: Mapping[str, Any] | None) -> Batch:
    """One cell without rows, under which a surface is looked at: some covariates, the others unknown, and a library size of 10,000.

    Raises:
        SchemaError: An unknown column or value.
    """
    import pandas as pd

    asked = dict(under or {})
    columns = [c.name for role in schema.roles.values() for c in role]
    obs = pd.DataFrame({name: pd.Series([asked.get(name)], dtype=object) for name in columns}, index=["point"])
    design, code = schema.covariates(schema.under(obs, asked), unknown="zero")
    at = np.arange(1)
    return Batch(Rows.of_dense(torch.zeros(1, 0)), torch.full((1, 1), COUNTS), design=tensors(design, at), code=tensors(code, at))


def rectifier_of(vae: VAE, batches: Iterable[Batch]) -> list[list[float]]:
    """Coordinates z R in which Euclidean distances are lengths in data space, as nearly as linear coordinates can be.

    R R' is the metric of the linear map from latents to decoded cells that fits best (least squares). Where the surface is flat with an
    even grid it is the metric itself, as the mean of the local metrics is; where it bends, distances between far cells are chords, which
    the mean of local metrics overstates: it counts every wiggle on the way.

    Args:
        vae: A trained model.
        batches: The cells that are fitted.

    Returns:
        R [d, d], as plain data.
    """
    latents, features = [], []
    for batch in batches:
        z = locate(vae, batch)
        latents.append(z.double())
        features.append(vae.decode(z, batch).double())
    z, h = torch.cat(latents), torch.cat(features)
    slope = torch.linalg.lstsq(z - z.mean(0), h - h.mean(0), driver="gelsd").solution  # [d, h]
    tangent = vae.surface(batch).push(slope)
    return rectifier((tangent @ tangent.T)[None]).tolist()  # type: ignore[no-any-return]


def curvature_of(vae: VAE, batch: Batch, directions: int, generator: torch.Generator) -> Tensor:
    """[n, 3] extrinsic and parameter-effects curvature, in 1/length², and condition number of the metric, at each cell's latent."""
    z = locate(vae, batch)
    bent = curvature_at(vae.surface(batch.bare(torch.arange(batch.n, device=z.device))), z, directions=directions, generator=generator)
    values = torch.linalg.eigvalsh(bent.metric.double())
    condition = values[:, -1] / values[:, 0].clamp_min(1e-12 * values[:, -1])
    return torch.stack([bent.extrinsic.double(), bent.parameter.double(), condition], 1)


def walk(vae: VAE, at: Batch, surface: Surface, a: Tensor, b: Tensor, *, kind: str, steps: int, genes: list[str]) -> AnnData:
    """Decoded genes along a path between two latent points.

    Args:
        vae: A trained model.
        at: One cell's covariates, under which the path is decoded.
        surface: The model's surface under them.
        a, b: [1, d] ends.
        kind: ``"straight"`` in the latent or ``"geodesic"``: shortest on the surface.
        steps: Points along the path, ends included.
        genes: Their names.

    Raises:
        SpecError: An unknown kind, or fewer than three steps.
    """
    import pandas as pd
    from anndata import AnnData

    if kind not in PATHS:
        raise SpecError(f"kind needs one of {', '.join(map(repr, PATHS))}; found {kind!r}.{suggest(kind, PATHS)}")
    if steps < 3:
        raise SpecError(f"path needs steps >= 3; found {steps}. Pass steps=50.")
    line = straight(surface, a, b)
    short = geodesic(surface, a, b)
    z = (line if kind == "straight" else short).at(torch.linspace(0, 1, steps))[0]
    everywhere = at.bare(torch.zeros(steps, dtype=torch.int64))
    with torch.no_grad():
        points = surface(z)
        x = vae.likelihood.mean(vae.decode(z, everywhere), everywhere)
    travelled = np.concatenate([[0.0], np.cumsum((points[1:] - points[:-1]).double().norm(dim=1).numpy())])
    share = travelled / travelled[-1] if travelled[-1] > 0 else np.linspace(0, 1, steps)
    change, linearity = _lines(share, points.double().numpy())
    obs = pd.DataFrame({"position": share, "length": travelled}, index=[f"step_{i}" for i in range(steps)])
    var = pd.DataFrame({"change": change, "linearity": linearity}, index=genes)
    lengths = {"straight": float(line.length[0]), "geodesic": float(short.length[0])}
    ratio = lengths["straight"] / lengths["geodesic"] if lengths["geodesic"] > 0 else 1.0
    about = {"kind": kind, "x": vae.likelihood.kind, "length": lengths, "straightness": ratio}
    return AnnData(x.numpy(), obs=obs, var=var, obsm={"latent": z.numpy()}, uns={"trifold": about})


def _lines(share: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each gene: its change from end to end, and the R² of a straight line along the path (1 for a gene that does not change)."""
    t = share - share.mean()
    deviation = points - points.mean(0)
    total = (deviation**2).sum(0)
    slope = t @ deviation / max(float(t @ t), 1e-300)
    left = ((deviation - t[:, None] * slope) ** 2).sum(0)
    still = total <= 1e-12 * max(float(total.max()), 1e-300)
    return points[-1] - points[0], np.where(still, 1.0, 1 - left / np.where(still, 1.0, total))


def end_of(given: Any, latent: np.ndarray | None, obs: pd.DataFrame | None, d: int, name: str) -> Tensor:
    """[1, d] end of a path: a latent point as it is, or the mean latent of the cells that match.

    Raises:
        SpecError: A selection without data.
        SchemaError: No cell matches.
        ShapeError: A point of another width.
    """
    if isinstance(given, Mapping):
        if latent is None or obs is None:
            raise SpecError(
                f"{name}={dict(given)!r} selects cells, but there are none to select from. "
                f"Pass data=adata, or a latent point of {d} numbers."
            )
        chosen = splits.some(obs, given, named=f"{name}=")
        return torch.from_numpy(latent[chosen].mean(0, keepdims=True))
    point = torch.as_tensor(np.asarray(given), dtype=torch.float32).reshape(1, -1)
    if point.shape[1] != d:
        raise ShapeError(
            f"{name} needs a latent point of {d} dimensions, or a selection of cells such as {{'tissue': 'Lung'}}; found {point.shape[1]} "
            "numbers."
        )
    return point
