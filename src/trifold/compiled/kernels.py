"""Kernels between all pairs of rows, row by row: distances from a Gram matrix, Gaussian kernels, weights and the derivative in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from trifold.compiled.elementary import ZERO, exp32, strict, summing

_TWO = np.float32(2.0)


@strict
def distances(gram: Any) -> Any:
    """Squared distances from inner products, in place, the diagonal 0.

    Args:
        gram: [n, n] float32 inner products of centred rows.

    Returns:
        The smallest and the largest off the diagonal; NaN among them gives two NaN.
    """
    n = len(gram)
    norm = np.empty(n, np.float32)
    for i in range(n):
        norm[i] = gram[i, i]
    low, high, spoilt = np.float32(np.inf), ZERO, 0
    for i in range(n):
        row, own = gram[i], norm[i]
        for j in range(n):
            d = own + norm[j] - _TWO * row[j]
            row[j] = ZERO if d < ZERO else d
        row[i] = row[i - 1] if i > 0 else row[n - 1]  # any other, so that the diagonal is not the smallest
        for j in range(n):
            d = row[j]
            low = d if d < low else low
            high = d if d > high else high
            spoilt += d != d
        row[i] = ZERO
    if spoilt:
        low = high = np.float32(np.nan)
    return low, high


@strict
def _square(e: Any) -> None:
    for j in range(len(e)):
        e[j] *= e[j]


@strict
def _exponentials(d: Any, scale: float, e: Any) -> None:
    for j in range(len(d)):
        e[j] = exp32(d[j] * scale)


@strict
def _add(e: Any, scale: float, k: Any, slope: Any) -> None:
    for j in range(len(e)):
        k[j] += e[j]
        slope[j] += scale * e[j]


@strict
def _flat(d: Any, first: float, second: float, third: float, k: Any, slope: Any) -> None:
    for j in range(len(d)):
        k[j] = ((third * d[j] + second) * d[j] + first) * d[j]
        slope[j] = (np.float32(3.0) * third * d[j] + _TWO * second) * d[j] + first


@strict
def _weights(i: int, cell: Any, stratum: Any, share: Any, own: Any, w: Any) -> None:
    c, s, of_i = cell[i], stratum[i], share[i]
    inside = own[i]
    for j in range(len(w)):
        across = -of_i * share[j] if stratum[j] == s else ZERO
        w[j] = inside if cell[j] == c else across


@summing
def _pull(w: Any, k: Any, slope: Any, row: Any) -> tuple[float, float]:
    value, total = 0.0, 0.0
    for j in range(len(w)):
        p = w[j] * slope[j] if row[j] != ZERO else ZERO  # equal rows do not pull on each other
        row[j] = p
        value += np.float64(w[j] * k[j])
        total += np.float64(p)
    return value, total


@strict
def weighted(distance: Any, cell: Any, stratum: Any, share: Any, own: Any, flat: Any, steps: Any, diagonal: float, totals: Any) -> float:
    """Sum of weights times kernels; the weighted derivatives replace the distances.

    Args:
        distance: [n, n] float32; becomes w dk/dd.
        cell, stratum: [n] int32; rows of one cell are one group.
        share: [n] float32; a pair of two cells of one stratum weighs minus the product.
        own: [n] float32 weight of a pair of one cell.
        flat: [3] float32 coefficients of the series of scales on which the kernels are near 1.
        steps: [m, 2] float32 (s, t): e = exp(s d), or, if s is 0, e = e e; unless t is 0, e is then added to the kernel and t e to its
            derivative.
        diagonal: What the kernel of a row with itself counts for.
        totals: [n] float32, filled with the sums of the derivatives' rows.
    """
    n = len(distance)
    e, k, slope, w = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    value = 0.0
    for i in range(n):
        d = distance[i]
        _flat(d, flat[0], flat[1], flat[2], k, slope)
        for m in range(len(steps)):
            if steps[m, 0] != ZERO:
                _exponentials(d, steps[m, 0], e)
            else:
                _square(e)
            if steps[m, 1] != ZERO:
                _add(e, steps[m, 1], k, slope)
        _weights(i, cell, stratum, share, own, w)
        w[i] = ZERO
        one, total = _pull(w, k, slope, d)
        value += one + diagonal * np.float64(own[i])
        totals[i] = total
    return value
