"""Networks: a linear layer that multiplies sparse rows directly, and a multilayer perceptron that leaves taps."""

from __future__ import annotations

import itertools
import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trifold.compiled import compiled
from trifold.compiled.threads import in_parts
from trifold.errors import SpecError, suggest
from trifold.records import Rows
from trifold.share import ALONE, Share
from trifold.spec import Component

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}
NORMS = ("layer", "batch", "none")


class MLP(Component, nn.Module):
    """Linear, normalisation, activation, dropout, for each hidden layer; covariates enter the first.

    Args:
        inputs: Width of the input (genes, or latent dimensions).
        hidden: Width of each layer.
        covariates: Width c of the covariates that the first layer sees beside its input.
        norm: ``"layer"`` (cells do not see each other), ``"batch"`` (as published) or ``"none"``.
        activation: ``"softplus"``, ``"silu"``, ``"gelu"``, ``"elu"``, ``"tanh"``, ``"relu"`` or ``"leaky_relu"``.
        slope: Negative slope of ``"leaky_relu"``.
        dropout: Probability of a zeroed activation in training.
        init: ``"default"`` (uniform, by fan-in) or ``"glorot_normal"``.
        late: Columns of the covariates that came later, group by group (``Model.map``): the product with each group is added apart, so that
            what earlier columns give does not change by a bit.

    Raises:
        SpecError: An unknown norm, activation or initialisation.
    """

    share: Share = ALONE

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        *,
        covariates: int = 0,
        norm: str = "layer",
        activation: str = "softplus",
        slope: float = 0.01,
        dropout: float = 0.0,
        init: str = "default",
        late: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        _check_choice("norm", norm, NORMS)
        _check_choice("activation", activation, tuple(ACTIVATIONS))
        _check_choice("init", init, ("default", "glorot_normal"))
        self.inputs = inputs
        self.hidden = tuple(hidden)
        self.covariates = covariates
        self.norm = norm
        self.activation = activation
        self.slope = slope
        self.dropout = dropout
        self.init = init
        self.late = tuple(tuple(group) for group in late)
        bias = norm != "batch"
        self.first = RowsLinear(inputs, self.hidden[0], covariates=covariates, bias=bias, late=self.late) if self.hidden else None
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(self.hidden))
        self.norms = nn.ModuleList(_norm(norm, w) for w in self.hidden)
        self.activate = nn.LeakyReLU(slope) if activation == "leaky_relu" else ACTIVATIONS[activation]()
        self.drop = nn.Dropout(dropout)
        if init == "glorot_normal":
            self.apply(_glorot)

    @property
    def width(self) -> int:
        """Width of the output."""
        return self.hidden[-1] if self.hidden else self.inputs + self.covariates

    def forward(
        self, x: Rows | Tensor, c: Tensor | None = None, *, taps: MutableMapping[str, Tensor] | None = None, name: str = ""
    ) -> Tensor:
        """Features of each row.

        Args:
            x: [n, inputs], sparse or dense.
            c: [n, covariates], or None when there are none.
            taps: Where each layer's activation (before dropout) is left, under ``"name.index"``.
            name: Prefix of the taps.

        Returns:
            [n, width] features.
        """
        if self.first is None:
            dense = x.to_dense() if isinstance(x, Rows) else x
            return dense if c is None else torch.cat([dense, c], 1)
        h = self.first(x, c)
        for i, norm in enumerate(self.norms):
            if i > 0:
                h = self.linears[i - 1](h)
            h = self.activate(norm(h))
            if taps is not None:
                taps[f"{name}.{i}"] = h
            h = self._dropped(h)
        return h

    def _dropped(self, h: Tensor) -> Tensor:
        if self.share.alone or not self.training or self.dropout == 0:
            return self.drop(h)  # type: ignore[no-any-return]
        return h * self.share.own(self.drop(h.new_ones(self.share.whole(h.shape[0]), h.shape[1])))  # type: ignore[no-any-return]


