"""The Gaussian of a latent: independent over its dimensions."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Independent, Normal


def diagonal(mean: Tensor, scale: Tensor) -> Independent:
    """N(mean, diag scale²): event [d], the last dimension; not validated, which would synchronise with the device.

    Args:
        mean: [..., d].
        scale: [..., d] standard deviations.
    """
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
