r"""The exact split of count log-probabilities (:mod:`trifold.dist.split`) as Triton kernels. Needs ``triton``.

One program per cell, in two kernels. The first takes the log-sum-exp of the cell's scores and does its nonzeros: log-probability,
gradients, and a mark where each of them lies. The second passes over all genes: the dense part where there is no mark, the sums of both
parts, and the gradient through the softmax. Dense rows need no marks: the second kernel reads them. Nothing is added by atomics, so equal
inputs give equal bits; nothing waits for the device. Not yet measured on a GPU; tested in Triton's interpreter.
"""

# mypy: disable-error-code="no-untyped-def, import-not-found"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trifold.records import Rows

GENES = 1024  # that a program works on at once, at most
NONZEROS = 256  # likewise; also genes of dense rows, since each has the special functions, which take registers


def split_cuda(
    scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor | None, rows: Rows, *, grads: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """log p of counts with mean L softmax(scores), summed over genes, and its gradients.

    Values of zero among the stored ones are passed over.

    Args:
        scores: [n, g] float32 unnormalised log rates. A row with NaN gives NaN.
        log_size: [n, 1] float32 log library size.
        log_theta: [g] or [n, g] float32 log inverse dispersion.
        dropout: [n, g] float32 logits of a structural zero; None: no zero inflation.
        rows: n x g counts, on the same device.
        grads: Whether gradients are wanted.

    Returns:
        ([n] log-probabilities in nats; [n, g] each: derivative of a cell's log-probability in its scores, in log_theta for this cell, and
        in dropout). Derivatives are None unless wanted, the last also without dropout.
    """
    n, g = scores.shape
    scores, log_size, log_theta = (t.contiguous() for t in (scores, log_size, log_theta))
    logits = scores if dropout is None else dropout.contiguous()
    lse, at, pull, out = (scores.new_empty(n) for _ in range(4))
    derivatives = [torch.empty_like(scores) if wanted else None for wanted in (grads, grads, grads and dropout is not None)]
    if not n:
        return out, derivatives[0], derivatives[1], derivatives[2]
    if rows.sparse:
        crow, col, val = (t.contiguous() for t in rows.csr())
        x = scores.new_zeros(n, g, dtype=torch.uint8)  # marks
    else:
        x = rows.to_dense().to(torch.float32).contiguous()
        crow = col = val = x
    common: dict[str, Any] = {
        "g": g,
        "by_cell": g if log_theta.dim() == 2 else 0,
        "GENES": min(GENES if rows.sparse else NONZEROS, triton.next_power_of_2(g)),
        "SPARSE": rows.sparse,
        "INFLATED": dropout is not None,
        "GRADS": grads,
        "enable_fp_fusion": True,
    }
    outputs = [scores if t is None else t for t in derivatives]  # never written where not wanted
    with torch.cuda.device_of(scores):
        _nonzeros[(n,)](scores, log_size, log_theta, logits, crow, col, val, x, lse, at, pull, *outputs, **common, NONZEROS=NONZEROS)
        _genes[(n,)](scores, log_size, log_theta, logits, x, lse, at, pull, out, *outputs, **common)
    return out, derivatives[0], derivatives[1], derivatives[2]


@triton.jit(do_not_specialize=["crow", "col", "val"])  # their alignment differs from batch to batch
def _nonzeros(
    scores,
    log_size,
    log_theta,
    dropout,
    crow,
    col,
    val,
    mark,
    lse,
    at,
    pull,
    d_scores,
    d_logtheta,
    d_dropout,
    g,
    by_cell,
    GENES: tl.constexpr,
    NONZEROS: tl.constexpr,
    SPARSE: tl.constexpr,
    INFLATED: tl.constexpr,
    GRADS: tl.constexpr,
):
    """Of one cell: lse, log of the sum of exp(scores); at and pull, log p and its derivative in log mu, summed over the nonzeros.

    At each nonzero: a mark, the derivative in log mu (in place of that in the score), in log theta and in the dropout logit.
    """
    cell = tl.program_id(0).to(tl.int64)
    scores += cell * g
    lane = tl.arange(0, GENES)
    top = tl.full([GENES], float("-inf"), tl.float32)
    total = tl.zeros([GENES], tl.float32)
    for start in range(0, g, GENES):
        s = tl.load(scores + start + lane, mask=start + lane < g, other=float("-inf"))
        higher = tl.maximum(top, s)
        level = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - level) + tl.exp(s - level)
        top = higher
    highest = tl.max(top, 0)
    log_sum = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    tl.store(lse + cell, log_sum)
    if SPARSE:
        shift = tl.load(log_size + cell) - log_sum
        first = tl.load(crow + cell)
        last = tl.load(crow + cell + 1)
        step = tl.arange(0, NONZEROS)
        sum_at = tl.zeros([NONZEROS], tl.float32)
        sum_pull = tl.zeros([NONZEROS], tl.float32)
        for start in range(first, last, NONZEROS):
            inside = start + step < last
            x = tl.load(val + start + step, mask=inside, other=0.0).to(tl.float32)
            gene = tl.load(col + start + step, mask=inside, other=0).to(tl.int64)
            inside = inside & (x != 0)
            x = tl.where(inside, x, 1.0)
            log_t = tl.load(log_theta + cell * by_cell + gene, mask=inside, other=0.0)
            log_mu = tl.load(scores + gene, mask=inside, other=0.0) + shift
            p = _log_pmf(x, log_mu, log_t)
            if INFLATED:
                logit = tl.load(dropout + cell * g + gene, mask=inside, other=0.0)
                p -= _softplus(logit)
            sum_at += tl.where(inside, p, 0.0)
            place = cell * g + gene
            tl.store(mark + place, tl.full([NONZEROS], 1, tl.uint8), mask=inside)
            if GRADS:
                d_mu, d_t = _slopes(x, log_mu, log_t)
                sum_pull += tl.where(inside, d_mu, 0.0)
                tl.store(d_scores + place, d_mu, mask=inside)
                tl.store(d_logtheta + place, d_t, mask=inside)
                if INFLATED:
                    tl.store(d_dropout + place, -_logistic(logit), mask=inside)
        tl.store(at + cell, tl.sum(sum_at, 0))
        tl.store(pull + cell, tl.sum(sum_pull, 0))


