"""Kernels of sparse rows: times a dense matrix, its gradient, and log-normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from trifold.compiled.elementary import ONE, log1p32, strict


@strict
def multiply(first: int, last: int, crow: Any, col: Any, val: Any, weight: Any, out: Any) -> None:
    """Add CSR rows first to last times a matrix to ``out``.

    Args:
        first, last: The rows to do.
        crow, col, val: The CSR arrays, ``val`` float32.
        weight: [g, h] float32.
        out: [n, h] float32.
    """
    h = weight.shape[1]
    sums = np.empty(h, np.float32)
    for i in range(first, last):
        sums[:] = 0
        m, end = crow[i], crow[i + 1]
        while m + 4 <= end:  # four at a time: the sums are read and written once for them
            a, b, c, d = val[m], val[m + 1], val[m + 2], val[m + 3]
            of_a, of_b, of_c, of_d = weight[col[m]], weight[col[m + 1]], weight[col[m + 2]], weight[col[m + 3]]
            for k in range(h):
                sums[k] += (a * of_a[k] + b * of_b[k]) + (c * of_c[k] + d * of_d[k])
            m += 4
        while m < end:
            a, of_a = val[m], weight[col[m]]
            for k in range(h):
                sums[k] += a * of_a[k]
            m += 1
        row = out[i]
        for k in range(h):
            row[k] += sums[k]


@strict
def gradient(first: int, last: int, crow: Any, col: Any, val: Any, up: Any, out: Any) -> None:
    """Add columns first to last of the transposed CSR rows times a matrix to ``out``.

    Args:
        first, last: The columns to do.
        crow, col, val: The CSR arrays, ``val`` float32.
        up: [n, h] float32.
        out: [g, h] float32.
    """
    for i in range(len(crow) - 1):
        row = up[i, first:last]
        for m in range(crow[i], crow[i + 1]):
            a, to = val[m], out[col[m], first:last]
            for k in range(len(row)):
                to[k] += a * row[k]


@strict
def lognorm(first: int, last: int, crow: Any, val: Any, size: Any, target: float, out: Any) -> None:
    """log(1 + value * target / size of its row), of the values of CSR rows first to last.

    Args:
        first, last: The rows to do.
        crow, val: Of the CSR arrays, ``val`` float32.
        size: [n] float32; below one it counts as one.
        target: float32.
        out: [nnz] float32, filled.
    """
    for i in range(first, last):
        factor = target / (ONE if size[i] < ONE else size[i])
        for m in range(crow[i], crow[i + 1]):
            r = val[m] * factor
            y = ONE + r
            out[m] = log1p32(r, y, ONE / y)
