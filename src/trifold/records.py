"""The frozen records that travel: ``Rows``, ``Batch``, ``Progress``, ``Pass``, ``Report``.

Sizes, everywhere: ``n`` cells, ``g`` genes (features), ``d`` latent, ``c`` covariate width, ``h`` hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.distributions import Distribution


@dataclass(frozen=True)
class Rows:
    """n x g values of a minibatch, sparse (CSR) or dense: the one type that hides which.

    Make one with :meth:`of_dense` or :meth:`of_csr`. Absent entries of the sparse form are zeros.

    Args:
        shape: (n, g).
        dense: [n, g] float values, or None when sparse.
        crow: [n + 1] int64 row pointers (sparse).
        col: [nnz] int64 gene of each stored value (sparse).
        val: [nnz] float stored values (sparse).
    """

    shape: tuple[int, int]
    dense: Tensor | None = None
    crow: Tensor | None = None
    col: Tensor | None = None
    val: Tensor | None = None

    @staticmethod
    def of_dense(values: Tensor) -> Rows:
        """Rows of a dense [n, g] tensor."""
        return Rows((int(values.shape[0]), int(values.shape[1])), dense=values)

    @staticmethod
    def of_csr(crow: Tensor, col: Tensor, val: Tensor, shape: tuple[int, int]) -> Rows:
        """Rows of the three arrays of a canonical CSR matrix."""
        return Rows(shape, crow=crow, col=col, val=val)

    @property
    def sparse(self) -> bool:
        """Whether the values are held as CSR."""
        return self.dense is None

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return cast(Tensor, self.val if self.dense is None else self.dense).device

    def csr(self) -> tuple[Tensor, Tensor, Tensor]:
        """(crow, col, val) of the sparse form."""
        if self.crow is None or self.col is None or self.val is None:
            raise TypeError("these Rows are dense: they have no CSR arrays")
        return self.crow, self.col, self.val

    def row(self) -> Tensor:
        """[nnz] row of each stored value (sparse form); worked out once."""
        if "_row" not in self.__dict__:
            crow, col, _ = self.csr()
            index = torch.arange(self.shape[0], device=crow.device)
            self.__dict__["_row"] = torch.repeat_interleave(index, crow.diff(), output_size=col.shape[0])
        return self.__dict__["_row"]  # type: ignore[no-any-return]

    def to_dense(self) -> Tensor:
        """[n, g] values; the dense form is returned as it is."""
        if self.dense is not None:
            return self.dense
        _, col, val = self.csr()
        out = torch.zeros(self.shape, dtype=val.dtype, device=val.device)
        out.view(-1).scatter_add_(0, self.row() * self.shape[1] + col, val)
        return out

    def having(self, val: Tensor) -> Rows:
        """Rows of the same pattern with other stored values, [nnz] (sparse form)."""
        other = replace(self, val=val)
        other.__dict__.update({"_row": self.__dict__["_row"]} if "_row" in self.__dict__ else {})
        return other

    def map(self, f: Callable[[Tensor], Tensor]) -> Rows:
        """Rows with ``f`` applied to each value; ``f`` must keep zero."""
        if self.dense is not None:
            return replace(self, dense=f(self.dense))
        return self.having(f(cast(Tensor, self.val)))

    def scale(self, factor: Tensor) -> Rows:
        """Rows with each row multiplied by its factor, [n, 1]."""
        if self.dense is not None:
            return replace(self, dense=self.dense * factor)
        return self.having(cast(Tensor, self.val) * factor.view(-1)[self.row()])

    def weigh(self, weight: Tensor) -> Rows:
        """Rows with each gene multiplied by its weight, [g]."""
        if self.dense is not None:
            return replace(self, dense=self.dense * weight)
        _, col, val = self.csr()
        return self.having(val * weight[col])

    def total(self) -> Tensor:
        """[n, 1] sum of each row."""
        if self.dense is not None:
            return self.dense.sum(1, keepdim=True)
        _, _, val = self.csr()
        out = torch.zeros(self.shape[0], dtype=val.dtype, device=val.device)
        return out.scatter_add_(0, self.row(), val).view(-1, 1)

    def head(self, k: int) -> Rows:
        """The first k rows."""
        return self.between(0, min(k, self.shape[0]))

    def between(self, start: int, stop: int) -> Rows:
        """Rows start to stop, which share the memory of these."""
        shape = (stop - start, self.shape[1])
        if self.dense is not None:
            return Rows(shape, dense=self.dense[start:stop])
        crow, col, val = self.csr()
        crow = crow[start : stop + 1]
        first, last = int(crow[0]), int(crow[-1])
        return Rows.of_csr(crow - first, col[first:last], val[first:last], shape)

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on another device."""
        dense, crow, col, val = (_moved(part, device) for part in (self.dense, self.crow, self.col, self.val))
        return Rows(self.shape, dense=dense, crow=crow, col=col, val=val)


