"""First and second derivatives of a surface's features: in closed form where there is one, by ``torch.func`` elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trifold.geometry.surface import Surface


class Local(Protocol):
    """Derivatives at points."""

    @property
    def value(self) -> Tensor:
        """[n, h]."""

    @property
    def slope(self) -> Tensor:
        """[n, d, h] first derivatives."""

    def bend(self, basis: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """[n, k, h] second derivatives along pairs of directions."""


@dataclass(frozen=True)
class Transforms:
    """Derivatives by forward-mode automatic differentiation.

    Args:
        f: [n, d] -> [n, h], row by row.
        z: [n, d] points.
        value: [n, h].
        slope: [n, d, h].
    """

    f: Callable[[Tensor], Tensor]
    z: Tensor
    value: Tensor
    slope: Tensor

    def bend(self, basis: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """[n, k, h] second derivatives along pairs of directions, all exact."""

        def along(u: Tensor, v: Tensor) -> Tensor:
            return torch.func.jvp(lambda y: torch.func.jvp(self.f, (y,), (u,))[1], (self.z,), (v,))[1]  # type: ignore[no-any-return]

        out = torch.func.vmap(along, chunk_size=16)(basis[:, left].transpose(0, 1), basis[:, right].transpose(0, 1))
        return out.transpose(0, 1)  # type: ignore[no-any-return]


def local(surface: Surface, z: Tensor, *, closed: bool | None = None) -> Local:
    """Derivatives of the surface's features at z [n, d].

    Args:
        surface: The surface.
        z: [n, d].
        closed: True: in closed form; False: by ``torch.func``; None: in closed form where there is one.
    """
    if surface.chain is not None and closed is not False:
        return surface.chain.jets(z)
    _ready()
    f = _apart(surface.features)

    def along(direction: Tensor) -> Tensor:
        return torch.func.jvp(f, (z,), (direction.expand_as(z),))[1]  # type: ignore[no-any-return]

    slope = torch.func.vmap(along, out_dims=1, chunk_size=16)(torch.eye(z.shape[1], dtype=z.dtype, device=z.device))
    return Transforms(f, z, f(z), slope)


def _apart(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The map with layer normalisation taken apart: torch's own has wrong second forward derivatives (pytorch issue 196700, in 2.13)."""

    def g(z: Tensor) -> Tensor:
        with _LayerNormApart():
            return f(z)

    return g


class _LayerNormApart(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_layer_norm if func is torch.nn.functional.layer_norm else func)(*args, **(kwargs or {}))


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    deviation = x - x.mean(axes, keepdim=True)
    unit = deviation * torch.rsqrt(deviation.square().mean(axes, keepdim=True) + eps)
    scaled = unit if weight is None else unit * weight
    return scaled if bias is None else scaled + bias


@cache
def _ready() -> None:
    """Let torch prepare its forward mode: it scripts some rules at first use, and warns on that occasion that scripting is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
