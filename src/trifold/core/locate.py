"""Where a cell lies in the latent: the mode of p(z | x, c), found from the encoder's answer."""

from __future__ import annotations

import torch
from torch import Tensor

from trifold.core.vae import VAE
from trifold.geometry.jets import local
from trifold.records import Batch

_NUMBERS = 20_000_000  # in the largest tensor


def locate(vae: VAE, batch: Batch) -> Tensor:
    """[n, d] latent of each cell: the posterior mean, improved ``vae.refine`` times towards the mode of log p(x | z, c) + log p(z | c).

    An encoder says where cells like those of training lie. For cells unlike them the decoder knows better, the more so the flatter it is:
    damped Gauss-Newton steps, each cell's own, that are taken only where they raise the joint density.

    Args:
        vae: In evaluation mode.
        batch: The cells.
    """
    z = vae.posterior(batch).mean
    prior = vae.prior.distribution(batch) if vae.refine else None
    if prior is None:
        return z  # type: ignore[no-any-return]
    surface = vae.surface(batch.bare(torch.arange(batch.n, device=z.device)))
    with torch.no_grad():
        information = vae.likelihood.information(vae.decode(z, batch), batch)
        shared = _gram(vae, information[0]) if len(information) == 1 else None
        bend = z.new_zeros(()) if shared is not None else _bend(vae, local(surface, z).slope, information)
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    inverse_variance = (1 / prior.variance)[:, :, None] * eye
    damping = z.new_full((len(z), 1, 1), 1e-3)
    height, uphill = _joint(vae, z, batch)
    for _ in range(vae.refine):
        with torch.no_grad():
            if shared is not None:
                slope = local(surface, z).slope
                bend = slope @ shared @ slope.transpose(1, 2)
            curved = bend + inverse_variance
            curved = curved + damping * curved.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye
            proposed = z + torch.linalg.solve(curved, uphill)
        there, gradient = _joint(vae, proposed, batch)
        better = there > height
        z = torch.where(better[:, None], proposed, z)
        height, uphill = torch.where(better, there, height), torch.where(better[:, None], gradient, uphill)
        damping = torch.where(better[:, None, None], damping * 0.3, damping * 5).clamp(1e-6, 1e6)
    return z  # type: ignore[no-any-return]


def _joint(vae: VAE, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """[n] log p(x, z | c) and its gradient in z, [n, d]."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        height = vae.likelihood.log_prob(vae.decode(z, batch), batch) + vae.prior.log_prob(z, batch)
        (gradient,) = torch.autograd.grad(height.sum(), [z])
    return height.detach(), gradient


def _gram(vae: VAE, information: Tensor) -> Tensor:
    """[h, h] Fisher information of the decoder's features where all cells have the same, [g], per gene."""
    weight = vae.likelihood.linear()[0]
    return weight.T @ (information[:, None] * weight)


def _bend(vae: VAE, slope: Tensor, information: Tensor) -> Tensor:
    """[n, d, d] Fisher information of the latent, from tangents [n, d, h] and the genes' information [n, g]."""
    weight = vae.likelihood.linear()[0]
    parts = []
    cells = max(1, _NUMBERS // (slope.shape[1] * len(weight)))
    for own, info in zip(slope.split(cells), information.split(cells), strict=True):
        tangent = own @ weight.T
        if vae.likelihood.kind == "counts":  # a shift of all logits says nothing
            total = info.sum(1).clamp_min(1e-12)[:, None, None]
            tangent = tangent - (tangent @ info[:, :, None]) / total
        parts.append((tangent * info[:, None]) @ tangent.transpose(1, 2))
    return torch.cat(parts)
