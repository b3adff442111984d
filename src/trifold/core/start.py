"""Where training begins: at the data's mean, and, where encoder and decoder have linear paths, at their principal components."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor

from trifold.core.posterior import Posterior
from trifold.core.vae import VAE
from trifold.errors import TrifoldWarning
from trifold.nets import RowsLinear
from trifold.records import Batch

_WIDE = 20.0  # a standard deviation within genes that no logarithm of expression has
_CELLS = 4_000  # from which principal components are taken


@torch.no_grad()
def start(vae: VAE, mean: Tensor, var: Tensor, batches: Callable[[], Iterable[Batch]]) -> None:
    """Set what training begins with, from training cells.

    Args:
        vae: Not yet trained.
        mean, var: [g] moments of x.
        batches: () -> training cells, or enough of them.
    """
    spread = float(var.mean().sqrt())
    if vae.likelihood.kind == "real" and spread > _WIDE:
        warnings.warn(
            f"x has a standard deviation of {spread:.3g} within genes, on average; training is made for values of order 1, such as "
            "logarithms, and may fail. Take logarithms (scanpy.pp.log1p) of expression on a linear scale, or divide x by that number.",
            TrifoldWarning,
            stacklevel=3,
        )
    vae.likelihood.start(mean, var)
    vae.posterior.start(batches())
    if getattr(vae.decoder, "skip", False) and vae.posterior.linear:
        _principal(vae, batches())


def _principal(vae: VAE, batches: Iterable[Batch]) -> None:
    """Probabilistic PCA (Tipping and Bishop 1999) of the encoder's view of the data: its posterior and its loadings.

    For counts the encoder's view is log-normalised, which is close to the log rate where it matters, and training does the rest.
    """
    posterior, out, d = cast(Posterior, vae.posterior), vae.likelihood.out, vae.posterior.latent
    x = torch.cat([posterior.seen(batch).to_dense() for batch in _first(batches)]).double()
    centre = x.mean(0)
    deviation = x - centre
    rank = min(d, *x.shape)
    singular, axes = _decomposed(deviation, rank)
    power = singular.square() / len(x)
    rest = (deviation.square().sum() / len(x) - power.sum()).clamp_min(0)
    noise = (rest / max(1, x.shape[1] - rank)).clamp_min(1e-8)
    signal = (power - noise).clamp_min(0.01 * noise)
    encode = axes * (signal.sqrt() / (signal + noise))
    straight = cast(RowsLinear, posterior.straight)
    weight, bias = straight.weight, cast(Tensor, straight.bias)
    weight.zero_()
    weight[:, :rank] = encode.to(weight)
    bias.zero_()
    bias[:rank] = -(centre @ encode).to(bias)
    posterior.head.weight.mul_(0.01)
    posterior.head.bias.zero_()
    posterior.head.bias[d : d + rank] = (noise / (signal + noise)).log().to(bias)
    out.weight[:, -d:] = 0
    out.weight[:, out.in_features - d : out.in_features - d + rank] = (axes * signal.sqrt()).to(out.weight)
    if posterior.transform == "none" and posterior.blind == 0:  # the encoder's view is x: the noise is what the components leave
        left = deviation.square().mean(0) - (axes.square() * signal).sum(1)
        vae.likelihood.start(centre.to(out.weight), left.clamp_min(0).to(out.weight))


def _decomposed(deviation: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """First singular values [rank] and right singular vectors [g, rank], the largest entry of each positive."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)  # not torch.manual_seed, which would move an accelerator's generator too
        _, singular, axes = torch.svd_lowrank(deviation.cpu(), q=min(rank + 10, *deviation.shape), niter=4)
    axes = axes[:, :rank]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    return singular[:rank].to(deviation), axes.to(deviation)


def _first(batches: Iterable[Batch]) -> Iterable[Batch]:
    seen = 0
    for batch in batches:
        if seen >= _CELLS:
            return
        yield batch
        seen += batch.n
