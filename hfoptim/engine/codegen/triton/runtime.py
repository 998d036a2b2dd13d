# mypy: ignore-errors
"""What generated Triton kernels call: rounding, random bits, and operations that Triton's language does not have.

Imported by kernels alone, so that nothing else needs Triton. Every function is also run by Triton's interpreter, which
knows none of the vendors' libraries of functions.
"""

import os

import triton
import triton.language as tl

# In the interpreter a cast to bfloat16 cuts bits off.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"))

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
def of_bits(upper):
    """The bfloat16 number with these bits."""
    return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def nearest(x):
    if INTERPRETED:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        return of_bits(tl.where(x != x, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16))
    else:
        return x.to(tl.bfloat16)


@triton.jit
def stochastic(x, random):
    bits = x.to(tl.uint32, bitcast=True)
    noise = tl.where((bits & 0x7F800000) != 0x7F800000, random & 0xFFFF, 0)
    # The bits of a NaN may all be in the half that is cut off.
    return of_bits(tl.where(x != x, 0x7FC0, (bits + noise) >> 16))


@triton.jit
def joined(number, rest):
    """The float32 weights of bfloat16 numbers and their remainders, of 8 or 16 bits."""
    bits = number.to(tl.uint16, bitcast=True).to(tl.int32)
    remainder = rest.to(tl.int32)
    if rest.dtype == tl.int8:
        remainder = remainder * 256
    # A remainder may belong to other numbers than these: it never takes one through zero.
    magnitude = tl.maximum(((bits & 0x7FFF) << 16) + remainder, 0)
    return (magnitude | ((bits & 0x8000) << 16)).to(tl.float32, bitcast=True)


@triton.jit
def split16(x):
    """float32 weights as bfloat16 numbers, rounded half up in magnitude, and what is left of the magnitude."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = tl.where(x != x, 0x7FC00000, bits & 0x7FFFFFFF)
    high = (magnitude + 0x8000) >> 16
    rest = magnitude - (high << 16)
    return of_bits(high | ((bits >> 16) & 0x8000)), rest.to(tl.int16)


@triton.jit
def split8(x):
    number, rest = split16(x)
    return number, tl.minimum((rest.to(tl.int32) + 128) >> 8, 127).to(tl.int8)


# -- codes -----------------------------------------------------------------------------------------------------------


@triton.jit
def decoded(codes, scales, book):
    return tl.load(book + codes.to(tl.int32)) * scales[:, None]


@triton.jit
def block_largest(x):
    """The largest magnitude of each row; NaN where there is one. As integers, magnitudes are in the same order."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1).to(tl.float32, bitcast=True)


@triton.jit
def share_of(x, scale, LEAST: tl.constexpr):
    share = divided(x, tl.where(scale == 0, 1.0, scale)[:, None])
    if LEAST > 0:
        share = tl.where((share > 0) & (share < LEAST), LEAST, share)
    return share


@triton.jit
def code_of(share, above, cells):
    """The number of midpoints below each share: that of its cell, or one more."""
    bits = share.to(tl.int32, bitcast=True)
    cell = tl.minimum(tl.maximum(((bits & 0x7FFFFFFF) >> 16) - 13184, 0), 3199) + ((bits >> 31) & 1) * 3200
    code = tl.load(cells + cell).to(tl.int32)
    return code + (share > tl.load(above + code)).to(tl.int32)


@triton.jit
def code_by_chance(share, code, book, COUNT: tl.constexpr, random):
    """The code below each share, or by chance the next one, right on average."""
    low = code - (tl.load(book + code) > share).to(tl.int32)
    low = tl.minimum(tl.maximum(low, 0), COUNT - 2)
    below = tl.load(book + low)
    between = divided(share - below, tl.load(book + low + 1) - below)
    return low + ((random >> 8).to(tl.float32) * 5.9604644775390625e-08 < between).to(tl.int32)


@triton.jit
def packed(codes):
    """Two codes of 4 bits to a byte, the even column in the lower half."""
    low, high = tl.split(tl.reshape(codes, (codes.shape[0], codes.shape[1] // 2, 2)))
    return low | (high << 4)


@triton.jit
def unpacked(pairs):
    return tl.interleave(pairs & 15, pairs >> 4)


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
def largest(x):
    """The largest entry; NaN if there is one."""
    return tl.where(tl.max((x != x).to(tl.int32)) != 0, float("nan"), tl.max(x))


@triton.jit
def largest_along(x, AXIS: tl.constexpr):
    nan = tl.max((x != x).to(tl.int32), axis=AXIS, keep_dims=True) != 0
    return tl.where(nan, float("nan"), tl.max(x, axis=AXIS, keep_dims=True))


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
    return tl.where(negative(y), tl.abs(x) * -1.0, tl.abs(x))


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
    return copysign(e / (e + 2), x)


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
    return tl.where(odd & negative(x), size * -1.0, size).to(x.dtype)
