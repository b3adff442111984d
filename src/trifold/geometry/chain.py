"""Jets of a multilayer perceptron in closed form: value, first and second derivatives in the latent, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trifold.nets import MLP

Derivatives = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _softplus(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = torch.sigmoid(p)
    return nn.functional.softplus(p), slope, slope * (1 - slope)


def _silu(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(p)
    t = s * (1 - s)
    return p * s, s + p * t, t * (2 + p * (1 - 2 * s))


def _gelu(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    below = 0.5 * (1 + torch.erf(p / math.sqrt(2)))
    density = torch.exp(-0.5 * p * p) / math.sqrt(2 * math.pi)
    return p * below, below + p * density, density * (2 - p * p)


def _elu(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    e = torch.exp(p.clamp_max(0))
    low = p < 0
    return torch.where(low, e - 1, p), e, torch.where(low, e, torch.zeros_like(e))


def _tanh(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.tanh(p)
    slope = 1 - t * t
    return t, slope, -2 * t * slope


DERIVATIVES: dict[str, Derivatives] = {"softplus": _softplus, "silu": _silu, "gelu": _gelu, "elu": _elu, "tanh": _tanh}


@dataclass(frozen=True)
class Chain:
    """Linear layers, each followed by one smooth activation; at the end, if asked, the input beside the features.

    Args:
        layers: (weight [in, out], bias [out]) of each layer.
        activation: A key of :data:`DERIVATIVES`.
        skip: Whether the features end with the input itself.
        given: (c [n, k] or [1, k], design [k, out]) whose product the first layer adds: covariates of the points, or of all of them.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    activation: str
    skip: bool = False
    given: tuple[Tensor, Tensor] | None = None

    def repeat(self, times: int) -> Chain:
        """The chain for each of its points that many times in a row."""
        if self.given is None or len(self.given[0]) == 1:
            return self
        return replace(self, given=(self.given[0].repeat_interleave(times, 0), self.given[1]))

    def still(self) -> Chain:
        """A copy of the chain as it is now, without gradients to its weights."""
        pairs = [(a.detach().clone(), b.detach().clone()) for a, b in (*self.layers, *((self.given,) if self.given else ()))]
        return replace(self, layers=tuple(pairs[: len(self.layers)]), given=pairs[-1] if self.given else None)

    def jets(self, z: Tensor) -> Jets:
        """Value and first derivatives of the features at z [n, d], ready for second ones."""
        s = DERIVATIVES[self.activation]
        value, slope = z, torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[None]
        trail = []
        for i, (weight, bias) in enumerate(self.layers):
            along = slope @ weight
            offset = bias if i or self.given is None else bias + self.given[0] @ self.given[1]
            value, first, second = s(value @ weight + offset)
            trail.append((weight, along, first[:, None], second[:, None]))
            slope = first[:, None] * along
        if self.skip:
            value = torch.cat([value, z], 1)
            slope = torch.cat([slope, torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(len(z), -1, -1)], 2)
        return Jets(value, slope.expand(len(z), -1, -1), tuple(trail), z.shape[1] if self.skip else 0)


@dataclass(frozen=True)
class Jets:
    """Derivatives of features at points.

    Args:
        value: [n, h] features.
        slope: [n, d, h] first derivatives.
        trail: What second derivatives need of each layer.
        linear: Number of features at the end that are linear in z.
    """

    value: Tensor
    slope: Tensor
    trail: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]
    linear: int

    def bend(self, basis: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Second derivatives along pairs of directions.

        Args:
            basis: [n, m, d] directions in the latent.
            left, right: [k] int64: the pairs, as rows of ``basis``.

        Returns:
            [n, k, h].
        """
        out: Tensor | None = None
        for weight, along, first, second in self.trail:
            moved = basis @ along
            own = second * moved[:, left] * moved[:, right]
            out = own if out is None else own + first * (out @ weight)
        if out is None:
            return self.value.new_zeros(len(basis), len(left), self.value.shape[1])
        return torch.cat([out, out.new_zeros(*out.shape[:2], self.linear)], 2) if self.linear else out


def chain_of(network: MLP, c: Tensor | None = None, *, skip: bool = False) -> Chain | None:
    """A network as a chain that shares its weights; None where it has no such form (normalisation, or no hidden layer).

    Args:
        network: The network. Dropout is left out, as in evaluation.
        c: [n, covariates] of the points, if the network takes them.
        skip: Whether the features end with the input itself.
    """
    if network.norm != "none" or network.first is None or network.activation not in DERIVATIVES:
        return None
    first = network.first
    offset = first.bias if first.bias is not None else first.weight.new_zeros(first.weight.shape[1])
    later: Any = network.linears
    layers = ((first.weight, offset), *((linear.weight.T, linear.bias) for linear in later))
    return Chain(layers, network.activation, skip, None if first.design is None or c is None else (c, first.design))
