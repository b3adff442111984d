"""``GeneAnswers``: what can be asked of a trained model about genes, and cells that never were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trifold import effects, generation
from trifold.asking import Asking, Unknown
from trifold.data import splits
from trifold.effects import columns_of
from trifold.inference import device_of
from trifold.prediction import require_effect
from trifold.provenance import plain, was_seen
from trifold.results import Dense, Sparse
from trifold.technique import BIOLOGY, Technique

if TYPE_CHECKING:
    from anndata import AnnData


class GeneAnswers(Asking):
    """What a trained model answers about genes. Arguments mean what they mean in :class:`trifold.answers.Answers`."""

    def loadings(
        self, data: Any = None, *, block: str | None = BIOLOGY, missing: str = "error", unknown: Unknown = "error", seed: int = 0
    ) -> pd.DataFrame:
        """What each latent dimension does to each gene: the decoder's derivative, averaged over cells.

        Args:
            data: Cells (at most 500, evenly spaced) at whose latents and covariates it is taken; None: at 500 draws of the prior.
            block: Name of the block; None: all of the latent.
            missing, unknown: See :class:`trifold.answers.Answers`. Unknown covariates are zeros.
            seed: Of the draws.

        Returns:
            [g, k] table, genes by ``BLOCK_0``, ... Change per unit of latent of x for real values, of the log rate less its mean over genes
            (nats) for counts, of the log odds for binary values.

        Raises:
            SpecError: No such block.
        """
        self._need_fit("loadings")
        columns_of(self.vae, block)
        points = self._cells(data, missing=missing, unknown=unknown) if data is not None else self._drawn({}, effects.POINTS, None, seed)[0]
        return effects.loadings_of(self.vae, points, block, list(self.schema.genes), seed=seed)

    def difference(
        self,
        data: Any,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        *,
        samples: int = 5_000,
        threshold: float = float(np.log(1.5)),
        seed: int = 0,
        missing: str = "error",
        unknown: Unknown = "error",
        device: str = "auto",
    ) -> pd.DataFrame:
        """Which genes differ between two groups of cells, technique taken out.

        Of many pairs of a random cell of a and one of b, each at a latent drawn from its posterior, both are decoded under the same
        category of technique, the categories in turn; and the expected expression is compared. Models that see no technique decode
        each cell as it is.

        Args:
            data, missing, unknown, device: See :class:`trifold.answers.Answers`; unknown covariates are zeros.
            a, b: column -> value or list of values that choose the groups' cells; at most 2,000 of each are drawn.
            samples: Number of pairs.
            threshold: Of the absolute change that counts: nats for counts, units of x otherwise.
            seed: Of pairs and latents.

        Returns:
            A table of genes, most probable first: ``log_fold_change`` (natural log of a over b, 0.01 counts per 10,000 added to either;
            for other values than counts ``change``, a - b in the units of x), its standard deviation ``sd`` over pairs, ``probability``
            that its absolute value exceeds the threshold, and ``mean_a``, ``mean_b``: expected counts at a library size of 10,000, or x.

        Raises:
            SchemaError: No cell matches, or one matches both.

        Source: Boyeau et al., bioRxiv 794289 (2019), the mode "change" of scVI. Both cells of a pair share technique; there, a batch.
        """
        self._need_fit("difference")
        cells = self._cells(data, missing=missing, unknown=unknown)
        chosen = splits.some(cells.obs, a, named="a="), splits.some(cells.obs, b, named="b=")
        pair = effects.groups_of(*chosen, seed=seed)
        there = device_of(device)
        return effects.difference(
            self.vae,
            Technique(self.vae, self.schema, self.card),
            cells,
            *pair,
            samples=samples,
            threshold=threshold,
            seed=seed,
            device=there,
        )

    def sample(
        self, given: Mapping[str, Any] | None = None, *, n: int = 1_000, size: float | None = None, seed: int = 0, device: str = "auto"
    ) -> AnnData:
        """New cells: covariates, then z from the prior, then x from the likelihood.

        Args:
            given: column -> value of all cells. Other columns that the model sees are drawn jointly, as often as the training cells that
                agree with ``given`` have them; numbers in ``given`` do not restrict them.
            n: Number of cells.
            size: Library size; None: drawn with replacement from those of training. Counts only.
            seed: Of everything.
            device: Where to compute.

        Returns:
            A new AnnData of draws (CSR counts, or an array of real values), whose obs hold the covariates and ``seen``.

        Raises:
            SchemaError: No training cell agrees with ``given``, and columns are left to draw.
            SpecError: A column that neither the decoder nor the prior sees, or a size or n that is not above 0.
        """
        from anndata import AnnData

        self._need_fit("sample")
        given = dict(given or {})
        require_effect(self.vae, self.schema, given, verb="sample")
        batch, obs = self._drawn(given, n, size, seed)
        into = Dense(n) if self.schema.kind == "real" else Sparse(n)
        generation.expressed(self.vae, batch, device_of(device), seed, into)
        obs = obs.assign(seen=was_seen(obs, self.card["seen"]))
        var, about = pd.DataFrame(index=list(self.schema.genes)), self._about(kind="sample", given=plain(given), seed=seed)
        return AnnData(into.values, obs=obs, var=var, uns=about)
