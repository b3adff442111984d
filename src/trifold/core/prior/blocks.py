"""``Blocks``: independent named blocks of the latent, each with a prior of its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from trifold.core.prior.base import Prior
from trifold.dist import diagonal
from trifold.errors import SpecError
from trifold.records import Batch


class Blocks(Prior):
    r""":math:`\log p(z \mid c) = \sum_b \log p_b(z_b \mid c)`, z cut into blocks in the order given.

    ``Blocks({"invariant": ConditionalGaussian(30, 12, role="invariant"), "spurious": ConditionalGaussian(5, 8, role="spurious")})``

    Args:
        blocks: name -> prior; its ``latent`` is the width of the block.

    Raises:
        SpecError: No block, a part that is not a prior of a known width, or a block of blocks.
    """

    def __init__(self, blocks: Mapping[str, Prior]):
        super().__init__()
        if not blocks:
            raise SpecError("Blocks needs at least one named prior; found none. Pass Blocks({'shared': StandardNormal(8)}).")
        for name, prior in blocks.items():
            if not isinstance(prior, Prior) or isinstance(prior, Blocks) or not isinstance(getattr(prior, "latent", None), int):
                raise SpecError(
                    f"Blocks needs a prior with a whole number `latent`, its width, as {name!r}; found {type(prior).__name__}. "
                    "Pass StandardNormal(8), or another prior but Blocks."
                )
            if not name or "." in name or hasattr(nn.ModuleDict, name):
                raise SpecError(
                    f"Blocks needs names without dots that are no attributes of torch.nn.ModuleDict, as 'keys' is; found {name!r}. "
                    "Rename the block."
                )
        self._blocks = nn.ModuleDict(blocks)
        widths = [prior.latent for prior in blocks.values()]
        ends = list(itertools.accumulate(widths))
        self._slices = {name: slice(end - width, end) for name, width, end in zip(blocks, widths, ends, strict=True)}
        self.latent = ends[-1]
        self.normalised = all(prior.normalised for prior in blocks.values())

    @property
    def blocks(self) -> dict[str, Prior]:
        """name -> prior, in the order of z."""
        return dict(self._blocks.items())  # type: ignore[arg-type]

    @property
    def slices(self) -> dict[str, slice]:
        """name -> columns of z."""
        return dict(self._slices)

    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] sum over blocks, nats; up to a constant when one block is."""
        return torch.stack([prior.log_prob(z[:, self._slices[name]], batch) for name, prior in self.blocks.items()]).sum(0)

    def held(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] sum over blocks, the parameters of unnormalised blocks held, nats."""
        return torch.stack([prior.held(z[:, self._slices[name]], batch) for name, prior in self.blocks.items()]).sum(0)

    def carry(self, z: Tensor, batch: Batch, under: Batch) -> Tensor:
        """[n, d] each block moved by its own prior."""
        return torch.cat([prior.carry(z[:, self._slices[name]], batch, under) for name, prior in self.blocks.items()], 1)

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of all blocks."""
        return tuple(dict.fromkeys(role for prior in self.blocks.values() for role in prior.roles))

    def distribution(self, batch: Batch) -> Independent | None:
        """Batch [n], event [d], where every block is a diagonal Gaussian; else None."""
        parts = [prior.distribution(batch) for prior in self.blocks.values()]
        if not all(isinstance(part, Independent) and isinstance(part.base_dist, Normal) for part in parts):
            return None
        mean = torch.cat([part.mean for part in parts], 1)  # type: ignore[union-attr]
        scale = torch.cat([part.stddev for part in parts], 1)  # type: ignore[union-attr]
        return diagonal(mean, scale)