@triton.jit
def _genes(
    scores,
    log_size,
    log_theta,
    dropout,
    x,
    lse,
    at,
    pull,
    out,
    d_scores,
    d_logtheta,
    d_dropout,
    g,
    by_cell,
    GENES: tl.constexpr,
    SPARSE: tl.constexpr,
    INFLATED: tl.constexpr,
    GRADS: tl.constexpr,
):
    """Of one cell: out, log p over all genes, and the derivatives that ``_nonzeros`` left; x holds its marks, or dense counts."""
    cell = tl.program_id(0).to(tl.int64)
    scores += cell * g
    dropout += cell * g
    x += cell * g
    d_scores += cell * g
    d_logtheta += cell * g
    d_dropout += cell * g
    log_theta += cell * by_cell
    log_sum = tl.load(lse + cell)
    shift = tl.load(log_size + cell) - log_sum
    lane = tl.arange(0, GENES)
    sum_p = tl.zeros([GENES], tl.float32)
    sum_pull = tl.zeros([GENES], tl.float32)
    for start in range(0, g, GENES):
        gene = start + lane
        inside = gene < g
        log_t = tl.load(log_theta + gene, mask=inside, other=0.0)
        log_mu = tl.load(scores + gene, mask=inside, other=0.0) + shift
        count = tl.load(x + gene, mask=inside, other=0).to(tl.float32)
        zero = inside & (count == 0)
        logit = log_t
        if INFLATED:
            logit = tl.load(dropout + gene, mask=inside, other=0.0)
        p, d_mu, d_t, d_gate = _at_zero(log_mu, log_t, logit, INFLATED)
        ours = zero
        if not SPARSE:
            ours = inside
            some = tl.where(zero, 1.0, count)
            p_x = _log_pmf(some, log_mu, log_t)
            if INFLATED:
                p_x -= _softplus(logit)
                d_gate = tl.where(zero, d_gate, -_logistic(logit))
            p = tl.where(zero, p, p_x)
            if GRADS:
                d_mu_x, d_t_x = _slopes(some, log_mu, log_t)
                d_mu = tl.where(zero, d_mu, d_mu_x)
                d_t = tl.where(zero, d_t, d_t_x)
        sum_p += tl.where(ours, p, 0.0)
        if GRADS:
            sum_pull += tl.where(ours, d_mu, 0.0)
            tl.store(d_logtheta + gene, d_t, mask=ours)
            if INFLATED:
                tl.store(d_dropout + gene, d_gate, mask=ours)
    whole = tl.sum(sum_p, 0)
    whole_pull = tl.sum(sum_pull, 0)
    if SPARSE:
        whole += tl.load(at + cell)
        whole_pull += tl.load(pull + cell)
    tl.store(out + cell, whole)
    if GRADS:
        for start in range(0, g, GENES):
            gene = start + lane
            inside = gene < g
            log_t = tl.load(log_theta + gene, mask=inside, other=0.0)
            s = tl.load(scores + gene, mask=inside, other=0.0)
            count = tl.load(x + gene, mask=inside, other=0).to(tl.float32)
            zero = inside & (count == 0)
            logit = log_t
            if INFLATED:
                logit = tl.load(dropout + gene, mask=inside, other=0.0)
            p, d_mu, d_t, d_gate = _at_zero(s + shift, log_t, logit, INFLATED)
            if SPARSE:
                d_mu_x = tl.load(d_scores + gene, mask=inside & (count != 0), other=0.0)
            else:
                ratio = s + shift - log_t
                d_mu_x = count * _logistic(-ratio) - _exp(log_t) * _logistic(ratio)
            d_mu = tl.where(zero, d_mu, d_mu_x)
            tl.store(d_scores + gene, d_mu - tl.exp(s - log_sum) * whole_pull, mask=inside)