@dataclass(frozen=True)
class Batch:
    """A minibatch: what the model sees of some cells.

    Args:
        rows: n x g counts or values.
        size: [n, 1] library size (counts); ones for real-valued data.
        design: role -> [n, c] covariates: one-hot categories and standardised numbers.
        code: role -> [n] int64 joint category of the role's categorical columns, -1 where unknown.
    """

    rows: Rows
    size: Tensor
    design: Mapping[str, Tensor] = field(default_factory=dict)
    code: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of cells."""
        return self.rows.shape[0]

    def under(self, *, code: Mapping[str, Tensor] | None = None, **design: Tensor) -> Batch:
        """The same cells under other covariates: ``batch.under(condition=design)``; never in place.

        Args:
            code: role -> [n] joint categories that go with the new designs.
            **design: role -> [n, c].
        """
        return replace(self, design={**self.design, **design}, code={**self.code, **(code or {})})

    def head(self, k: int) -> Batch:
        """The first k cells."""
        return Batch(
            rows=self.rows.head(k),
            size=self.size[:k],
            design={r: t[:k] for r, t in self.design.items()},
            code={r: t[:k] for r, t in self.code.items()},
        )

    def bare(self, index: Tensor) -> Batch:
        """Library sizes and covariates of some cells, without their rows: [k, 0]; what decoding needs.

        Args:
            index: [k] int64 positions in the batch.
        """
        return Batch(
            rows=Rows.of_dense(self.size.new_zeros(len(index), 0)),
            size=self.size[index],
            design={r: t[index] for r, t in self.design.items()},
            code={r: t[index] for r, t in self.code.items()},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; itself if it is there."""
        if self.rows.device == device:
            return self
        return Batch(
            rows=self.rows.to(device),
            size=self.size.to(device),
            design={r: t.to(device) for r, t in self.design.items()},
            code={r: t.to(device) for r, t in self.code.items()},
        )


@dataclass(frozen=True)
class Progress:
    """How far training has come: steps and epochs done and planned, and the number of cells that one epoch sees."""

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1
    cells: int = 1

    @property
    def fraction(self) -> float:
        """Share of the planned steps that is done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.steps))

    @staticmethod
    def done(cells: int = 1) -> Progress:
        """The end of training: schedules give their last value."""
        return Progress(step=1, steps=1, epoch=1, epochs=1, cells=cells)


class Coder(Protocol):
    """What a term may ask of the model: its three conditional distributions and its likelihood."""

    prior: Any
    likelihood: Any

    def posterior(self, batch: Batch) -> Distribution:
        """q(z | x, c)."""

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        """[n, h] features of p(x | z, c)."""

    def surface(self, batch: Batch) -> Any:
        """The map from z to data space under the batch's covariates, as :mod:`trifold.geometry` takes it."""


@dataclass(frozen=True)
class Pass:
    """One forward pass, read by the terms.

    Args:
        batch: The cells.
        qz: q(z | x, c), batch [n], event [d].
        z: [n, d] a reparametrised sample of qz.
        h: [n, h] decoder features, which the likelihood turns into p(x | z, c).
        vae: The model.
        taps: name -> [n, h] activations left on the way: ``"decoder.0"``.
        progress: How far training has come.
    """

    batch: Batch
    qz: Distribution
    z: Tensor
    h: Tensor
    vae: Coder
    taps: Mapping[str, Tensor]
    progress: Progress


@dataclass(frozen=True)
class Report:
    """What the objective says of one pass.

    Args:
        loss: [] the weighted sum, in nats per cell.
        values: name -> [] raw value of each term, detached, still on the device.
        weights: name -> weight that it was multiplied by.
    """

    loss: Tensor
    values: Mapping[str, Tensor]
    weights: Mapping[str, float]


def _moved(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
