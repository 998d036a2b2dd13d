# mypy: ignore-errors
"""What generated Triton kernels call: rounding, random bits, and operations that Triton's language does not have.

Imported by kernels alone, so that nothing else needs Triton. Every function is also run by Triton's interpreter, which
knows none of the vendors' libraries of functions.
"""

import triton
import triton.language as tl

# -- rounding --------------------------------------------------------------------------------------------------------


@triton.jit
def hashed(index, seed):
    x = index * 2654435769 + seed
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def stochastic(x, random):
    bits = x.to(tl.uint32, bitcast=True)
    noise = tl.where((bits & 0x7F800000) != 0x7F800000, random & 0xFFFF, 0)
    return ((bits + noise) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def nearest(x):
    bits = x.to(tl.uint32, bitcast=True)
    rounded = tl.where(x != x, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


# -- operations ------------------------------------------------------------------------------------------------------


@triton.jit
def divided(x, y):
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def rooted(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def larger(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def negative(x):
    """Whether the sign is -, also that of zero."""
    if x.dtype == tl.float64:
        return (x.to(tl.uint64, bitcast=True) >> 63) != 0
    else:
        return (x.to(tl.uint32, bitcast=True) >> 31) != 0


@triton.jit
def copysign(x, y):
    return tl.where(negative(y), -tl.abs(x), tl.abs(x))


@triton.jit
def trunc(x):
    return copysign(tl.floor(tl.abs(x)), x)


@triton.jit
def rint(x):
    size = tl.abs(x)
    below = tl.floor(size)
    over = size - below
    odd = below != 2 * tl.floor(below / 2)
    return copysign(below + ((over > 0.5) | ((over == 0.5) & odd)).to(x.dtype), x)


@triton.jit
def fmod(x, y):
    return copysign(tl.abs(x) % tl.abs(y), x)


@triton.jit
def expm1(x):
    e = tl.exp(x)
    near = (e - 1) * x / tl.log(e)
    return tl.where(e == 1, x, tl.where((tl.abs(x) > 1) | (e == 0), e - 1, near))


@triton.jit
def log1p(x):
    u = x + 1
    return tl.where((u == 1) | (x == float("inf")), x, tl.log(u) * x / (u - 1))


@triton.jit
def tanh(x):
    e = expm1(-2 * tl.abs(x))
    return copysign(-e / (e + 2), x)


@triton.jit
def atan2(y, x):
    a, b = tl.abs(y), tl.abs(x)
    # The tangent of an angle up to 45 degrees, halved three times; then the series.
    t = tl.minimum(a, b) / tl.maximum(a, b)
    t = tl.where(a == b, (a == a).to(t.dtype), t)
    t = tl.where((a == 0) & (b == 0), 0.0, t)
    t = t / (1 + rooted(1 + t * t))
    t = t / (1 + rooted(1 + t * t))
    t = t / (1 + rooted(1 + t * t))
    s = t * t
    p = 1 / 3 - s * (1 / 5 - s * (1 / 7 - s * (1 / 9 - s * (1 / 11 - s * (1 / 13 - s * (1 / 15))))))
    angle = 8 * (t - t * s * p)
    angle = tl.where(a > b, 1.5707963267948966 - angle, angle)
    angle = tl.where(negative(x), 3.141592653589793 - angle, angle)
    return tl.where((x != x) | (y != y), x + y, copysign(angle, y))


@triton.jit
def pow(x, y):
    # In float64 the largest and smallest powers are some ten units in the last place off.
    x, y = tl.broadcast(x, y)
    a, e = tl.abs(x).to(tl.float64), y.to(tl.float64)
    size = tl.exp2(e * tl.log2(a))
    size = tl.where((a == 1) | (e == 0), tl.where(x == x, 1.0, size), size)
    size = tl.where((e == 0) | (x == 1), 1.0, size)
    whole = tl.floor(e) == e
    odd = whole & (tl.abs(e) < 9007199254740992.0) & (e != 2 * tl.floor(e / 2))
    size = tl.where((x < 0) & (a != float("inf")) & (whole == 0), float("nan"), size)
    return tl.where(odd & negative(x), -size, size).to(x.dtype)
