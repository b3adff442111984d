"""``BlockPosterior``: an encoder of its own for each block of the latent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.distributions import Independent

from trifold.core.posterior import Posterior
from trifold.dist import diagonal
from trifold.errors import SpecError
from trifold.records import Batch, Rows
from trifold.spec import Component


class BlockPosterior(Component, nn.Module):
    r""":math:`q(z \mid x, c) = \prod_b q_b(z_b \mid x, c)`, blocks in the order given, which is that of the prior ``Blocks``.

    Encoders that share no layer: what one block must not know does not lie ready in a layer that the other needs.

    Args:
        blocks: name -> posterior of the block.

    Raises:
        SpecError: No block, or a part that is not a posterior.
    """

    linear = False

    def __init__(self, blocks: Mapping[str, Posterior]):
        super().__init__()
        for name, part in blocks.items():
            if not isinstance(part, Posterior):
                raise SpecError(
                    f"BlockPosterior needs a Posterior as {name!r}; found {type(part).__name__}. "
                    f"Pass BlockPosterior({{{name!r}: Posterior(...)}})."
                )
        if not blocks:
            raise SpecError(
                "BlockPosterior needs at least one named posterior; found none. Pass BlockPosterior({'shared': Posterior(...)})."
            )
        self._blocks = nn.ModuleDict(blocks)
        self.latent = sum(part.latent for part in blocks.values())

    @property
    def blocks(self) -> dict[str, Posterior]:
        """name -> posterior, in the order of z."""
        return dict(self._blocks.items())  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Independent:
        """The distribution of each cell's latent: batch [n], event [d]."""
        rows: dict[str, Rows] = {}  # transform -> what blocks of that transform share
        parts = []
        for part in self.blocks.values():
            if part.transform not in rows:
                rows[part.transform] = part.transformed(batch)
            parts.append(part.encode(rows[part.transform], batch).base_dist)
        mean, scale = torch.cat([q.loc for q in parts], 1), torch.cat([q.scale for q in parts], 1)
        return diagonal(mean, scale)

    @torch.no_grad()
    def start(self, batches: Iterable[Batch]) -> None:
        """Each block's own start, from training cells."""
        some = list(batches) if any(part.blind > 0 for part in self.blocks.values()) else []
        for part in self.blocks.values():
            part.start(some)
