"""The variational autoencoder: three conditional distributions and a likelihood. It holds no loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from trifold.core.likelihood.base import Likelihood
from trifold.core.posterior import Posterior, draw
from trifold.core.prior.base import Prior
from trifold.errors import SpecError
from trifold.records import Batch, Pass, Progress
from trifold.spec import Component


class VAE(Component, nn.Module):
    """q(z | x, c), p(z | c), and p(x | z, c) as decoder and likelihood.

    Args:
        posterior: Batch -> q(z | x, c).
        prior: (z, Batch) -> log p(z | c).
        decoder: (z, Batch) -> features [n, h]. Any module with that signature, ``taps=`` and ``width``.
        likelihood: features -> p(x | z, c).

    Raises:
        SpecError: A part that is not of its kind.
    """

    def __init__(self, posterior: Posterior, prior: Prior, decoder: Any, likelihood: Likelihood):
        super().__init__()
        kinds: dict[str, tuple[Any, type]] = {
            "posterior": (posterior, nn.Module),
            "prior": (prior, Prior),
            "decoder": (decoder, nn.Module),
            "likelihood": (likelihood, Likelihood),
        }
        for name, (part, kind) in kinds.items():
            if not isinstance(part, kind):
                raise SpecError(f"VAE needs a {kind.__name__} as its {name}; found {type(part).__name__}.")
        self.posterior = posterior
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood

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
        z = draw(qz, generator)
        h = self.decoder(z, batch, taps=taps)
        return Pass(batch=batch, qz=qz, z=z, h=h, vae=self, taps=taps, progress=progress or Progress.done())

    def encode(self, batch: Batch) -> Independent:
        """q(z | x, c): batch [n], event [d]."""
        return self.posterior(batch)  # type: ignore[no-any-return]

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        """[n, h] features of p(x | z, c) at z [n, d]."""
        return self.decoder(z, batch)  # type: ignore[no-any-return]
