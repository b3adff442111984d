"""Shrinkage of the covariates' own effects towards what all cells share."""

from __future__ import annotations

from torch import Tensor

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term


class Shrinkage(Term):
    r"""Squared norm of the output weights that carry a decoder's effects, per training cell. Dimensionless.

    .. math:: \frac{1}{n} \left(\sum_j \|U_j\|^2 + \mathrm{shared} \sum_j \|\delta_j\|^2\right)

    with n the number of training cells. A Gaussian prior on the weights: where z says nothing about the effect, U goes to 0 and the
    effect falls back on the mean effect.
    For an ``EffectDecoder`` and any likelihood with one output layer ``out``.

    Args:
        shared: Precision of the mean effects, relative to that of the departures.

    Raises:
        SpecError: A negative precision.
    """

    def __init__(self, *, shared: float = 0.1):
        super().__init__()
        if shared < 0:
            raise SpecError(f"Shrinkage needs shared >= 0; found {shared}.")
        self.shared = shared

    def forward(self, p: Pass) -> Tensor:
        """[] the penalty."""
        decoder = p.vae.decoder  # type: ignore[attr-defined]
        weight = p.vae.likelihood.out.weight[:, decoder.network.width :]  # [g, c + c * rank]
        mean, local = weight[:, : decoder.covariates], weight[:, decoder.covariates :]
        return (local.square().sum() + self.shared * mean.square().sum()) / p.progress.cells  # type: ignore[no-any-return]
