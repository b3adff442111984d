"""The variational autoencoder: three conditional distributions and a likelihood. It holds no loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from trifold.core.encoders import BlockPosterior
from trifold.core.likelihood.base import Likelihood
from trifold.core.posterior import Posterior, draw
from trifold.core.prior.base import Prior
from trifold.errors import ShapeError, SpecError
from trifold.geometry import Surface
from trifold.records import Batch, Pass, Progress
from trifold.share import ALONE, Share
from trifold.spec import Component


class VAE(Component, nn.Module):
    """q(z | x, c), p(z | c), and p(x | z, c) as decoder and likelihood.

    Args:
        posterior: Batch -> q(z | x, c).
        prior: (z, Batch) -> log p(z | c).
        decoder: (z, Batch) -> features [n, h]. Any module with that signature, ``taps=`` and ``width``.
        likelihood: features -> p(x | z, c).
        refine: Steps by which a trained model improves the encoder's answer for a cell (:func:`trifold.core.locate`); 0: none.

    Raises:
        SpecError: A part that is not of its kind.
    """

    share: Share = ALONE

    def __init__(self, posterior: Posterior | BlockPosterior, prior: Prior, decoder: Any, likelihood: Likelihood, *, refine: int = 0):
        super().__init__()
        kinds: dict[str, tuple[Any, type]] = {
            "posterior": (posterior, nn.Module),
            "prior": (prior, Prior),
            "decoder": (decoder, nn.Module),
            "likelihood": (likelihood, Likelihood),
        }
        for name, (part, kind) in kinds.items():
            if not isinstance(part, kind):
                raise SpecError(f"VAE needs a {kind.__name__} as its {name}; found {type(part).__name__}. Pass one of trifold.core.")
        if refine < 0:
            raise SpecError(f"VAE needs refine >= 0 steps; found {refine}. Pass refine=0 for none.")
        self.posterior = posterior
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.refine = refine

    def forward(self, batch: Batch, progress: Progress | None = None, *, generator: torch.Generator | None = None) -> Pass:
        """One pass: encode, draw z, decode.

        Args:
            batch: The cells.
            progress: How far training has come; None: the end.
            generator: Where the noise of z comes from; None: torch's own.

        Returns:
            The pass that the terms of an objective read.
        """
        taps: dict[str, Tensor] = {}
        qz = self.posterior(batch)
        z = draw(qz, generator, share=self.share)
        h = self.decoder(z, batch, taps=taps)
        return Pass(batch=batch, qz=qz, z=z, h=h, vae=self, taps=taps, progress=progress or Progress.done())

    def encode(self, batch: Batch) -> Independent:
        """q(z | x, c): batch [n], event [d]."""
        return self.posterior(batch)  # type: ignore[no-any-return]

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        """[n, h] features of p(x | z, c) at z [n, d]."""
        return self.decoder(z, batch)  # type: ignore[no-any-return]

    def surface(self, batch: Batch) -> Surface:
        """The map z -> last linear layer's output, [n, d] -> [n, g], under the batch's covariates, dropout left out.

        For real values it is their mean, for counts the log rate with its mean over genes taken out, for binary values the log odds. A
        batch of one cell stands for any number of points under that cell's covariates.
        """
        weight, bias = self.likelihood.linear()
        chain = self.decoder.chain(batch) if hasattr(self.decoder, "chain") else None
        return Surface(
            features=_Still(self.decoder, batch),
            weight=weight,
            bias=bias,
            centred=self.likelihood.kind == "counts",
            chain=chain,
            module=self.decoder,
        )


class _Still:
    """A decoder under fixed covariates, without dropout."""

    def __init__(self, decoder: nn.Module, batch: Batch):
        self.decoder = decoder
        self.batch = batch

    def __call__(self, z: Tensor) -> Tensor:
        dropped = [part for part in self.decoder.modules() if isinstance(part, nn.Dropout) and part.training]
        for part in dropped:
            part.training = False
        batch = self.batch
        if batch.n != len(z):
            if batch.n != 1:
                raise ShapeError(
                    f"This surface holds the covariates of {batch.n} cells, one a point; found {len(z)} points. "
                    "Pass one point for each cell, "
                    "or take model.surface(), whose covariates are the same everywhere."
                )
            batch = batch.bare(torch.zeros(len(z), dtype=torch.int64, device=z.device))
        try:
            return self.decoder(z, batch)  # type: ignore[no-any-return]
        finally:
            for part in dropped:
                part.training = True
