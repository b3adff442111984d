"""Exponential, logarithm and log-gamma as short polynomials that a compiler turns into vector instructions.

Each is branch-free and gives NaN for NaN. After a change here, delete the ``*.nbi`` files beside it: numba looks only at the age of the
file that holds the kernel itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic as _intrinsic


def _cached() -> bool:
    """Whether numba finds a folder in which it may keep what it compiles; without one, every process compiles anew."""
    try:
        njit(cache=True)(_cached)
    except RuntimeError:
        return False
    return True


_OPTIONS: Any = {"error_model": "numpy", "cache": _cached(), "nogil": True}  # numpy's: a division by zero is infinite, and no error
STRICT = {"contract"}  # multiply-add may be one rounding; nothing else may be rearranged
SUMS = {"contract", "reassoc", "nsz"}  # the order of a sum is free; NaN and infinity keep their meaning
strict: Any = njit(fastmath=STRICT, **_OPTIONS)
summing: Any = njit(fastmath=SUMS, **_OPTIONS)
intrinsic: Any = _intrinsic

_F32, _F64, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


@intrinsic
def order(typing: Any, x: Any) -> Any:
    """float32 -> int32 whose order is that of the floats; NaN comes last (or first, by its sign)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        flip = builder.and_(builder.ashr(bits, ir.Constant(_I32, 31)), ir.Constant(_I32, 0x7FFFFFFF))
        return builder.xor(bits, flip)

    return types.int32(types.float32), build


@intrinsic
def unorder(typing: Any, k: Any) -> Any:
    """The inverse of :func:`order`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        flip = builder.and_(builder.ashr(args[0], ir.Constant(_I32, 31)), ir.Constant(_I32, 0x7FFFFFFF))
        return builder.bitcast(builder.xor(args[0], flip), _F32)

    return types.float32(types.int32), build


@intrinsic
def _power32(typing: Any, t: Any) -> Any:
    """2**k, of k + 1.5 * 2**23 as float32; -126 <= k <= 127."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        k = builder.add(builder.bitcast(args[0], _I32), ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(k, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), build


