"""How unlike the training cells a cell is: far from every class in the invariant block, or badly explained by the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trifold.core import VAE, locate
from trifold.errors import FormatError
from trifold.records import Batch

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = 1_000  # of what the cells of reference have, that are kept
ENOUGH = 50  # watched cells with which new cells are compared; with fewer, training cells


def place(vae: VAE, z: Tensor, batch: Batch, block: slice) -> Tensor:
    """[n, k + 2] the block's columns of the latent, -log p(x | z, c) in nats, and the log of the library size."""
    misfit = -vae.likelihood.log_prob(vae.decode(z, batch), batch)
    return torch.cat([z[:, block].float(), misfit[:, None].float(), batch.size.clamp_min(1).log()], 1)


def located(vae: VAE, batch: Batch, block: slice) -> Tensor:
    """:func:`place` of cells at their own latents."""
    return place(vae, locate(vae, batch), batch, block)


def components(prior: Any, z: Tensor, batch: Batch) -> np.ndarray | None:
    """[n] component of a mixture prior that has most likely made each latent, [n, d]; None for another prior."""
    found = prior.candidates(batch)
    return None if found is None or found.known is not None else found.assign(z).cpu().numpy()


def reference(train: np.ndarray, code: np.ndarray, watched: np.ndarray) -> dict[str, Any]:
    r"""Classes, their shared covariance, what misfit is expected, and how far out the cells of reference lie. Plain data.

    The covariance within classes is shrunk towards a multiple of the identity; the misfit expected of a cell is a parabola in the log of
    its library size. Cells of reference are the watched ones if there are 50, else those of training.

    Args:
        train: [n, d + 2] of training cells, from :func:`place`.
        code: [n] class of each; -1: none. All -1: they are one class.
        watched: [m, d + 2] of watched cells.

    Source: Ledoit and Wolf, Journal of Multivariate Analysis 88 (2004), the shrinkage; Lee et al., arXiv 1807.03888 (2018), the distance.
    """
    z, d = train[:, :-2].astype(np.float64), train.shape[1] - 2
    code = np.zeros(len(z), dtype=np.int64) if (code < 0).all() else code
    found = np.unique(code[code >= 0])
    means = np.stack([z[code == c].mean(0) for c in found])
    at = np.searchsorted(found, code[code >= 0])
    root = np.linalg.inv(np.linalg.cholesky(shrunk(z[code >= 0] - means[at])))  # of the inverse covariance
    about: dict[str, Any] = {"means": means.tolist(), "root": root.tolist()}
    sample = watched if len(watched) >= ENOUGH else train
    line = _powers(sample[:, -1]) if np.ptp(sample[:, -1]) > 0 else np.ones((len(sample), 1))
    slope = np.linalg.lstsq(line, sample[:, d].astype(np.float64), rcond=None)[0]
    about["expected"] = [*slope.tolist(), *[0.0] * (3 - len(slope))]
    about["spread"] = max(float((sample[:, d] - line @ slope).std()), 1e-6)
    for name, values in zip(("distance", "misfit"), _values(sample, about), strict=True):
        kept = min(QUANTILES, len(values))
        about[f"{name}_quantiles"] = np.quantile(values, (np.arange(kept) + 0.5) / kept, method="inverted_cdf").tolist()
    return about | {"cells": len(sample), "watched": len(watched) >= ENOUGH}


def shrunk(deviation: np.ndarray) -> np.ndarray:
    """[d, d] covariance of deviations from their means, [n, d], shrunk towards a multiple of the identity."""
    n, d = deviation.shape
    raw = deviation.T @ deviation / n
    level = max(float(np.trace(raw)) / d, 1e-12)
    apart = float(((raw - level * np.eye(d)) ** 2).sum())
    noise = float(((deviation**2).sum(1) ** 2).mean() - (raw**2).sum()) / n
    weight = 1.0 if apart <= 0 else float(np.clip(noise / apart, 1e-6, 1))
    return (1 - weight) * raw + weight * level * np.eye(d)  # type: ignore[no-any-return]


def table_of(values: np.ndarray, about: Mapping[str, Any] | None, index: Any) -> pd.DataFrame:
    """``distance``, ``misfit`` and ``score`` of cells, [n, d + 2].

    Raises:
        FormatError: The run was written before there was a reference.
    """
    import pandas as pd

    if about is None:
        raise FormatError(
            "novelty needs distances of training cells, which fit keeps; this run was written by an older trifold, without them. "
            "Train it again with fit(data)."
        )
    distance, misfit = _values(values, about)
    p = [_farther(v, np.asarray(about[f"{name}_quantiles"])) for name, v in (("distance", distance), ("misfit", misfit))]
    return pd.DataFrame({"distance": distance, "misfit": misfit, "score": 1 - np.minimum(*p)}, index=index)


def _values(cells: np.ndarray, about: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """[n] Mahalanobis distance to the nearest class; [n] misfit in standard deviations above what is expected."""
    z = cells[:, :-2].astype(np.float64)
    root = np.asarray(about["root"]).T
    nearest = np.full(len(z), np.inf)
    for mean in np.asarray(about["means"]):
        nearest = np.minimum(nearest, (((z - mean) @ root) ** 2).sum(1))
    expected = _powers(cells[:, -1]) @ np.asarray(about["expected"])
    return np.sqrt(nearest), (cells[:, -2] - expected) / about["spread"]


def _powers(log_size: np.ndarray) -> np.ndarray:
    x = log_size.astype(np.float64)
    return np.stack([np.ones_like(x), x, x * x], 1)


def _farther(values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """[n] share of the cells of reference that are at least as far out; the cell itself counts as one."""
    out = len(quantiles) - np.searchsorted(quantiles, values, side="left")
    return (out + 1) / (len(quantiles) + 1)  # type: ignore[no-any-return]
