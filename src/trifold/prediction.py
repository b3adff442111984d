"""Cells under other covariates: each is encoded under its own, decoded under the target's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trifold.core import VAE, locate
from trifold.data import Cells, Schema
from trifold.errors import SpecError, suggest
from trifold.inference import Inference, cut, tensors
from trifold.records import Batch

KINDS = ("mean", "sample", "residual")


def require_kind(kind: str) -> None:
    """Refuse an unknown kind of prediction.

    Raises:
        SpecError: Not one of ``KINDS``.
    """
    if kind not in KINDS:
        raise SpecError(f"kind needs one of {', '.join(map(repr, KINDS))}; found {kind!r}.{suggest(kind, KINDS)}")


def require_effect(vae: VAE, schema: Schema, to: Mapping[str, Any]) -> None:
    """Refuse a target that the decoder does not see: the prediction would be the cell as it is.

    Raises:
        SpecError: Such a column. Decoders that do not say which roles they see are not asked.
    """
    roles = getattr(vae.decoder, "roles", None)
    if roles is None:
        return
    seen = [c.name for role in roles for c in schema.roles.get(role, ())]
    known = [c.name for columns in schema.roles.values() for c in columns]
    blind = [column for column in to if column in known and column not in seen]
    if blind:
        raise SpecError(
            f"predict needs columns that the decoder sees; this model's decoder does not see {blind[0]!r}. "
            f"It sees: {', '.join(seen) or 'none'}. Use trvae with condition={blind[0]!r} to predict under another one."
        )


def moved(
    vae: VAE,
    cells: Cells,
    index: np.ndarray,
    design: Mapping[str, np.ndarray],
    code: Mapping[str, np.ndarray],
    *,
    kind: str,
    seed: int,
    device: torch.device,
) -> Iterator[np.ndarray]:
    """Predicted values of some cells, [m, g] at a time, in order.

    Args:
        vae: A trained model.
        cells: The source.
        index: [n] positions of the cells to predict.
        design, code: role -> [n, c], [n] covariates of the target.
        kind: One of ``KINDS``.
        seed: Of the draws.
        device: Where.
    """
    with Inference(vae, device) as there:
        generator = torch.Generator(there).manual_seed(seed)
        for at in cut(np.arange(len(index))):
            batch = cells.batch(index[at])
            target = batch.under(code=tensors(code, at), **tensors(design, at))
            yield _moved(vae, batch.to(there), target.to(there), kind, generator).cpu().numpy()


def _moved(vae: VAE, batch: Batch, under: Batch, kind: str, generator: torch.Generator) -> Tensor:
    z = locate(vae, batch)
    target = vae.decode(z, under)
    if kind == "mean":
        return vae.likelihood.mean(target, under)
    if kind == "sample":
        return vae.likelihood.sample(target, under, generator=generator)
    return vae.likelihood.transport(vae.decode(z, batch), target, batch, under, generator=generator)
