"""Shrinkage of the covariates' own effects towards what all cells share."""

from __future__ import annotations

from torch import Tensor

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term

_SMOOTH = 1e-3  # below this an absolute value is rounded off, so that its gradient is finite at 0


class Shrinkage(Term):
    r"""Minus the log prior of what an ``EffectDecoder`` and its likelihood learn per covariate, in nats per training cell.

    .. math:: \frac{1}{n} \left(a \sum_j \|U_j\|^2 + b \sum_j \|\delta_j\|^2 + s \sum_{jg} |\delta_{jg}| + t \sum_j \|\log\theta_j - \log\theta\|^2\right)

    with n the number of training cells. Where z says nothing about the effect, U goes to 0 and the effect falls back on the mean effect;
    genes that do not respond get no effect at all; conditions share their inverse dispersions unless the data say otherwise.

    Args:
        local: a, half the precision of the departures U from the mean effect.
        shared: b, half the precision of the mean effects.
        sparse: s, rate of a Laplace prior on the mean effects.
        dispersion: t, half the precision of each condition's log inverse dispersion about the gene's own.

    Raises:
        SpecError: A negative argument.
    """

    def __init__(self, *, local: float = 10.0, shared: float = 1.0, sparse: float = 0.0, dispersion: float = 1.0):
        super().__init__()
        for name, value in (("local", local), ("shared", shared), ("sparse", sparse), ("dispersion", dispersion)):
            if value < 0:
                raise SpecError(f"Shrinkage needs {name} >= 0; found {value}.")
        self.local = local
        self.shared = shared
        self.sparse = sparse
        self.dispersion = dispersion

    def forward(self, p: Pass) -> Tensor:
        """[] nats per cell."""
        decoder = p.vae.decoder  # type: ignore[attr-defined]
        weight = p.vae.likelihood.out.weight[:, decoder.network.width :]  # [g, c + c * rank]
        mean, departure = weight[:, : decoder.covariates], weight[:, decoder.covariates :]
        total = self.local * departure.square().sum() + self.shared * mean.square().sum()
        if self.sparse:
            total = total + self.sparse * ((mean.square() + _SMOOTH**2).sqrt() - _SMOOTH).sum()
        theta = getattr(p.vae.likelihood, "theta", None)
        if theta is not None and self.dispersion:
            total = total + self.dispersion * theta.shrinkage()
        return total / p.progress.cells  # type: ignore[no-any-return]
