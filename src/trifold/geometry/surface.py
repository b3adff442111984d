"""``Surface``: what a decoder spans in data space, as geometry sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trifold.errors import ShapeError, SpecError
from trifold.geometry.chain import Chain

Map = Callable[[Tensor], Tensor]
_KINKED = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Threshold)
_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Surface:
    """The map z -> W features(z) + b from [n, d] to [n, g]. Curvature, lengths and angles need W only through its Gram matrix.

    Args:
        features: [n, d] -> [n, h], row by row.
        weight: [g, h] last linear map W; None: the features are the data space themselves.
        bias: [g] b, or None.
        centred: Take the mean over genes out of each point, as where a softmax follows: rates do not change when all logits shift.
        chain: The features in closed form, if they have one.
        module: Whose layers decide whether second derivatives mean anything; None: not looked at.
        known: [h, h] the Gram matrix, if it is known already (:meth:`once`).
    """

    features: Map
    weight: Tensor | None = None
    bias: Tensor | None = None
    centred: bool = False
    chain: Chain | None = None
    module: Any = None
    known: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """[n, g] points of the surface."""
        h = self.chain.jets(z).value if self.chain is not None else self.features(z)
        x = h if self.weight is None else h @ self.weight.T + (0 if self.bias is None else self.bias)
        return x - x.mean(1, keepdim=True) if self.centred else x

    def still(self) -> Surface:
        """A copy of the last linear map and the closed form as they are now, without gradients to their weights."""
        weight, bias = (None if part is None else part.detach().clone() for part in (self.weight, self.bias))
        known = None if self.known is None else self.known.detach().clone()
        return replace(self, weight=weight, bias=bias, known=known, chain=None if self.chain is None else self.chain.still()).once()

    def repeat(self, times: int) -> Surface:
        """The surface for each of its points that many times in a row, so that covariates stay with their points."""

        def features(z: Tensor) -> Tensor:
            rows = z.unflatten(0, (-1, times))
            return torch.func.vmap(self.features, in_dims=1, out_dims=1)(rows).flatten(0, 1)  # type: ignore[no-any-return]

        return replace(self, features=features, chain=None if self.chain is None else self.chain.repeat(times))

    def push(self, tangent: Tensor) -> Tensor:
        """[..., g] of tangents in feature space, [..., h]."""
        x = tangent if self.weight is None else tangent @ self.weight.T.to(tangent)
        return x - x.mean(-1, keepdim=True) if self.centred else x

    @property
    def gram(self) -> Tensor | None:
        """[h, h] inner products of the last linear map's columns; None: the identity. Of the weight as it is now."""
        if self.known is not None:
            return self.known
        if self.weight is None:
            return None if not self.centred else _centring(self)
        weight = self.weight - self.weight.mean(0) if self.centred else self.weight
        return weight.T @ weight

    def once(self) -> Surface:
        """The same surface with the Gram matrix of the weight as it is now, for several looks at it."""
        return replace(self, known=self.gram)

    def require_smooth(self) -> None:
        """Refuse what has no second derivative worth the name.

        Raises:
            SpecError: An activation with a kink, or BatchNorm in training mode.
        """
        for part in self.module.modules() if isinstance(self.module, nn.Module) else ():
            if isinstance(part, _KINKED):
                raise SpecError(
                    f"Curvature needs a smooth activation; the decoder has {type(part).__name__}, whose second derivative is 0 although it "
                    "bends. Build it with activation='softplus' (or 'silu', 'gelu', 'tanh')."
                )
            if isinstance(part, _BATCH) and part.training:
                raise SpecError(
                    "Curvature needs cells that do not see each other; the decoder has BatchNorm in training mode. "
                    "Build it with norm='none' or norm='layer', or call eval() first."
                )


def surface_of(f: Any) -> Surface:
    """Anything that maps latent points to data space, as a surface.

    Args:
        f: A Surface, or any callable [n, d] -> [n, g] that maps rows on their own.

    Raises:
        SpecError: Not callable.
    """
    if isinstance(f, Surface):
        return f
    if not callable(f):
        raise SpecError(f"Geometry needs a callable [n, d] -> [n, g]; found {type(f).__name__}. Pass model.surface(), or a function.")
    return Surface(f, module=f)


def points_of(z: Tensor) -> Tensor:
    """Latent points, checked.

    Raises:
        ShapeError: Not two-dimensional, without a latent dimension, or not floating point.
    """
    if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[1] < 1 or not z.is_floating_point():
        found = f"a tensor {tuple(z.shape)} of {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ShapeError(
            f"Geometry needs points as a floating-point tensor [n, d]; found {found}. Pass torch.as_tensor(z, dtype=torch.float32)."
        )
    return z


def inner(left: Tensor, gram: Tensor | None) -> Tensor:
    """Tangents [..., h] with the Gram matrix applied: what they are multiplied with for inner products."""
    return left if gram is None else left @ gram


def _centring(surface: Surface) -> Tensor:
    raise SpecError(
        "A surface with centred=True needs weight=, its last linear map; found weight=None. "
        "Pass centred=False, and take the mean over genes out inside features."
    )


def full(z: Tensor) -> Any:
    """Full precision around geometry, whatever the autocast."""
    return torch.autocast(z.device.type, enabled=False)
