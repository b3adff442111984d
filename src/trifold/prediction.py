"""Cells under other covariates: each is encoded under its own, moved in the latent as the prior says, and decoded under the target's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trifold.core import VAE, locate
from trifold.data import Cells, Schema
from trifold.data.covariates import design_of
from trifold.errors import SpecError, suggest
from trifold.inference import Inference, step_of, values_of
from trifold.marginal import Filling, stream, ways
from trifold.records import Batch
from trifold.results import Result

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("mean", "sample", "residual")


def require_kind(kind: str) -> None:
    """Refuse an unknown kind of prediction.

    Raises:
        SpecError: Not one of ``KINDS``.
    """
    if kind not in KINDS:
        raise SpecError(f"kind needs one of {', '.join(map(repr, KINDS))}; found {kind!r}.{suggest(kind, KINDS)}")


def require_effect(vae: VAE, schema: Schema, to: Mapping[str, Any], *, verb: str = "predict") -> None:
    """Refuse covariates that neither the decoder nor the prior sees: the answer would be the same whatever they are.

    Args:
        vae: The model.
        schema: Of the training data.
        to: column -> value.
        verb: Who asks, for the message.

    Raises:
        SpecError: Such a column. Decoders that do not say which roles they see are not asked.
    """
    roles = getattr(vae.decoder, "roles", None)
    if roles is None:
        return
    seen = [c.name for role in (*roles, *vae.prior.roles) for c in schema.roles.get(role, ())]
    known = [c.name for columns in schema.roles.values() for c in columns]
    blind = [column for column in to if column in known and column not in seen]
    if blind:
        raise SpecError(
            f"{verb} needs columns that the decoder or the prior sees; this model does not see {blind[0]!r} in either. "
            f"They see: {', '.join(dict.fromkeys(seen)) or 'none'}. Use trvae with condition={blind[0]!r} to predict under another one."
        )


class Target:
    """Covariates that cells are moved to, encoded once; a design is made for some cells at a time.

    Args:
        schema: Of the training data.
        obs: [m, columns] of the cells.
        to: column -> value.
        unknown: role -> policy.

    Attributes:
        obs: [m, columns] under the target.

    Raises:
        SchemaError: A column or value that is not known.
    """

    def __init__(self, schema: Schema, obs: pd.DataFrame, to: Mapping[str, Any], unknown: Mapping[str, str]):
        self.schema, self.obs = schema, schema.under(obs, to)
        self._encoded = {role: schema.encoded(self.obs, role, unknown[role]) for role in schema.roles}

    def put(self, batch: Batch, at: np.ndarray) -> Batch:
        """The batch of the cells at some positions, [k], under the target."""
        design = {role: torch.from_numpy(design_of(parts, self.schema.roles[role], at)) for role, (parts, _) in self._encoded.items()}
        return batch.under(code={role: torch.from_numpy(code[at]) for role, (_, code) in self._encoded.items()}, **design)


def moved(
    vae: VAE,
    cells: Cells,
    index: np.ndarray,
    target: Target,
    found: Sequence[Filling],
    targets: Sequence[Filling],
    into: Result,
    *,
    kind: str,
    seed: int,
    device: torch.device,
) -> None:
    """Predicted values of some cells, [m, g], put in order: expected values, or draws.

    Where a cell lacks a role that is to be averaged over, expected values are averages, and draws are of a category drawn for each cell.

    Args:
        vae: A trained model.
        cells: The source.
        index: [m] positions of the cells to predict.
        target: Their covariates under the target.
        found: What stands in where the source lacks a role.
        targets: What these categories are under the target.
        into: What takes the rows.
        kind: One of ``KINDS``.
        seed: Of the draws.
        device: Where.
    """
    with Inference(vae, device) as there:
        generator = torch.Generator(there).manual_seed(seed)

        def some(batch: Batch, at: np.ndarray, lacking: list[Filling]) -> Tensor:
            after = [targets[found.index(f)] for f in lacking]
            return _chosen(vae, batch.to(there), target.put(batch, at).to(there), lacking, after, kind, generator)

        stream(cells, index, found, into, some, step_of(values_of(cells, decoded=True)))


def _chosen(
    vae: VAE, batch: Batch, under: Batch, lacking: Sequence[Filling], after: Sequence[Filling], kind: str, generator: torch.Generator
) -> Tensor:
    """Averaged over every choice of what the cells lack, or drawn under one choice each."""
    if not lacking:
        return _moved(vae, batch, under, kind, generator)
    if kind != "mean":
        for filling, target in zip(lacking, after, strict=True):
            at = torch.multinomial(filling.share.to(generator.device), batch.n, replacement=True, generator=generator).cpu()
            batch, under = filling.put(batch, at), target.put(under, at)
        return _moved(vae, batch, under, kind, generator)
    total: Any = 0.0
    for weight, choice in ways(lacking):
        here, there = batch, under
        for filling, target, j in zip(lacking, after, choice, strict=True):
            here, there = filling.put(here, j), target.put(there, j)
        total = total + weight * _moved(vae, here, there, kind, generator)
    return total  # type: ignore[no-any-return]


def _moved(vae: VAE, batch: Batch, under: Batch, kind: str, generator: torch.Generator) -> Tensor:
    z = locate(vae, batch)
    target = vae.decode(carried(vae, z, batch, under), under)
    if kind == "mean":
        return vae.likelihood.mean(target, under)
    if kind == "sample":
        return vae.likelihood.sample(target, under, generator=generator)
    return vae.likelihood.transport(vae.decode(z, batch), target, batch, under, generator=generator)


def carried(vae: VAE, z: Tensor, batch: Batch, under: Batch) -> Tensor:
    """[n, d] latents moved from their places under the one batch's covariates to the same places under the other's.

    A cell of unknown category, which the prior takes for one of any, is moved from the category that the prior finds likeliest; what stays
    unknown stays where it is.
    """
    before, after = {}, {}
    for name, prior in getattr(vae.prior, "blocks", {None: vae.prior}).items():
        found = prior.candidates(batch)
        if found is None or found.known is None:
            continue
        likely = found.assign(z if name is None else z[:, vae.prior.slices[name]])
        for role in prior.roles:
            still = (batch.code[role] < 0) & (under.code[role] < 0)
            before[role], after[role] = likely, torch.where(still, likely, under.code[role])
    return vae.prior.carry(z, batch.under(code=before), under.under(code=after))
