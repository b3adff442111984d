"""All cells on the device, in as few bytes as hold them exactly; minibatches are gathered and decoded there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from trifold.data.cells import Cells, rows_of
from trifold.data.columns import Column, Number
from trifold.data.matrix import Array
from trifold.data.source import positions
from trifold.errors import DataError, DeviceError
from trifold.records import Batch, Rows

_SLACK = 1.05  # of the expected number of values, so that the arrays seldom have to grow
# torch gathers signed numbers everywhere, unsigned ones of two bytes not: their bits are kept as int16
_HELD_AS = {
    np.dtype(a): b for a, b in ((np.uint8, torch.uint8), (np.uint16, torch.int16), (np.int32, torch.int32), (np.float32, torch.float32))
}


class Resident:
    """The cells of a :class:`Cells`, all of them on one device: values and their genes in the smallest exact type, and covariates.

    Counts to 255 take a byte, to 65,535 two, other values four; positions of genes two, above 65,536 genes four. The source is read once,
    in pieces.

    Args:
        cells: The cells. What becomes of them later is not seen here.
        device: Where they go. Ask :func:`fits` before.

    Attributes:
        n: Number of cells.
        device: As given.

    Raises:
        DeviceError: The device is not there.
        DataError: A file is damaged.
    """

    def __init__(self, cells: Cells, device: torch.device | str):
        self.n, self.device, self._genes, self._sparse = cells.n, torch.device(device), len(cells.schema.genes), cells.schema.sparse
        try:
            self._size = torch.tensor(cells.size, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(f"device={str(device)!r} was asked for and is not there: {error}. Pass device='cpu'.") from error
        self._code = {role: torch.from_numpy(code.astype(np.int32)).to(self.device) for role, code in cells.code.items()}
        self._design = {role: _Design(parts, cells.schema.roles[role], self.device) for role, parts in cells._parts.items()}
        expected = _expected(cells)
        self._value = _Compact(expected, self.device)
        self._gene = _Compact(expected if self._sparse else 0, self.device, largest=self._genes - 1)
        length = np.zeros(self.n, dtype=np.int64)
        order = np.argsort(cells.kept, kind="stable")  # as they lie in the source
        for start in range(0, self.n, cells.window):
            some = order[start : start + cells.window]
            rows = rows_of(cells.values(some), sparse=self._sparse)
            if self._sparse:
                crow, col, val = rows.csr()
                self._gene.append(col.numpy())
                self._value.append(val.numpy())
                length[some] = crow.diff().numpy()
            else:
                self._value.append(rows.to_dense().numpy().reshape(-1))
        self._length, self._start = length, np.empty(self.n, dtype=np.int64)  # of each cell's values; without length, its row
        self._start[order] = np.cumsum(length[order]) - length[order] if self._sparse else np.arange(self.n)

    @property
    def nbytes(self) -> int:
        """Bytes that the cells take on the device."""
        held = [self._size, *self._code.values(), self._value.held, self._gene.held]
        held += [t for design in self._design.values() for t in (design.at, design.value)]
        return sum(t.nbytes for t in held)

    def batch(self, index: Sequence[int] | Array | Tensor) -> Batch:
        """Some cells as a minibatch on the device, in the order asked for: what ``cells.batch(index, device)`` gives, bit for bit.

        Args:
            index: [k] positions in these cells, from 0.

        Raises:
            DataError: A position outside the cells.
        """
        return next(self.epoch([index]))

    def epoch(self, indices: Iterable[Sequence[int] | Array | Tensor]) -> Iterator[Batch]:
        """A minibatch for each index in turn. All indices go to the device at once, and nothing waits for it after.

        Args:
            indices: Arrays of positions in these cells: ``sampler.epoch(k)``.

        Raises:
            DataError: A position outside the cells; before the first minibatch.
        """
        asked = [positions(i.cpu().numpy() if isinstance(i, Tensor) else i, self.n) for i in indices]
        ends = np.cumsum([0, *(len(index) for index in asked)])
        every = np.concatenate([*asked, np.zeros(0, dtype=np.int64)])
        total = np.concatenate([[0], np.cumsum(self._length[every])])
        crows = [total[a : b + 1] - total[a] for a, b in pairwise(ends)]
        start = self._start[every]
        if self._sparse:  # as the distance from a value's place in the minibatch to its place here
            start = start - np.concatenate([*(crow[:-1] for crow in crows), np.zeros(0, dtype=np.int64)])
        packed = torch.from_numpy(np.concatenate([every, start, *crows]))
        if self.device.type == "cuda":
            packed = packed.pin_memory().to(self.device, non_blocking=True)
        index, place, crow = packed.to(self.device).split([len(every), len(every), len(packed) - 2 * len(every)])
        for k, (a, b) in enumerate(pairwise(ends.tolist())):
            yield self._batch(index[a:b], place[a:b], crow[a + k : b + k + 1], int(crows[k][-1]))

    def _batch(self, index: Tensor, place: Tensor, crow: Tensor, values: int) -> Batch:
        if self._sparse:
            at = torch.repeat_interleave(place, crow.diff(), output_size=values)
            at += torch.arange(values, device=self.device)
            rows = Rows.of_csr(crow, self._gene.take(at, torch.int64), self._value.take(at, torch.float32), (len(index), self._genes))
        else:
            rows = Rows.of_dense(self._value.take(place, torch.float32, width=self._genes))
        return Batch(
            rows=rows,
            size=self._size.index_select(0, index),
            design={role: design.of(index) for role, design in self._design.items()},
            code={role: code.index_select(0, index).to(torch.int64) for role, code in self._code.items()},
        )


def fits(cells: Cells, device: torch.device | str, *, share: float = 0.6) -> bool:
    """Whether the cells would take no more than a share of the memory that is free on a device. Reads no values.

    Args:
        cells: The cells.
        device: Where they would go.
        share: Of the free memory, in (0, 1]; the rest is for the model and its minibatches.

    Raises:
        DataError: A share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise DataError(f"share must lie above 0 and be at most 1; found {share}. Pass share=0.6.")
    return expected_bytes(cells) <= share * free_bytes(torch.device(device))


