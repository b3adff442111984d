"""``Energy``: a conditional prior that does not factorise over dimensions, known up to a constant."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trifold.core.covariates import row_of
from trifold.core.prior.base import Prior
from trifold.core.prior.gaussian import ConditionalGaussian
from trifold.errors import SpecError, suggest
from trifold.nets import MLP
from trifold.records import Batch

SMOOTH = ("softplus", "silu", "gelu", "tanh")


class Energy(Prior):
    r"""A Gaussian per category, tilted by shared statistics of all dimensions together. Known up to a constant.

    .. math:: \log p(z \mid c) = \log N(z; m_c, \mathrm{diag}\, v_c) + \langle T(z), \lambda_c \rangle + \mathrm{const}_c

    which is the exponential family of the paper with :math:`\lambda'_c = (m_c / v_c, -1 / 2 v_c)`: the quadratic part is negative
    definite whatever the parameters, and T, a network of smooth activations without normalisation, grows at most linearly, so that the
    integral is finite. Its derivatives of every order exist, which score matching needs. Where :math:`\lambda_c = 0` the constant is 0.

    The evidence lower bound uses :meth:`held`, whose gradient goes to z only; :class:`trifold.terms.ScoreMatching` moves the parameters.
    Unknown categories get N(0, I).

    Args:
        latent: Number of latent dimensions d.
        categories: Number of joint categories of the role.
        role: Role of the schema.
        hidden: Widths of the layers of T; the last is the number of statistics.
        activation: ``"softplus"``, ``"silu"``, ``"gelu"`` or ``"tanh"``.
        learned: What training moves of the Gaussian part: ``"mean"``, ``"variance"``, ``"both"`` or ``"neither"``.

    Raises:
        SpecError: An activation that is not smooth, or no layer.

    Source: Aliee et al. 2023, the non-factorised prior. We take one table row per category instead of networks of the category, and build
    the quadratic part and T so that p is a density.
    """

    normalised = False

    def __init__(
        self,
        latent: int,
        categories: int,
        *,
        role: str,
        hidden: Sequence[int] = (64, 64),
        activation: str = "softplus",
        learned: str = "both",
    ):
        super().__init__()
        if activation not in SMOOTH:
            raise SpecError(
                f"activation of Energy needs one of {', '.join(map(repr, SMOOTH))}, which are smooth; found {activation!r}."
                f"{suggest(activation, SMOOTH)}"
            )
        if not hidden:
            raise SpecError("Energy needs at least one layer of statistics; found hidden=(). Pass hidden=(32,).")
        self.latent = latent
        self.categories = categories
        self.role = role
        self.hidden = tuple(hidden)
        self.activation = activation
        self.learned = learned
        self.gaussian = ConditionalGaussian(latent, categories, role=role, learned=learned)
        self.statistics = MLP(latent, self.hidden, norm="none", activation=activation)
        # not zero, or the statistics would get no gradient; small, so that training begins near the Gaussian
        self.tilt = nn.Parameter(0.1 / math.sqrt(self.hidden[-1]) * torch.randn(categories + 1, self.hidden[-1]))
        self.register_buffer("known", torch.cat([torch.ones(categories, 1), torch.zeros(1, 1)]), persistent=False)

    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log p(z | c) up to a constant of the category, nats."""
        tilt = (self.tilt * self.get_buffer("known"))[row_of(batch, self.role, self.categories)]
        return self.gaussian.log_prob(z, batch) + (self.statistics(z) * tilt).sum(1)

    def carry(self, z: Tensor, batch: Batch, under: Batch) -> Tensor:
        """[n, d] moved as the Gaussian parts of the categories say."""
        return self.gaussian.carry(z, batch, under)

    @property
    def roles(self) -> tuple[str, ...]:
        """The role."""
        return (self.role,)
