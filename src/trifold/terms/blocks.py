"""Named blocks of the latent, and roles of a batch, as terms ask for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from trifold.dist import diagonal
from trifold.errors import SpecError, suggest
from trifold.records import Pass


def columns(p: Pass, block: str | None) -> slice:
    """Columns of z that a block of the prior takes; None: all.

    Raises:
        SpecError: The prior has no such block.
    """
    if block is None:
        return slice(None)
    slices: Mapping[str, slice] = getattr(p.vae.prior, "slices", {})
    if block not in slices:
        found = f"It has: {', '.join(slices)}." if slices else "It has none: give the VAE a prior Blocks({...})."
        raise SpecError(f"The prior has no block {block!r}.{suggest(block, slices)} {found}")
    return slices[block]


def sample(p: Pass, block: str | None) -> Tensor:
    """[n, k] the block's columns of z, in float32 or better."""
    z = p.z[:, columns(p, block)]
    return z if z.dtype.itemsize >= 4 else z.float()


def marginal(p: Pass, block: str | None) -> Independent:
    """q(z_block | x, c), a diagonal Gaussian: batch [n], event [k].

    Raises:
        SpecError: The posterior is not a diagonal Gaussian, or there is no such block.
    """
    at = columns(p, block)
    if not (isinstance(p.qz, Independent) and isinstance(p.qz.base_dist, Normal)):
        raise SpecError(f"Blocks need a posterior Independent(Normal, 1); found {type(p.qz).__name__}. Use Posterior or BlockPosterior.")
    mean, scale = p.qz.base_dist.loc[:, at], p.qz.base_dist.scale[:, at]
    return diagonal(mean, scale)


def category(p: Pass, role: str) -> Tensor:
    """[n] int64 joint category of a role, -1 where unknown.

    Raises:
        SpecError: The batch lacks the role.
    """
    if role not in p.batch.code:
        raise SpecError(f"The batch has no role {role!r}.{suggest(role, p.batch.code)} It has: {', '.join(p.batch.code) or 'none'}.")
    return p.batch.code[role]


def stratum(p: Pass, role: str, *, block: str | None = None) -> Tensor:
    """[n] int64 category of a role, and, given a block, for cells of unknown category the one that the block's prior finds likeliest.

    Where the prior is a mixture of its own, its components are the categories. No gradient passes.

    Args:
        p: The pass.
        role: Role of the batch; with a block it may be absent.
        block: Name of a block whose prior has candidates; None: unknown cells stay -1.

    Raises:
        SpecError: The batch lacks the role, or the block's prior is no mixture.
    """
    if block is None:
        return category(p, role)
    at = columns(p, block)
    found = p.vae.prior.blocks[block].candidates(p.batch)
    if found is None:
        raise SpecError(
            f"inferred=True needs a prior of block {block!r} that tells categories; found {type(p.vae.prior.blocks[block]).__name__}. "
            "Pass Mixture, ConditionalGaussian(..., unknown='mixture'), or inferred=False."
        )
    with torch.no_grad():
        return found.assign(p.z[:, at].float())  # type: ignore[no-any-return]
