"""Cells that never were: covariates drawn as in training, latents from the prior, expression from the likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trifold.core import VAE
from trifold.core.prior import Blocks
from trifold.data import Schema
from trifold.data.columns import Number, key
from trifold.data.columns import plain as as_value
from trifold.errors import FormatError, SchemaError, SpecError, listing
from trifold.inference import Inference, cut, step_of, tensors
from trifold.provenance import plain as as_json
from trifold.records import Batch, Rows
from trifold.results import Result

_COMBINATIONS = 5_000  # rows of covariates that are kept
_STEPS = 300  # of the Langevin walk
_PACE = 1.2  # its step, in standard deviations at one dimension


def combinations_of(obs: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """The combinations of some columns that a table holds, with their numbers of cells; of more than 5,000, evenly spaced ones."""
    there = [c for c in dict.fromkeys(columns) if c in obs]
    if not there:
        return {"columns": [], "values": [[]], "counts": [len(obs)]}
    codes = np.stack([pd.factorize(obs[c])[0] for c in there], 1)
    _, first, counts = np.unique(codes, axis=0, return_index=True, return_counts=True)
    step = -(-len(first) // _COMBINATIONS)
    rows = obs[there].iloc[first[::step]].astype(object)
    values = [[as_json(v) for v in row] for row in rows.itertuples(index=False)]
    return {"columns": there, "values": values, "counts": counts[::step].tolist()}


def sizes_of(size: np.ndarray) -> list[float]:
    """Up to 1,000 library sizes, evenly spaced in rank."""
    kept = min(1_000, size.size)
    return np.quantile(size, (np.arange(kept) + 0.5) / kept, method="inverted_cdf").tolist()  # type: ignore[no-any-return]


def covariates_of(
    schema: Schema, card: Mapping[str, Any], seen: Sequence[str], given: Mapping[str, Any], n: int, seed: int
) -> pd.DataFrame:
    """[n] covariates: those given, and the others drawn jointly from the training combinations that agree with them.

    Numbers that are given do not restrict what the others may be.

    Args:
        schema: Of the training data.
        card: Of the run: its combinations.
        seen: Roles that the model sees.
        given: column -> value.
        n: Number of cells.
        seed: Of the draw.

    Raises:
        SchemaError: No training cell agrees, and columns are left to draw.
        SpecError: No cells are asked for.
        FormatError: The run was written before combinations were kept.
    """
    if n < 1:
        raise SpecError(f"sample needs n >= 1 cells; found {n}. Pass n=1000.")
    if "combinations" not in card:
        raise FormatError(
            "sample needs the combinations of covariates that fit keeps; this run was written by an older trifold, without them. "
            "Train it again with fit(data)."
        )
    kept = card["combinations"]
    out = schema.under(pd.DataFrame(index=[f"sample_{i}" for i in range(n)]), given)
    wanted = dict.fromkeys(c.name for role in seen for c in schema.roles[role])
    rest = [c for c in wanted if c not in given and c in kept["columns"]]
    if not rest:
        return out
    table = pd.DataFrame(kept["values"], columns=kept["columns"], dtype=object)
    fits = np.ones(len(table), dtype=bool)
    for column, value in given.items():
        if column in table and not isinstance(schema.column(column), Number):
            fits &= np.array([key(as_value(v)) == key(as_value(value)) for v in table[column]])
    if not fits.any():
        raise SchemaError(
            f"No training cell has given={dict(given)!r}, so that nothing says what goes with it. Give a value of each of "
            f"{listing(rest)} too, or fewer columns."
        )
    weight = np.asarray(kept["counts"], dtype=np.float64) * fits
    row = np.random.default_rng([seed, 41]).choice(len(table), size=n, p=weight / weight.sum())
    return pd.concat([table[rest].iloc[row].infer_objects().set_axis(out.index), out], axis=1)[list(dict.fromkeys([*wanted, *given]))]


def drawn(prior: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """[n, d] one latent of each cell from p(z | c).

    Of a mixture, and where the category is unknown and may be any, a component is drawn first. A prior that is known up to a constant is
    walked through: 300 steps of Metropolis-adjusted Langevin dynamics, from its Gaussian part.

    Args:
        prior: The prior.
        batch: The cells' covariates.
        generator: Where the noise comes from.
    """
    if isinstance(prior, Blocks):
        return torch.cat([drawn(part, batch, generator) for part in prior.blocks.values()], 1)
    noise = torch.randn(batch.n, prior.latent, generator=generator, device=batch.size.device)
    found = prior.candidates(batch)
    if found is not None:
        at = torch.multinomial(found.log_share.exp(), batch.n, replacement=True, generator=generator)
        at = at if found.known is None else torch.where(found.known < 0, at, found.known)
        return found.each.mean[0, at] + found.each.stddev[0, at] * noise  # type: ignore[no-any-return]
    law = prior.distribution(batch)
    return _walk(prior, batch, noise, generator) if law is None else law.mean + law.stddev * noise


def _walk(prior: Any, batch: Batch, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Metropolis-adjusted Langevin dynamics in the coordinates in which the prior's Gaussian part is N(0, I)."""
    code = {role: torch.full_like(batch.code[role], -1) for role in prior.roles}
    unknown = batch.under(code=code)

    def height(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = prior.log_prob(prior.carry(u, unknown, batch), batch)
            (slope,) = torch.autograd.grad(value.sum(), [u])
        return value.detach(), slope

    step = _PACE**2 / noise.shape[1] ** (1 / 3)  # squared: the variance of a step
    u, (at, slope) = noise, height(noise)
    for _ in range(_STEPS):
        there = u + 0.5 * step * slope + step**0.5 * torch.randn(u.shape, generator=generator, device=u.device)
        value, back = height(there)
        forth = -((there - u - 0.5 * step * slope) ** 2).sum(1) / (2 * step)
        return_ = -((u - there - 0.5 * step * back) ** 2).sum(1) / (2 * step)
        chance = torch.rand(len(u), generator=generator, device=u.device).log()
        taken = chance < value - at + return_ - forth
        u, slope = torch.where(taken[:, None], there, u), torch.where(taken[:, None], back, slope)
        at = torch.where(taken, value, at)
    return prior.carry(u, unknown, batch)  # type: ignore[no-any-return]


def batch_of(schema: Schema, obs: pd.DataFrame, size: np.ndarray) -> Batch:
    """Cells without rows, of some covariates and library sizes, [n]; what the covariates lack is unknown."""
    design, code = schema.covariates(obs, unknown="zero")
    every = np.arange(len(obs))
    rows = Rows.of_dense(torch.zeros(len(obs), 0))
    return Batch(rows, torch.from_numpy(size.astype(np.float32))[:, None], design=tensors(design, every), code=tensors(code, every))


def library_sizes(card: Mapping[str, Any], n: int, size: float | None, seed: int) -> np.ndarray:
    """[n] as asked for, or drawn with replacement from those of training.

    Raises:
        SpecError: A size that is not above 0.
    """
    if size is not None:
        if not size > 0:
            raise SpecError(
                f"size needs a library size above 0; found {size!r}. Pass size=10_000, or leave it out to draw those of training."
            )
        return np.full(n, float(size))
    return np.random.default_rng([seed, 43]).choice(np.asarray(card["sizes"]), size=n)  # type: ignore[no-any-return]


def expressed(vae: VAE, batch: Batch, device: torch.device, seed: int, into: Result) -> None:
    """Draws of x, [n, g], from the prior through the decoder and the likelihood; put in order."""
    with Inference(vae, device) as there:
        generator = torch.Generator(there).manual_seed(seed)
        for at in cut(np.arange(batch.n), step_of(len(vae.likelihood.linear()[0]))):
            own = batch.bare(torch.from_numpy(at)).to(there)
            z = drawn(vae.prior, own, generator)
            into.put(vae.likelihood.sample(vae.decode(z, own), own, generator=generator).cpu().numpy())