def expected_bytes(cells: Cells) -> int:
    """Bytes that the cells are expected to take as :class:`Resident`: by the density of the training data, with two bytes for a count."""
    wide = 1 if cells.schema.kind == "binary" else 2 if cells.schema.kind == "counts" and cells.schema.fractional == "error" else 4
    if cells.schema.sparse:
        wide += np.dtype(_type_for(len(cells.schema.genes) - 1)).itemsize
    columns = sum(len(columns) for columns in cells.schema.roles.values())
    return _expected(cells) * wide + cells.n * (4 + 4 * len(cells.schema.roles) + 8 * columns)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device, counting what torch holds there without using it; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


class _Compact:
    """Numbers one after another, all in the smallest of uint8, uint16, and int32 or float32 that holds those seen so far.

    Args:
        capacity: Numbers expected.
        device: Where they lie.
        largest: Bound of whole numbers that is known before; None: the numbers are looked at, and what is not whole, or larger than
            65,535, is kept in float32.
    """

    def __init__(self, capacity: int, device: torch.device, *, largest: int | None = None):
        self.looks, self.used = largest is None, 0
        self.type = np.dtype(_type_for(largest or 0))
        self.held = torch.empty(capacity, dtype=_HELD_AS[self.type], device=device)

    def append(self, numbers: Array) -> None:
        if self.looks:
            self._widen(np.promote_types(self.type, _exact(numbers)))
        if self.used + len(numbers) > len(self.held):
            grown = self.held.new_empty(int(_SLACK * (self.used + len(numbers))) + 1)
            grown[: self.used] = self.held[: self.used]
            self.held = grown
        narrow = numbers.astype(self.type)
        signed = torch.from_numpy(narrow.view(np.int16) if self.type == np.uint16 else narrow)
        self.held[self.used : self.used + len(numbers)] = signed.to(self.held.device)
        self.used += len(numbers)

    def take(self, at: Tensor, dtype: torch.dtype, *, width: int | None = None) -> Tensor:
        """The numbers at some places, or the rows of so many numbers, as another type."""
        held = self.held if width is None else self.held[: self.used].view(-1, width)
        return _read(held.index_select(0, at), self.type).to(dtype)

    def _widen(self, wider: np.dtype) -> None:
        if wider != self.type:
            self.held = _read(self.held, self.type).to(_HELD_AS[wider])
            self.type = wider


class _Design:
    """The columns of a role on the device: where in the design each cell has a number, and which.

    Args:
        parts: [n] of each column, as ``Cells`` keeps them.
        columns: Of the role.
        device: Where they go.
    """

    def __init__(self, parts: Sequence[Array], columns: Sequence[Column], device: torch.device):
        begins = np.cumsum([0, *(c.width for c in columns)])
        self.width = int(begins[-1])
        places, values = [], []
        for part, column, begin in zip(parts, columns, begins, strict=False):
            number = isinstance(column, Number)
            places.append(np.full(len(part), begin) if number else begin + np.maximum(part, 0))
            values.append(part if number else part >= 0)  # an unknown category is a zero in its first place
        self.at = torch.from_numpy(np.stack(places, 1).astype(np.int32)).to(device)
        self.value = torch.from_numpy(np.stack(values, 1).astype(np.float32)).to(device)

    def of(self, index: Tensor) -> Tensor:
        """[k, c] design of some cells."""
        out = self.value.new_zeros(len(index), self.width)
        return out.scatter_(1, self.at.index_select(0, index).to(torch.int64), self.value.index_select(0, index))


def _expected(cells: Cells) -> int:
    """Number of values that the cells hold, as far as can be told without reading them."""
    whole = cells.n * len(cells.schema.genes)
    return int(min(whole, _SLACK * cells.schema.density * whole + 1)) if cells.schema.sparse else whole


def _exact(values: Array) -> np.dtype:
    """The smallest type that holds float32 values exactly, of uint8, uint16 and float32."""
    whole = not len(values) or (not np.signbit(values).any() and values.max() <= 65_535 and bool((values == np.rint(values)).all()))
    return np.dtype(_type_for(int(values.max(initial=0)))) if whole else np.dtype(np.float32)


def _type_for(largest: int) -> type:
    return np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32


def _read(held: Tensor, kind: np.dtype) -> Tensor:
    return held.view(torch.uint16) if kind == np.uint16 else held