@triton.jit
def _at_zero(log_mu, log_theta, logit, INFLATED: tl.constexpr):
    """log p of a count of zero, and its derivatives in log mu, log theta and the dropout logit."""
    theta = _exp(log_theta)
    ratio = log_mu - log_theta
    spread = _softplus(ratio)
    f = _logistic(ratio)
    p = -theta * spread
    d_mu = -theta * f
    d_t = (f - spread) * theta
    d_gate = f
    if INFLATED:
        above = logit - p
        d_mu *= _logistic(-above)
        d_t *= _logistic(-above)
        d_gate = _logistic(above) - _logistic(logit)
        p += _softplus(above) - _softplus(logit)
    return p, d_mu, d_t, d_gate


@triton.jit
def _slopes(x, log_mu, log_theta):
    """Derivatives of log p of a count above zero in log mu and log theta."""
    theta = _exp(log_theta)
    ratio = log_mu - log_theta
    f = _logistic(ratio)
    left = x * _logistic(-ratio)
    d_theta = _digamma_difference(theta, x) - left / theta + f - _softplus(ratio)
    return left - theta * f, d_theta * theta


@triton.jit
def _softplus(r):
    """log(1 + exp(r))."""
    return tl.where(r > 0, r, 0.0) + _log1p(tl.exp(-tl.abs(r)))


@triton.jit
def _logistic(r):
    """1 / (1 + exp(-r)), which keeps its precision near 0; its complement is ``_logistic(-r)``."""
    e = tl.exp(-tl.abs(r))
    return tl.where(r >= 0, 1.0, e) / (1 + e)


@triton.jit
def _log_pmf(x, log_mu, log_theta):
    """log p of a count above zero; the regimes are those of ``trifold.dist.gamma.nb_log_pmf``, with shifts in place of log-gamma."""
    theta = _exp(log_theta)
    low = _softplus(log_mu - log_theta)
    high = _softplus(log_theta - log_mu)
    few = x <= 20.0
    narrow = theta <= 20.0
    # ln G(x + theta) - ln G(theta) - ln G(x + 1) = rise(level, by) - correction - ln G(last)
    level = tl.where(few, tl.where(narrow, theta + 8, theta), x + 1)
    by = tl.where(few, x, theta - 1)
    last = tl.where(few, x + 1, theta)
    y = level + by
    rise = (level - 0.5) * _log1p(by / level) + by * (tl.log(y) - 1) + _tail(y) - _tail(level)
    correction = tl.where(few & narrow, tl.log(_product(theta + x)) - tl.log(_product(theta)), 0.0)
    shifted = last + 8
    # half of log 2 pi
    of_last = (shifted - 0.5) * tl.log(shifted) - shifted + 0.9189385332046727 + _tail(shifted) - tl.log(_product(last))
    usual = rise - correction - of_last - x * high - theta * low
    # both large: by the deviance
    n = x + theta
    mu = _exp(log_mu)
    off_mean = tl.abs(x - mu)
    on = tl.where(off_mean * theta < 0.5 * n * mu, _log1p((x - mu) / mu * (theta / n)), tl.log(x / n) + high)
    off = tl.where(off_mean < 0.5 * n, _log1p((mu - x) / n), tl.log(theta / n) + low)
    deviance = 0.5 * tl.log(theta / n / x * 0.15915494309189535) + _tail(n) - _tail(theta) - _tail(x) - x * on - theta * off
    return tl.where(few | narrow, usual, deviance)


@triton.jit
def _digamma_difference(theta, x):
    """psi(theta + x) - psi(theta): the series of ``trifold.dist.gamma``, after a shift by 8 where theta is not large."""
    narrow = theta <= 20.0
    level = tl.where(narrow, theta + 8, theta)
    u = 1 / level
    v = 1 / (level + x)
    series = _log1p(x * u) + x * u * v * (0.5 + (u + v) * (0.08333333333333333 - (u * u + v * v) * 0.008333333333333333))
    steps = x / (theta * (theta + x))
    for i in tl.static_range(1, 8):
        steps += x / ((theta + i) * (theta + i + x))
    return series + tl.where(narrow, steps, 0.0)


@triton.jit
def _product(y):
    """y (y + 1) ... (y + 7): the gamma function of y + 8 over that of y."""
    p = y
    for i in tl.static_range(1, 8):
        p *= y + i
    return p


@triton.jit
def _tail(y):
    """Remainder of Stirling's formula for log-gamma; exact in float32 from 8 on."""
    inverse = 1 / y
    square = inverse * inverse
    return inverse * (0.08333333333333333 - square * (0.002777777777777778 - square * 0.0007936507936507937))


@triton.jit
def _log1p(u):
    """log(1 + u): the rounding of 1 + u is divided out."""
    w = 1 + u
    return tl.where(w == 1, u, tl.log(w) * (u / tl.where(w == 1, 1.0, w - 1)))


@triton.jit
def _exp(x):
    """exp(x) to float32's precision: the device's own loses as many units in the last place as x is large."""
    x = tl.where(x < -104.0, -104.0, x)
    x = tl.where(x > 104.0, 104.0, x)
    k = tl.floor(x * 1.4426950408889634 + 0.5)
    return tl.exp2(k) * tl.exp((x - k * 0.693359375) + k * 0.00021219444005469057)
