"""Row kernels of the split count log-probabilities: one cell at a time, so that what a cell needs stays in the cache.

A cell takes five short loops over genes (maximum, exponentials, the dense part, its sum, the gradient in the scores) and three over its
nonzeros, where the special functions are evaluated in float64. The formulas are those of :mod:`trifold.dist.split`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trifold.compiled.elementary import (
    ONE,
    ZERO,
    exp32,
    exp64,
    log1p32,
    log64,
    order,
    psi,
    rising,
    rising_slope,
    stirling,
    strict,
    summing,
    unorder,
)


@strict
def genes(log_theta: Any, theta: Any, inverse: Any, table: Any) -> None:
    """What the dispersion of each gene contributes, once for all cells.

    Args:
        log_theta: [g] float32.
        theta, inverse: [g] float32, filled with theta and 1 / theta.
        table: [3, g] float64, filled with theta, ln Gamma(theta), digamma(theta).
    """
    for j in range(len(log_theta)):
        t = exp64(np.float64(log_theta[j]))
        shifted = t + 6.0
        log_shifted, over = log64(shifted), 1.0 / shifted
        theta[j] = t
        inverse[j] = 1.0 / t
        table[0, j] = t
        table[1, j] = stirling(shifted, log_shifted, over) - log64(rising(t))
        table[2, j] = psi(log_shifted, over) - rising_slope(t)


@strict
def _thetas(log_theta: Any, theta: Any, inverse: Any) -> None:
    for j in range(len(log_theta)):
        t = exp32(log_theta[j])
        theta[j] = t
        inverse[j] = ONE / t


@strict
def _highest(row: Any) -> float:
    top = order(row[0])
    for j in range(1, len(row)):
        k = order(row[j])
        top = k if k > top else top
    return unorder(top)


@strict
def _exponentials(row: Any, top: float, e: Any) -> None:
    for j in range(len(row)):
        e[j] = exp32(row[j] - top)


@summing
def _sum(row: Any) -> float:
    total = 0.0
    for j in range(len(row)):
        total += np.float64(row[j])
    return total


@strict
def _zeros(e: Any, scale: float, theta: Any, inverse: Any, value: Any) -> None:
    """log p(0) of each gene."""
    for j in range(len(e)):
        r = e[j] * scale * inverse[j]  # mu / theta
        y = ONE + r
        value[j] = -theta[j] * log1p32(r, y, ONE / y)


@strict
def _zeros_slopes(e: Any, scale: float, theta: Any, inverse: Any, value: Any, d_mu: Any, d_theta: Any) -> None:
    """log p(0) of each gene, and its derivatives in log mu and log theta."""
    for j in range(len(e)):
        t = theta[j]
        r = e[j] * scale * inverse[j]
        y = ONE + r
        over = ONE / y
        spread = log1p32(r, y, over)
        f = r * over
        value[j] = -t * spread
        d_mu[j] = -t * f
        d_theta[j] = t * (f - spread)


@strict
def _inflate(gate: Any, value: Any) -> None:
    """log p(0) with structural zeros, from log p(0) without."""
    for j in range(len(gate)):
        d, a = gate[j], value[j]
        apart = d - a
        small, ratio = exp32(-abs(d)), exp32(-abs(apart))
        over = ONE / (ONE + small)
        q = (ratio - small) * over  # (1 + ratio) / (1 + small) - 1
        top = (d if apart > ZERO else a) - (d if d > ZERO else ZERO)
        value[j] = top + log1p32(q, ONE + q, (ONE + small) / (ONE + ratio))


@strict
def _inflate_slopes(gate: Any, value: Any, d_mu: Any, d_theta: Any, d_gate: Any) -> None:
    """:func:`_inflate`, and the derivatives in log mu, log theta and the gate."""
    for j in range(len(gate)):
        d, a = gate[j], value[j]
        apart = d - a
        small, ratio = exp32(-abs(d)), exp32(-abs(apart))
        over, over_ratio = ONE / (ONE + small), ONE / (ONE + ratio)
        q = (ratio - small) * over
        top = (d if apart > ZERO else a) - (d if d > ZERO else ZERO)
        value[j] = top + log1p32(q, ONE + q, (ONE + small) * over_ratio)
        larger, smaller = over_ratio, ratio * over_ratio
        kept = smaller if apart > ZERO else larger  # 1 - the probability that a zero is structural
        d_mu[j] *= kept
        d_theta[j] *= kept
        d_gate[j] = (larger if apart > ZERO else smaller) - (over if d > ZERO else small * over)


@strict
def _own_theta(k: int, log_theta: Any, theta: Any, log_gamma: Any, digamma: Any) -> None:
    for i in range(k):
        t = exp64(log_theta[i])
        shifted = t + 6.0
        log_shifted, over = log64(shifted), 1.0 / shifted
        theta[i] = t
        log_gamma[i] = stirling(shifted, log_shifted, over) - log64(rising(t))
        digamma[i] = psi(log_shifted, over) - rising_slope(t)


@strict
def _nonzeros(k: int, x: Any, log_mu: Any, log_theta: Any, theta: Any, log_gamma: Any, digamma: Any) -> None:
    """log p(x) into ``x``, the derivative in log mu into ``log_mu``, that in log theta into ``log_theta``; k nonzeros, float64."""
    for i in range(k):
        count, t = x[i], theta[i]
        mu = exp64(log_mu[i])
        both = t + mu
        log_both, over = log64(both), 1.0 / both
        f = mu * over
        rest = count * t * over  # x (1 - f)
        z, u = count + t, count + 1.0
        z6, u6 = z + 6.0, u + 6.0
        log_z6, over_z6, over_u6 = log64(z6), 1.0 / z6, 1.0 / u6
        chosen = stirling(z6, log_z6, over_z6) - stirling(u6, log64(u6), over_u6) + log64(rising(u) / rising(z)) - log_gamma[i]
        rise = psi(log_z6, over_z6) - rising_slope(z) - digamma[i]
        x[i] = chosen + count * (log_mu[i] - log_both) + t * (log_theta[i] - log_both)
        log_mu[i] = rest - t * f
        log_theta[i] = t * (rise + f - log_both + log_theta[i]) - rest


@strict
def _gates(k: int, gate: Any, soft: Any) -> None:
    """softplus(gate) into ``soft`` and sigmoid(gate) into ``gate``; k nonzeros, float64."""
    for i in range(k):
        small = exp64(-abs(gate[i]))
        over = 1.0 / (1.0 + small)
        soft[i] = (0.0 if gate[i] < 0.0 else gate[i]) + log64(1.0 + small)
        gate[i] = over if gate[i] > 0.0 else small * over


@strict
def _through_softmax(e: Any, share: float, d_mu: Any) -> None:
    for j in range(len(e)):
        d_mu[j] -= e[j] * share


@strict
def cells(
    first: int,
    last: int,
    scores: Any,
    log_size: Any,
    log_theta: Any,
    tables: Any,
    table: Any,
    gate: Any,
    crow: Any,
    col: Any,
    val: Any,
    grads: bool,
    out: Any,
    d_scores: Any,
    d_theta: Any,
    d_gate: Any,
) -> None:
    """Cells first to last of a negative binomial, or of a zero-inflated one.

    Args:
        first, last: The cells to do.
        scores: [n, g] float32.
        log_size: [n] float32.
        log_theta: [1, g] or [n, g] float32.
        tables: [2, g] float32 theta and 1 / theta, of :func:`genes`; read if all cells share them.
        table: [3, g] float64 of :func:`genes`; read if all cells share it.
        gate: [n, g] float32 logits of a structural zero; [0, 0]: none.
        crow, col, val: The CSR arrays of the counts; ``val`` float32.
        grads: Whether to fill the last three.
        out: [n] float32, filled with the log-probabilities.
        d_scores, d_theta, d_gate: [n, g] float32, filled with the derivatives in the scores, log theta and the gate. ``d_scores`` may be
            ``scores`` itself, and ``d_gate`` ``gate``.
    """
    g = scores.shape[1]
    shared, inflated = len(log_theta) == 1, len(gate) > 0
    e, value, own = np.empty(g, np.float32), np.empty(g, np.float32), np.empty((2, g), np.float32)
    theta, inverse = tables[0], tables[1]
    widest = 1
    for i in range(first, last):
        widest = max(widest, crow[i + 1] - crow[i])
    at, work = np.empty(widest, np.int64), np.empty((6, widest))
    x, log_mu, log_t, t, log_gamma, digamma = work[0], work[1], work[2], work[3], work[4], work[5]
    own_gate = np.empty(g if inflated else 1, np.float32)
    at_gate, soft = np.empty(widest if inflated else 1), np.empty(widest if inflated else 1)
    for i in range(first, last):
        row = scores[i]
        top = _highest(row)
        _exponentials(row, top, e)
        total = _sum(e)
        level = np.float64(log_size[i]) - np.float64(top) - math.log(total)  # log mu = score + level
        scale = np.float32(math.exp(np.float64(log_size[i])) / total)
        own_log_theta = log_theta[0 if shared else i]
        k = 0
        for m in range(crow[i], crow[i + 1]):
            if val[m] != ZERO:  # a zero may be stored
                at[k], x[k] = col[m], val[m]
                k += 1
        for m in range(k):
            log_mu[m] = np.float64(row[at[m]]) + level
            log_t[m] = own_log_theta[at[m]]
        if shared:
            for m in range(k):
                j = at[m]
                t[m], log_gamma[m], digamma[m] = table[0, j], table[1, j], table[2, j]
        else:
            theta, inverse = own[0], own[1]
            _thetas(own_log_theta, theta, inverse)
            _own_theta(k, log_t, t, log_gamma, digamma)
        _nonzeros(k, x, log_mu, log_t, t, log_gamma, digamma)
        if inflated:
            own_gate[:] = gate[i]  # a loop does not become vectors where what it reads is what it writes
            for m in range(k):
                at_gate[m] = own_gate[at[m]]
            _gates(k, at_gate, soft)
            for m in range(k):
                x[m] -= soft[m]
        if grads:
            _zeros_slopes(e, scale, theta, inverse, value, d_scores[i], d_theta[i])
            if inflated:
                _inflate_slopes(own_gate, value, d_scores[i], d_theta[i], d_gate[i])
                for m in range(k):
                    d_gate[i, at[m]] = -at_gate[m]
            for m in range(k):
                j = at[m]
                value[j] = x[m]
                d_scores[i, j] = log_mu[m]
                d_theta[i, j] = log_t[m]
            _through_softmax(e, np.float32(_sum(d_scores[i]) / total), d_scores[i])
        else:
            _zeros(e, scale, theta, inverse, value)
            if inflated:
                _inflate(own_gate, value)
            for m in range(k):
                value[at[m]] = x[m]
        out[i] = _sum(value)