@intrinsic
def _power64(typing: Any, t: Any) -> Any:
    """2**k, of k + 1.5 * 2**52 as float64; -1022 <= k <= 1023."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        k = builder.add(builder.bitcast(args[0], _I64), ir.Constant(_I64, 1023))
        return builder.bitcast(builder.shl(k, ir.Constant(_I64, 52)), _F64)

    return types.float64(types.float64), build


@intrinsic
def _exponent32(typing: Any, y: Any) -> Any:
    """k of y = 2**k m with m in [sqrt(1/2), sqrt 2), as float32; y a positive normal number."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.sub(builder.bitcast(args[0], _I32), ir.Constant(_I32, 0x3F3504F3))
        return builder.sitofp(builder.ashr(bits, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), build


@intrinsic
def _mantissa32(typing: Any, y: Any) -> Any:
    """m of y = 2**k m with m in [sqrt(1/2), sqrt 2)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        k = builder.and_(builder.sub(bits, ir.Constant(_I32, 0x3F3504F3)), ir.Constant(_I32, -(1 << 23)))
        return builder.bitcast(builder.sub(bits, k), _F32)

    return types.float32(types.float32), build


@intrinsic
def _exponent64(typing: Any, y: Any) -> Any:
    """k of y = 2**k m with m in [sqrt(1/2), sqrt 2), as float64; y a positive normal number."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.add(builder.bitcast(args[0], _I64), ir.Constant(_I64, 0x3FF0000000000000 - 0x3FE6A09E667F3BCD))
        # the biased exponent in the low bits of 2**52: there is no vector instruction that converts 64-bit integers before AVX-512
        biased = builder.or_(builder.lshr(bits, ir.Constant(_I64, 52)), ir.Constant(_I64, 0x4330000000000000))
        return builder.fsub(builder.bitcast(biased, _F64), ir.Constant(_F64, 2.0**52 + 1023))

    return types.float64(types.float64), build


@intrinsic
def _mantissa64(typing: Any, y: Any) -> Any:
    """m of y = 2**k m with m in [sqrt(1/2), sqrt 2)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I64)
        k = builder.and_(builder.sub(bits, ir.Constant(_I64, 0x3FE6A09E667F3BCD)), ir.Constant(_I64, -(1 << 52)))
        return builder.bitcast(builder.sub(bits, k), _F64)

    return types.float64(types.float64), build


def _f32(*values: float) -> Any:
    return tuple(np.float32(v) for v in values)


ONE, HALF, ZERO = _f32(1.0, 0.5, 0.0)
_LOG2E, _MAGIC32, _LOWEST32, _HIGHEST32, _LN2_HIGH, _LN2_LOW = _f32(1.44269504, 12582912.0, -87.0, 88.0, 0.693359375, -2.12194440e-4)
_E5, _E4, _E3, _E2, _E1 = _f32(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
_L8, _L7, _L6, _L5, _L4 = _f32(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1)
_L3, _L2, _L1, _L0 = _f32(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)


@strict
def exp32(x: float) -> float:
    """exp(x) of a float32 to one unit in the last place; held at exp(-87) and exp(88). Source: Cephes."""
    x = _LOWEST32 if x < _LOWEST32 else x
    x = _HIGHEST32 if x > _HIGHEST32 else x
    shifted = x * _LOG2E + _MAGIC32
    k = shifted - _MAGIC32
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = ((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + HALF
    return (p * (r * r) + r + ONE) * _power32(shifted)


@strict
def log32(y: float) -> float:
    """log(y) of a positive, normal, finite float32 to one unit in the last place. Not NaN for NaN. Source: Cephes."""
    k, f = _exponent32(y), _mantissa32(y) - ONE
    square = f * f
    p = ((((((((_L8 * f + _L7) * f + _L6) * f + _L5) * f + _L4) * f + _L3) * f + _L2) * f + _L1) * f + _L0) * f * square
    p = p + k * _LN2_LOW - HALF * square
    return (f + p) + k * _LN2_HIGH


@strict
def log1p32(r: float, y: float, inverse: float) -> float:
    """log(1 + r) of a float32 r > -1/2, given y = 1 + r as rounded and about 1 / y."""
    return log32(y) + (r - (y - ONE)) * inverse


_MAGIC64 = 1.5 * 2.0**52
_LN2_HIGH64, _LN2_LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@strict
def exp64(x: float) -> float:
    """exp(x) of a float64 to 1e-13; held at exp(-700) and exp(700)."""
    x = -700.0 if x < -700.0 else x
    x = 700.0 if x > 700.0 else x
    shifted = x * 1.4426950408889634 + _MAGIC64
    k = shifted - _MAGIC64
    r = (x - k * _LN2_HIGH64) - k * _LN2_LOW64
    p = 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    return ((p * r + 1.0) * r + 1.0) * _power64(shifted)


@strict
def log64(y: float) -> float:
    """log(y) of a positive, normal, finite float64 to 1e-15. Not NaN for NaN. Source: fdlibm."""
    k, f = _exponent64(y), _mantissa64(y) - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = 1.479819860511658591e-01 * z + 1.531383769920937332e-01
    p = p * z + 1.818357216161805012e-01
    p = p * z + 2.222219843214978396e-01
    p = p * z + 2.857142874366239149e-01
    p = p * z + 3.999999999940941908e-01
    p = p * z + 6.666666666666735130e-01
    half = 0.5 * f * f
    return k * _LN2_HIGH64 - ((half - (s * (half + p * z) + k * _LN2_LOW64)) - f)


@strict
def stirling(z: float, log_z: float, inverse: float) -> float:
    """ln Gamma(z) of a float64 z >= 6 to 1e-11, given log z and 1 / z."""
    w = inverse * inverse
    return (z - 0.5) * log_z - z + _HALF_LOG_2PI + inverse * (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w / 1188))))


@strict
def psi(log_z: float, inverse: float) -> float:
    """Digamma of a float64 z >= 6 to 1e-10, given log z and 1 / z."""
    w = inverse * inverse
    return log_z - 0.5 * inverse - w * (1 / 12 - w * (1 / 120 - w * (1 / 252 - w * (1 / 240 - w / 132))))


@strict
def rising(z: float) -> float:
    """z (z + 1) ... (z + 5), by which Gamma(z + 6) exceeds Gamma(z)."""
    low = z * (z + 5.0)  # the six factors in pairs: z² + 5z, + 4, + 6
    return low * (low + 4.0) * (low + 6.0)


@strict
def rising_slope(z: float) -> float:
    """Derivative of log :func:`rising`: the sum of 1 / (z + i), i = 0..5."""
    low = z * (z + 5.0)
    a, b = low + 4.0, low + 6.0
    return (2.0 * z + 5.0) * (a * b + low * (a + b)) / (low * a * b)