class RowsLinear(nn.Module):
    """x W + c V + b, where x may be sparse: only the weights of nonzero genes are read.

    Args:
        inputs: Width of x.
        outputs: Width of the result.
        covariates: Width of c.
        bias: Whether b is there.
        late: Columns of c that came later, group by group, whose products are added apart.
    """

    def __init__(self, inputs: int, outputs: int, *, covariates: int = 0, bias: bool = True, late: Sequence[Sequence[int]] = ()):
        super().__init__()
        early = sorted(set(range(covariates)) - set(itertools.chain(*late))) if late else []
        self.groups: list[Any] = [list(group) for group in (early, *late) if group] if late else [None]
        bound = 1 / math.sqrt(max(1, inputs + covariates))
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.design = nn.Parameter(torch.empty(covariates, outputs).uniform_(-bound, bound)) if covariates else None
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Rows | Tensor, c: Tensor | None = None) -> Tensor:
        """[n, outputs]."""
        rest: Tensor | None = self.bias
        if self.design is not None:
            if c is None:
                raise SpecError(
                    f"This layer needs covariates of width {self.design.shape[0]}; found none. Pass c [n, {self.design.shape[0]}]."
                )
            for at in self.groups:
                part, slope = (c, self.design) if at is None else (c[:, at], self.design[at])
                rest = part @ slope if rest is None else torch.addmm(rest, part, slope)
        if isinstance(x, Rows) and x.sparse:
            return sparse_matmul(x, self.weight, plus=rest)
        x = x.to_dense() if isinstance(x, Rows) else x
        return x @ self.weight if rest is None else torch.addmm(rest, x, self.weight)


def sparse_matmul(rows: Rows, weight: Tensor, *, plus: Tensor | None = None) -> Tensor:
    """CSR rows times a dense matrix, with the gradient in the matrix from the transposed rows.

    Args:
        rows: n x g, sparse.
        weight: [g, h].
        plus: What is added, [h] or [n, h]; None: nothing.

    Returns:
        [n, h]. The rows get no gradient. On the CPU in float32 by compiled kernels (:mod:`trifold.compiled`), whose bits do not depend on
        the number of threads.
    """
    crow, col, val = rows.csr()
    plus = None if plus is None else plus.to(weight.dtype)
    if weight.dtype == torch.float32 and weight.device.type == "cpu" and compiled():
        return _FusedSparse.apply(crow.contiguous(), col.contiguous(), val.float().contiguous(), weight, plus)  # type: ignore[no-any-return]
    product = _SparseMatmul.apply(crow, col, val.to(weight.dtype), weight)
    return product if plus is None else product + plus  # type: ignore[no-any-return]


class _FusedSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crow: Tensor, col: Tensor, val: Tensor, weight: Tensor, plus: Tensor | None) -> Tensor:
        from trifold.compiled.sparse import multiply

        n, h = crow.shape[0] - 1, weight.shape[1]
        ctx.save_for_backward(crow, col, val)
        ctx.genes = weight.shape[0]
        ctx.alike = plus is not None and plus.dim() == 1  # for all cells
        out = weight.new_zeros(n, h) if plus is None else plus.expand(n, h).contiguous() if ctx.alike else plus.clone()
        arrays = [t.detach().numpy() for t in (crow, col, val, weight.contiguous(), out)]
        in_parts(lambda first, last: multiply(first, last, *arrays), n, col.shape[0] * h)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        from trifold.compiled.sparse import gradient

        crow, col, val = ctx.saved_tensors
        of_weight = of_plus = None
        if ctx.needs_input_grad[3]:
            of_weight = up[0].new_zeros(ctx.genes, up[0].shape[1])
            arrays = [t.numpy() for t in (crow, col, val, up[0].contiguous(), of_weight)]
            in_parts(lambda first, last: gradient(first, last, *arrays), up[0].shape[1], col.shape[0] * up[0].shape[1])
        if ctx.needs_input_grad[4]:
            of_plus = up[0].sum(0) if ctx.alike else up[0]
        return None, None, None, of_weight, of_plus


class _SparseMatmul(torch.autograd.Function):
    # embedding_bag forward on the CSR and, for the gradient, on its transpose: several times faster than embedding_bag's own backward.
    @staticmethod
    def forward(ctx: Any, crow: Tensor, col: Tensor, val: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(crow, col, val)
        ctx.genes = weight.shape[0]
        return _bag(crow, col, val, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[3]:
            return None, None, None, None
        crow, col, val = ctx.saved_tensors
        order = torch.argsort(col, stable=True)
        row = torch.repeat_interleave(torch.arange(crow.shape[0] - 1, device=crow.device), crow.diff(), output_size=col.shape[0])
        start = col.new_zeros(ctx.genes + 1)
        start.scatter_add_(0, col + 1, torch.ones_like(col))  # bincount would wait for the device
        return None, None, None, _bag(start.cumsum(0), row[order], val[order], up[0].contiguous())


def _bag(crow: Tensor, col: Tensor, val: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.embedding_bag(col, weight, crow, mode="sum", per_sample_weights=val, include_last_offset=True)


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(width)
    return nn.BatchNorm1d(width) if kind == "batch" else nn.Identity()


def _glorot(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, RowsLinear)):
        nn.init.xavier_normal_(module.weight)
        if isinstance(module, RowsLinear) and module.design is not None:
            nn.init.xavier_normal_(module.design)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_choice(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise SpecError(f"{name} needs one of {', '.join(map(repr, options))}; found {value!r}.{suggest(value, options)}")
